"""Text in, batches out: numpy only, importing it does not import jax."""
