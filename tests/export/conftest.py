"""Fixtures of the tests of exports."""

from pathlib import Path

import jax
import pytest

from tests.browser import browser, watched_page

__all__ = ["browser"]


@pytest.fixture
def open_page(browser):
    """Opens a page from disk without a network; returns it, its requests and its messages."""
    context = browser.new_context(offline=True)

    def open_file(path: Path) -> tuple:
        page, requests, messages = watched_page(context)
        page.goto(path.as_uri())
        return page, requests, messages

    yield open_file
    context.close()


@pytest.fixture
def keras_on_jax(monkeypatch):
    """Keras with the backend jax, which it keeps from its first import in a process."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):  # Keras needs it
        yield
