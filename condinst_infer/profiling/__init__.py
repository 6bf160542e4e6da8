"""Benchmark, scopes of the clocks, layer groups and the environment stamp."""
