"""The purification job: what is asked, its stages, and the workers that run them."""
