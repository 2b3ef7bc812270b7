"""charjax: character-level recurrent language models in JAX."""
