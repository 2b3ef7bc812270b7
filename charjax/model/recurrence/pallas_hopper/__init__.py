"""The recurrence as persistent kernels for NVIDIA Hopper GPUs."""
