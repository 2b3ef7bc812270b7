"""Runs that continue from another model: `train.init_from`, by the public command."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from charjax.checkpoint.meta import SourceMeta
from charjax.cli.main import main
from charjax.config import ModelConfig, OptimConfig
from charjax.data.vocab import Vocab
from charjax.export.weights import named_weights
from charjax.inference.load import TrainedModel, load_trained
from charjax.inference.scoring.evaluate import char_nats
from charjax.inference.scoring.score import read_part, score_text
from charjax.model.cells import CELLS
from charjax.model.shapes import param_shapes
from charjax.runtime.display import no_progress
from charjax.train.fine_tuning import InitialModel, initial_params, token_axes, token_ids
from charjax.train.optimizer import OPTIMIZERS, make_optimizer
from tests.export.tiny import TEXT, network_logits, tokens_of, trained_like
from tests.faults.trial import write_config

from ..fine_tuning import PAGE, RESULTS, table
from .tiny import config_of, text_of

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = config_of(
    model={"cell": "rnn"},
    optim={"learning_rate": 0.02, "ema": 0.9},
    train={"max_steps": 60, "eval_every": 30, "log_every": 30, "steps_per_dispatch": 0},
    sample={"num_chars": 0},
)
OLD = text_of(600)
NEW = OLD.replace("cat", "DOG") + "ÄÖ!" * 3  # "c" is gone and, of the base model, "k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two texts, and a base model of the first with an embedding and one without."""
    path = tmp_path_factory.mktemp("initial")
    write_config(path / "tiny.py", CONFIG)
    (path / "old.txt").write_text(OLD + " k", encoding="utf-8")
    (path / "new.txt").write_text(NEW, encoding="utf-8")
    for embed in (4, 0):
        assert train(path, f"base{embed}", "old", f"--config.model.embed={embed}") == 0
    return path


def train(folder: Path, workdir: str | Path, text: str, *flags: str) -> int:
    """The exit code of a run on one of the texts."""
    paths = f"--workdir={folder / workdir}", f"--config.data.path={folder}/{text}.txt"
    return main(["train", f"--config={folder}/tiny.py", *paths, *flags])


ONE_STEP_OF_NONE = ("--config.train.max_steps=1", "--config.optim.learning_rate=0.0")


def nats_of(trained: TrainedModel, text: str) -> np.ndarray:
    return char_nats(trained.config.model, trained.params, trained.vocab.encode(text))


@pytest.mark.parametrize("embed", [4, 0])
def test_the_old_texts_loss_is_unchanged_though_the_vocabulary_has_grown(
    embed, folder, tmp_path, capfd
):
    more = [f"--init_from={folder}/base{embed}", f"--config.model.embed={embed}"]
    assert train(folder, tmp_path / "run", "new", *more, *ONE_STEP_OF_NONE) == 0
    said = capfd.readouterr().out
    assert "tokens: 13 known; 6 new (U+0021, U+0044, U+0047, U+004F, U+00C4, U+00D6); " in said
    assert "2 kept, though the text lacks them (U+0063, U+006B); the optimizer" in said
    old, new = (load_trained(f, which="best") for f in (folder / f"base{embed}", tmp_path / "run"))
    assert len(new.vocab) == len(old.vocab) + 6
    change = nats_of(new, OLD) - nats_of(old, OLD)
    assert abs(change.mean()) < 1e-6
    assert np.abs(change).max() < 1e-5
    is_new = [c in "DOG" for c in NEW[1:]]
    assert nats_of(new, NEW)[is_new].min() > 16  # 1e-7 of the probability, all together
    source = new.run.source
    assert (source.path, source.step) == (f"{folder}/base{embed}", old.step)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["source"] == asdict(source)


@pytest.mark.parametrize("cell", CELLS)
def test_new_tokens_are_all_but_impossible_also_where_a_unit_has_no_bounds(cell):
    model = ModelConfig(cell=cell, hidden=12, embed=6, recurrence="scan")
    old, new = trained_like(model), trained_like(model, text=TEXT + "ÄÖ", unk=True)
    old.params["layer_0"]["kernel"] *= 10  # so that units leave [-1, 1] if the cell lets them
    old.params["output_kernel"] += 9  # so that every unit moves all logits
    source = SourceMeta("charjax", "", "", 0, old.vocab.to_json())
    params = initial_params(new.params, InitialModel(source, old), new.vocab, model)
    logits = network_logits(replace(new, params=params), tokens_of(new, 4, 50)).astype("f8")
    new_ids = [new.vocab.encode("Ä")[0], new.vocab.encode("Ö")[0], new.vocab.unk_id]
    masses = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))[..., new_ids]
    assert masses.sum(axis=-1).max() < 1.001e-7  # the logits are rounded


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_the_info_of_a_config_counts_the_characters_of_the_initial_model(
    choice, folder, tmp_path, capfd
):
    more = [f"--config.train.init_from={folder}/base4", f"--config.train.init_characters={choice}"]
    assert train(folder, tmp_path / "run", "new", *more, *ONE_STEP_OF_NONE) == 0
    run = load_trained(tmp_path / "run", which="best").run
    capfd.readouterr()
    text = f"--config.data.path={folder}/new.txt"
    assert main(["info", f"--config={folder}/tiny.py", text, *more]) == 0
    info = json.loads(capfd.readouterr().out)
    assert (info["vocab_size"], info["parameters"]) == (len(run.vocab), run.parameters)
    assert main(["info", f"--config={folder}/tiny.py", text, "--config.train.init_from=none"]) == 2
    assert "--init_from=none: " in capfd.readouterr().err


