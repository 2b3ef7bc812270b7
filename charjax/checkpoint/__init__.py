"""Checkpoints: `reader` reads those of a run, `checkpoints` saves them, too; `store` is Orbax's.

Importing `reader` and what it imports takes neither JAX nor Orbax.
"""
