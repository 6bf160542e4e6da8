"""Accuracy: average precision and panoptic quality."""
