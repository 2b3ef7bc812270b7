"""A cell costs one row of CELLS and its name in the config: a minimal gated unit, end to end."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import CELL_SIZES, CellSizes, ModelConfig
from charjax.errors import InputError
from charjax.inference.load import load_trained, with_dtype
from charjax.inference.options import Sampling
from charjax.inference.scoring.score import read_file, score_text
from charjax.inference.texts.sampler import sample_texts
from charjax.model.cells import CELLS, Cell, CellGrads
from charjax.model.recurrence.api import resolve
from charjax.runtime.display import no_progress
from charjax.train.loop import train
from tests.model.recurrence.implementations import Size, random_layer, value_and_gradient
from tests.model.recurrence.test_pallas_hopper import HOPPER
from tests.model.small import distance
from tests.train.tiny import Recorder, config_of, text_of


def mgu_forward(igates, hgates, carry):
    """Minimal gated unit (Zhou et al. 2016, arXiv:1603.09420), reset after the matmul.

    f = sigmoid(x_f + h_f),  n = tanh(x_n + f * h_n),  h' = (1 - f) * h + f * n
    """
    (h,), (x_f, x_n), (h_f, h_n) = carry, igates, hgates
    f = jax.nn.sigmoid(x_f + h_f)
    n = jnp.tanh(x_n + f * h_n)
    return (h + f * (n - h),), (f, n, h_n, h)


def mgu_backward(residuals, d_carry):
    (f, n, h_n, h), (dh,) = residuals, d_carry
    dn = dh * f * (1 - n * n)
    df = (dh * (n - h) + dn * h_n) * f * (1 - f)
    return CellGrads(hgates=(df, dn * f), candidate=dn, carry=(dh * (1 - f),))


@pytest.fixture(autouse=True)
def _mgu(monkeypatch):
    sizes = CellSizes(gates=2, reset_after=True)
    monkeypatch.setitem(CELL_SIZES, "mgu", sizes)
    monkeypatch.setitem(CELLS, "mgu", Cell(*sizes, mgu_forward, mgu_backward))


@pytest.mark.parametrize("name", ["c", "persistent"])
def test_c_and_pallas_refuse_it_by_name(name, monkeypatch):
    if name == "persistent":
        monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    with pytest.raises(InputError, match=rf"recurrence={name}: .*cell[ =]mgu\b") as error:
        resolve(ModelConfig(cell="mgu", recurrence=name, dtype="bfloat16"), 64)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("kind", ["projected", "table"])
def test_xla_runs_it_as_scan_does(kind):
    layer = random_layer("mgu", kind, Size(3, 6, 5))
    got, want = (value_and_gradient(name, "mgu", "float32", *layer) for name in ("xla", "scan"))
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("mgu", "recurrence: xla (c refuses: it has no cell mgu"),
        ("mingru", "recurrence: parallel (the fastest here)"),
        ("mogrifier", "recurrence: scan (the fastest here)"),
    ],
)
def test_it_trains_samples_scores_and_resumes(tmp_path, cell, message):
    text = tmp_path / "text.txt"
    text.write_text(text_of(400))
    config = config_of(
        data={"path": str(text)},
        model={"cell": cell},
        train={"max_steps": 20, "eval_every": 10},
        sample={"num_chars": 4},
    )
    display = Recorder()
    train(config, tmp_path / "whole", display)
    assert any(message in line for line in display.lines)
    train(replace(config, train=replace(config.train, max_steps=10)), tmp_path / "resumed", display)
    train(config, tmp_path / "resumed", display)
    whole, resumed = (
        load_trained(tmp_path / name, which="newest") for name in ("whole", "resumed")
    )
    assert (whole.step, resumed.step, whole.config.model.cell) == (20, 20, cell)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)

    if cell != "mgu":
        with pytest.raises(InputError, match=rf"--weights=int8: .*model\.cell={cell}"):
            with_dtype(whole, "int8")
    score = score_text(whole, read_file(whole, str(text), unknown="error"), no_progress)
    assert score.nats_per_char < np.log(len(whole.vocab))
    texts = sample_texts(
        whole.config.model, whole.params, whole.vocab, "the ",
        num_chars=5, num_samples=2, sampling=Sampling(seed=0),
    )  # fmt: skip
    assert [len(text) for text in texts] == [5, 5]
