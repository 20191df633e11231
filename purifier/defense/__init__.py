"""Saliency, ranking and masking of visual evidence."""
