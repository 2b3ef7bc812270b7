from __future__ import annotations

from pathlib import Path

import pytest

from charjax.config import Config

from .tiny import config_of, text_of


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tea.txt"
    path.write_text(text_of(600), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(text_file) -> Config:
    """Of a run of 40 steps, with dropout, a schedule and averaged weights."""
    return config_of(
        data={"path": str(text_file)},
        model={"cell": "rnn", "dropout": 0.2},
        optim={"schedule": "linear", "warmup": 0.1, "ema": 0.5},
    )
