"""Kernels in C for CPUs, compiled for the very processor that runs them.

`recurrence.c` has the loops over time; `build` compiles it and makes it known to XLA.
"""
