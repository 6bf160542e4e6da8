"""The machine below: atomic files, signals, ordered threads, timing, hardware."""
