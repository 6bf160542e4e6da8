"""Videos and cameras: sources, stream and writer."""
