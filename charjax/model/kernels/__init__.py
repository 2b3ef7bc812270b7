"""Kernels in C for CPUs, compiled for the very processor that runs them.

`forward.c` and `backward.c` have the loops over time, `gradient.c` the sums over all of them,
`step.c` what writing text multiplies; `build` compiles them and makes them known to XLA.
"""
