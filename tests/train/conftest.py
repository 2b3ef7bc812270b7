from __future__ import annotations

from pathlib import Path

import jax
import pytest

from charjax.config import Config

from .tiny import config_of, text_of

_COMPILED = "/jax/core/compile/backend_compile_duration"


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


@pytest.fixture
def compiled():
    """How often XLA has compiled anything, counted up in a list of one."""
    count = [0]

    def listen(event: str, _: float, **__: object) -> None:
        count[0] += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)
