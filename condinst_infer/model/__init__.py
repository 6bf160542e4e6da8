"""The CondInst network in PyTorch (arXiv:2003.05664, arXiv:2102.03026)."""
