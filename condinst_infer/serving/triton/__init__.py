"""NVIDIA Triton: a model repository around a model file, and what Triton's Python backend runs."""
