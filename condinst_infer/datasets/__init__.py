"""Data set formats: files in, checked records out."""
