"""Texts from a model: prompts are encoded, and samples decoded up to where they end."""
