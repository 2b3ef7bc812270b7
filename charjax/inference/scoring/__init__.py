"""The losses of a text under a model: in training's evaluation, of a file, of each character."""
