"""A text as tokens in memory, and in the user's cache folder."""
