"""Runtimes that run an exported model; each is one file with one `Session`."""
