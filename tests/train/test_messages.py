"""What a run says of the machine's part in it."""

from __future__ import annotations

import pytest

from charjax.config import ModelConfig
from charjax.model.recurrence.c.build import Absent, Kernels
from charjax.train import messages

HERE = Kernels(lanes=8, rows=12, outputs=32, has_bfloat16=False)


@pytest.mark.parametrize(
    ("recurrence", "kernels", "said"),
    [
        ("fast", HERE, ", loops in C"),
        ("fast", Absent("no C compiler (cc)"), ", loops by XLA: no C compiler (cc)"),
        ("xla", HERE, ""),  # as asked for
    ],
)
def test_a_run_says_how_its_loops_run_and_why(monkeypatch, recurrence, kernels, said):
    monkeypatch.setattr(messages, "kernels_for", lambda dtype: kernels)
    assert messages._loops(ModelConfig(recurrence=recurrence)) == said
