"""Inference with a trained model: load, score, inspect, sample, describe."""
