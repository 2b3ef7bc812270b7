"""What the machine gives a run: keys, cache, display, devices, processes, dtypes, signals."""