def test_characters_that_the_text_lacks_are_dropped_by_choice(folder, tmp_path, capfd):
    more = [f"--init_from={folder}/base4", "--config.train.init_characters=drop"]
    assert train(folder, tmp_path / "run", "new", *more, *ONE_STEP_OF_NONE) == 0
    assert "2 dropped, which the text lacks (U+0063, U+006B)" in capfd.readouterr().out
    old, new = (load_trained(f, which="best") for f in (folder / "base4", tmp_path / "run"))
    assert set(new.vocab.characters) == set(NEW)
    ids, theirs = token_ids(new.vocab), token_ids(old.vocab)
    for name, axis in (("embedding", 0), ("output_kernel", 1), ("output_bias", 0)):
        for token in set(ids) & set(theirs):
            one, other = (np.moveaxis(m.params[name], axis, 0) for m in (new, old))
            # The moving average rounds.
            np.testing.assert_allclose(one[ids[token]], other[theirs[token]], rtol=1e-5)


def test_new_characters_are_learned(folder, tmp_path):
    more = [f"--init_from={folder}/base4", "--config.train.max_steps=240"]
    assert train(folder, tmp_path / "run", "new", *more) == 0
    nats = nats_of(load_trained(tmp_path / "run", which="best"), NEW)
    assert nats[[c in "DOG" for c in NEW[1:]]].mean() < 3  # from over 16 before the first step


def test_new_characters_that_a_frozen_output_keeps_impossible_are_named(folder, tmp_path, capfd):
    more = [f"--init_from={folder}/base4", "--config.optim.freeze=output"]
    assert train(folder, tmp_path / "run", "new", *more) == 0
    named = "6 new, impossible while config.optim.freeze has output (U+0021, U+0044, "
    assert named in capfd.readouterr().out
    nats = nats_of(load_trained(tmp_path / "run", which="newest"), NEW)
    assert nats[[c in "DOG" for c in NEW[1:]]].min() > 16


