"""Conversion of models of torch and Keras to runs of charjax."""
