"""From text to batches, in numpy: importing this package does not import jax."""
