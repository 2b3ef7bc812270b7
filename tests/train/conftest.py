from __future__ import annotations

from pathlib import Path

import pytest

from .tiny import text_of


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tea.txt"
    path.write_text(text_of(600), encoding="utf-8")
    return path
