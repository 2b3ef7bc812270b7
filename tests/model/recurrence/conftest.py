"""The persistent kernels on a machine without a GPU."""

from __future__ import annotations

import pytest


@pytest.fixture
def interpreted(monkeypatch):
    """They run in Pallas' interpret mode."""
    from tests.model.recurrence.interpreter import interpret_kernels  # Pallas loads slowly

    interpret_kernels(monkeypatch)
