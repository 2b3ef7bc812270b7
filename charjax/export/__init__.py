"""Export of trained models to formats that run without charjax; conversion from torch and Keras."""
