"""The checkpoints of a run.

`checkpoints` saves and restores them, `reader` only reads them, without importing JAX or Orbax.
`store` writes one checkpoint with Orbax, `files` reads one with TensorStore.
"""
