"""What depends on the machine: devices, processes, signals, dtypes, random keys, cache, display.

Only `compiler_options`, `distributed`, `dtypes`, `keys` and `sharding` import JAX.
"""
