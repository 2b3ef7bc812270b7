"""`load_trained` returns what a run saved, and `charjax info` describes it."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.checkpoint.progress import Progress
from charjax.conditions import from_config_dict
from charjax.config import Config, DataConfig, OptimConfig, TrainConfig, to_dict
from charjax.data.vocab import Vocab
from charjax.errors import CheckpointError
from charjax.inference.info import config_info, trained_info
from charjax.inference.load import load_trained, with_dtype
from charjax.inference.scoring.evaluate import score
from charjax.runtime.dtypes import resolve_dtype
from charjax.workdir import Workdir
from tests.inference.scripted import random_model, trained

VOCAB = Vocab(("a", "b", "é"), "codepoint", True)
MODEL, PARAMS = random_model(len(VOCAB), hidden=3, embed=2)
CONFIG = Config(model=MODEL, train=TrainConfig(max_steps=1))
META = {
    "config": to_dict(CONFIG),
    "vocabulary": VOCAB.to_json(),
    "corpus": {"name": "a text", "sha256": "00", "chars": 9, "notice": ""},
    "progress": Progress(elapsed_s=1.5).to_json(),
    "logs": {"metrics.jsonl": 0, "samples.txt": 0},
    "parameters": 9,
    "versions": {"jax": "0"},
    "device": "cpu",
    "devices": 1,
}


def save(workdir, *, config=CONFIG, losses=(None,)):
    """Saves steps 1, 2, ... whose parameters are the step times `PARAMS`, whose averages ten."""
    meta = META | {"config": to_dict(config)}
    checkpoints = Workdir(workdir).checkpoints
    with Checkpoints(checkpoints, keep=9) as saved:
        for step, loss in enumerate(losses, 1):
            params = jax.tree.map(lambda p, step=step: step * p, PARAMS)
            state = {"params": params}
            if config.optim.averages:
                state["ema"] = jax.tree.map(lambda p: 10 * p, params)
            saved.save(step, state, meta, val_loss=loss)


def load(workdir, which="best"):
    return load_trained(workdir, which=which)


def assert_params(loaded, factor):
    want = jax.tree.map(lambda p: np.asarray(factor * p), PARAMS)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(want), strict=True):
        assert type(g) is np.ndarray
        np.testing.assert_array_equal(g, w)


def test_a_model_comes_back_as_it_was_saved(tmp_path):
    save(tmp_path, losses=(1.25,))
    loaded = load(tmp_path)
    assert_params(loaded, 1)
    assert (loaded.config, loaded.vocab) == (CONFIG, VOCAB)
    assert (loaded.step, loaded.val_loss) == (1, 1.25)


@pytest.mark.parametrize("optim", [{"ema": 0.99}, {"name": "schedule_free"}])
def test_the_averaged_weights_are_taken_where_there_are_any(optim, tmp_path):
    save(tmp_path, config=replace(CONFIG, optim=OptimConfig(**optim)))
    assert_params(load(tmp_path), 10)


@pytest.mark.parametrize(
    ("losses", "which", "step"),
    [
        *[((3.0, 1.0, 2.0), which, step) for which, step in (("best", 2), ("newest", 3), (1, 1))],
        ((None, None), "best", 2),  # the newest, where none was evaluated
    ],
)
def test_which_step_is_said(tmp_path, losses, which, step):
    save(tmp_path, losses=losses)
    loaded = load(str(tmp_path), which)  # a folder may be named by a string
    assert loaded.step == step
    assert_params(loaded, step)


def test_a_damaged_step_is_reported_and_passed_over(tmp_path, caplog):
    save(tmp_path, losses=(1.0, 2.0))
    (Workdir(tmp_path).checkpoints / "1" / "meta" / "record.json").write_text("{", "utf-8")
    assert load(tmp_path).step == 2
    assert caplog.messages
    assert all("damaged" in line and "\n" not in line for line in caplog.messages)


@pytest.mark.parametrize("which", ["best", "newest", 7])
def test_a_folder_without_checkpoints_is_named(tmp_path, which):
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}.*: .*$"):
        load(tmp_path, which)


SIZES = {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(PARAMS)),
    "vocab_size": 4,
    "cell": "gru",
    "layers": 1,
    "hidden": 3,
    "embed": 2,
    "dtype": "float32",
}


def test_the_info_of_a_trained_model(tmp_path):
    save(tmp_path, losses=(1.25,))
    info = trained_info(load(tmp_path))
    assert json.loads(json.dumps(info)) == SIZES | {
        "corpus": "a text",
        "sha256": "00",
        "notice": "",
        "step": 1,
        "val_loss": 1.25,
        "elapsed_s": 1.5,
        "versions": {"jax": "0"},
        "device": "cpu",
        "recurrence": None,  # not recorded by older versions
    }


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_info_of_a_config(dtype, tmp_path):
    text = "abéa" * 250
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    data = DataConfig(path=str(file), unk=True, batch_size=4, seq_len=16, split=(0.8, 0.1, 0.1))
    model = replace(CONFIG.model, dtype=dtype)
    config = from_config_dict(to_dict(replace(CONFIG, data=data, model=model)))
    info = config_info(config)
    assert json.loads(json.dumps(info)) == info
    assert info | SIZES | {"dtype": resolve_dtype(config).model.dtype} == info
    assert info["chars"] == 1000
    assert (info["train_chars"], info["val_chars"], info["test_chars"]) == (800, 100, 100)
    assert info["documents"] == 1
    assert info["steps_per_epoch"] == 799 // (4 * 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_another_precision_costs_a_little_loss_and_is_measured(dtype):
    config, params = random_model(5, hidden=32)
    whole = trained((config, params), "abcde")
    ids = np.random.default_rng(0).integers(0, 5, 200).astype(np.int32)
    rounded = with_dtype(whole, dtype)
    loss, rounded_loss = (
        score(t.config.model, t.params, ids).nats_per_char for t in (whole, rounded)
    )
    assert 0 < abs(loss - rounded_loss) < 0.05 * loss
    assert with_dtype(rounded, "float32").config == whole.config
