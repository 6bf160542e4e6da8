"""The CPU work around the network: preprocess, batching, postprocess, paste, panoptic merge."""
