"""Export of trained models to formats that run without charjax."""
