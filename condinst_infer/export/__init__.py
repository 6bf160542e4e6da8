"""Checkpoint to ONNX; the contract is in export/README.md. Imports no runtime."""
