"""Image files become pixels: one decoder for serving, data sets, purification and evaluation."""
