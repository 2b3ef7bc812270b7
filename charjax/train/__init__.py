"""Training: the step as a pure function, its backends, and the loop of a run."""
