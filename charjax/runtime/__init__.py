"""What depends on the machine: devices, processes, signals, dtypes, random keys, cache, display.

Importing this package imports no JAX; neither do `cache`, `display` and `signals`.
"""
