"""Inference with a trained model: load, evaluate, score, sample, describe."""
