"""Export of trained models to formats that need no charjax."""
