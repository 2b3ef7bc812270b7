"""The recurrence, and a batch-invariant matmul, in C: compiled for the processor at hand."""
