"""A text as tokens in a folder, or at an address: `charjax pack` writes it, training reads it."""
