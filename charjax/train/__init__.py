"""One pure step, and the loop that composes everything."""
