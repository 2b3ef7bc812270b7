"""Tokens and carry in, logits and carry out: pure functions of their arguments."""
