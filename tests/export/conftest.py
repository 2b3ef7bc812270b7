"""Fixtures of the tests of exports."""

import jax
import pytest

from tests.browser import browser

__all__ = ["browser"]


@pytest.fixture
def keras_on_jax(monkeypatch):
    """Keras with the backend jax, which it keeps from its first import in a process."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):  # Keras needs it
        yield