def test_a_resumed_run_does_not_import_again_and_needs_the_source_no_more(folder, tmp_path, capfd):
    """Interrupted and resumed equals uninterrupted, and `--part` reads the text as it did."""
    source, whole, halves = (tmp_path / name for name in ("source", "whole", "halves"))
    assert train(folder, source, "old") == 0
    more = [f"--init_from={source}", "--config.optim.imported_rate=0.5"]
    assert train(folder, whole, "new", *more) == 0
    assert train(folder, halves, "new", *more, "--config.train.max_steps=30") == 0
    source.rename(tmp_path / "moved")
    assert train(folder, halves, "new", *more) == 0
    one, other = (load_trained(f, which="newest") for f in (whole, halves))
    assert one.step == other.step == 60
    for name, array in named_weights(one.params).items():
        np.testing.assert_array_equal(array, named_weights(other.params)[name], err_msg=name)
    assert one.run.source == other.run.source
    score = score_text(one, read_part(one, "val"), no_progress)
    assert score.nats_per_char == pytest.approx(one.val_loss, 1e-4)
    capfd.readouterr()
    moved = f"--init_from={tmp_path}/moved"
    for changed in (moved, "--config.train.init_characters=drop"):
        assert train(folder, halves, "new", *more, changed) == 2
        assert "config.train.init_" in capfd.readouterr().err
    assert train(folder, halves, "new", *more, moved, "--allow=config.train.init_from") == 0
    assert load_trained(halves, which="newest").run.source == one.run.source


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--config.model.hidden=9", "that model has hidden=8, unlike this config"),
        ("--config.model.layers=2", "give --config.model.layers=1"),
        ("--config.model.cell=lstm", "give --config.model.cell=rnn"),
        ("--config.model.embed=0", "give --config.model.embed=4"),
        ("--config.data.unit=byte", "give --config.data.unit=codepoint"),
        ("--init_from={}/none", "holds no checkpoint"),
        ("--init_from=", "is empty"),
        ("--config.train.init_from={}/base4", "is short for --config.train.init_from"),
    ],
)
def test_another_architecture_or_no_model_is_refused_in_one_line(
    change, said, folder, tmp_path, capfd
):
    capfd.readouterr()
    more = f"--init_from={folder}/base4", change.format(folder)
    assert train(folder, tmp_path / "run", "new", *more) == 2
    message = capfd.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("embed", [0, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_the_axes_of_tokens_are_those_that_grow_with_the_vocabulary(cell, embed):
    config = ModelConfig(cell=cell, hidden=5, layers=2, embed=embed)
    few, many = param_shapes(config, 7), param_shapes(config, 11)
    axes = {
        p: [a == b for a, b in zip(few[p], many[p], strict=True)].index(False)
        for p in few
        if few[p] != many[p]
    }
    assert {"/".join(path): axis for path, axis in token_axes(config).items()} == axes


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_starts_from_the_imported_weights(optimizer, folder, tmp_path):
    optim = {"name": optimizer, "ema": 0.0, "learning_rate": 1e-6}
    flags = [f"--config.optim.{name}={value}" for name, value in optim.items()]
    more = [f"--init_from={folder}/base4", *flags, "--config.train.max_steps=3"]
    assert train(folder, tmp_path / "run", "old", *more) == 0
    base = named_weights(load_trained(folder / "base4", which="best").params)
    for name, array in named_weights(load_trained(tmp_path / "run", which="newest").params).items():
        np.testing.assert_allclose(array, base[name], atol=1e-4, err_msg=name)


def test_frozen_parts_stay_and_imported_ones_learn_at_their_rate(folder, tmp_path):
    base = load_trained(folder / "base4", which="best")
    for rate, frozen in ((1e-9, ""), (0.0, "layer_0")):
        more = [f"--config.optim.freeze={frozen}", f"--config.optim.imported_rate={rate}"]
        workdir = tmp_path / f"run{rate}"
        assert train(folder, workdir, "new", f"--init_from={folder}/base4", *more) == 0
        run = load_trained(workdir, which="newest")
        ids, theirs = token_ids(run.vocab), token_ids(base.vocab)
        for path in (("kernel",), ("bias",), ("recurrent", "kernel")):
            one, other = run.params["layer_0"], base.params["layer_0"]
            for key in path:
                one, other = one[key], other[key]
            np.testing.assert_allclose(one, other, rtol=1e-5)  # rounded by the moving average
        here = np.array([ids[token] for token in theirs])
        there = np.array([theirs[token] for token in theirs])
        moved = run.params["embedding"][here] - base.params["embedding"][there]
        assert (np.abs(moved).max() > 1e-4) == bool(frozen)
        assert np.abs(run.params["output_kernel"][:, ids["D"]]).max() > 1e-3  # new, so it learns


def test_a_frozen_part_does_not_count_in_the_norm_of_the_gradient():
    params = {"embedding": np.ones((2, 2), "f"), "output_bias": np.ones(2, "f")}
    grads = jax.tree.map(lambda p: 100 * p, params)
    config = OptimConfig(name="sgd", b1=0.0, learning_rate=1.0, freeze="embedding")
    optimizer = make_optimizer(config, 1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["embedding"], 0)
    assert float(optax.tree.norm(updates["output_bias"])) == pytest.approx(1, 1e-5)


def test_the_table_of_the_docs_is_that_of_its_result_file():
    assert table(json.loads(RESULTS.read_text("utf-8"))) in PAGE.read_text("utf-8")


def test_the_special_tokens_are_moved_by_their_meaning():
    old = Vocab(("a", "b"), "codepoint", unk=True, boundary=True)
    new = dataclasses.replace(old, characters=("a", "b", "c"), boundary=False)
    assert token_ids(old) == {"a": 0, "b": 1, "the boundary": 2, "[UNK]": 3}
    assert token_ids(new) == {"a": 0, "b": 1, "c": 2, "[UNK]": 3}


def test_a_converted_run_is_not_trained_in_place(folder, tmp_path, capfd):
    line = ["export", f"--workdir={folder}/base4", f"--out={tmp_path}/t", "--format=torch"]
    assert main(line) == 0
    line = ["convert", f"{tmp_path}/t/model.safetensors", "--from=torch", f"--out={tmp_path}/run"]
    assert main([*line, f"--vocabulary={tmp_path}/t/vocabulary.json"]) == 0
    capfd.readouterr()
    assert train(folder, tmp_path / "run", "old") == 2
    assert f"train on with --init_from={tmp_path}/run" in capfd.readouterr().err
    assert train(folder, tmp_path / "on", "old", f"--init_from={tmp_path}/run") == 0
