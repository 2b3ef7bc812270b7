"""The C library of this machine, and the tests that need it."""

from __future__ import annotations

import pytest

from charjax.model.recurrence.c.build import load
from charjax.model.recurrence.c.library import Library

LIBRARY = load()
needs_c = pytest.mark.skipif(not isinstance(LIBRARY, Library), reason=f"no C library: {LIBRARY}")


def skip_without(dtype):
    """Skips a test on a processor that cannot multiply numbers of this dtype."""
    if not LIBRARY.supports_dtype(dtype):
        pytest.skip(f"this processor has no {dtype} dot products")
