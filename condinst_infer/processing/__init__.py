"""The CPU work around the network: preprocess, NMS, mask heads, postprocess, paste, merge."""
