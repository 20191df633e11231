"""Answers that no small part of an image can have decided, whatever the model."""
