"""One Session per runtime, and the runner that opens a model file."""
