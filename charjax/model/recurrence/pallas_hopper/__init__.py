"""Persistent Pallas kernels of the recurrence for NVIDIA Hopper GPUs."""
