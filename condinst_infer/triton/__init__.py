"""NVIDIA Triton: a model repository around a model file, and what runs inside of Triton."""
