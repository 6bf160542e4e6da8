"""Scripts that compare and sweep; each writes one JSON file to `results/`."""
