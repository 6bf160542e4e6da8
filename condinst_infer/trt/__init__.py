"""ONNX to a TensorRT engine: build, plugin, sidecar, shape profile."""
