"""The tasks that are measured, one module for each library; only a worker imports them."""
