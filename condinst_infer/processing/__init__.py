"""The CPU work around the network: geometry, preprocess, batching, postprocess, paste, panoptic merge."""
