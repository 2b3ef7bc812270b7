"""charjax: character-level recurrent language models in JAX.

The pieces of a custom training loop; `__init__.pyi` lists them. Each is imported when it is
first used, so that `import charjax` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
