"""The service: FastAPI in front, one engine thread that owns the model."""
