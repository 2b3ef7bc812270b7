"""Token ids from a model: the next one is chosen from logits, by one jitted loop."""
