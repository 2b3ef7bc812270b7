"""From bytes to characters and documents, by the rules of a run."""
