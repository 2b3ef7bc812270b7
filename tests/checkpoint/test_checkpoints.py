"""A restored state equals the saved one bit for bit; damage means an older step or an error."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import JsonCheckpointHandler

from charjax.checkpoint import files as checkpoint_files
from charjax.checkpoint.checkpoints import Checkpoints, flatten
from charjax.checkpoint.store import _NumpyHandler
from charjax.errors import CheckpointError, DivergedError, HostError, InputError
from tests.environment import contents

from .rewriting import open_arrays, rewrite_record

STATE = {
    "params": {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}},
    "step": np.int32(5),
}
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def state_of(step: int) -> dict:
    return {"params": jax.tree.map(lambda x: x + step, STATE["params"]), "step": np.int32(step)}


def open_(directory: Path, *, keep: int = 100):
    return Checkpoints(directory, keep=keep)


@pytest.fixture
def log(caplog) -> pytest.LogCaptureFixture:
    """What is logged; nothing may be where a test does not ask for it."""
    return caplog


@pytest.fixture(autouse=True)
def _no_other_test_logs(request, caplog) -> Iterator[None]:
    yield
    if "log" not in request.fixturenames:
        assert not caplog.messages


def save_all(directory: Path, *steps: int) -> None:
    with open_(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"name": f"at {step}"}, val_loss=None)


def assert_same_bits(restored, saved) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        want = np.asarray(want)
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())


def test_round_trip_keeps_every_bit_of_every_dtype(tmp_path):
    state = {
        "float": np.array([0.0, -0.0, np.nan, np.inf, 1e-45, 1 / 3], np.float32),
        "bfloat16": jnp.array([1 / 3, -jnp.inf], jnp.bfloat16),
        "ints": (np.array([-(2**31)], np.int32), jnp.array([2**32 - 1], jnp.uint32)),
        "bool": np.array([True, False]),
        "scalar": jnp.int32(7),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    meta = {"vocabulary": ["\n", "é", "\u2028", "日"], "epoch": 0.5, "none": None}
    with open_(tmp_path) as checkpoints:
        checkpoints.save(3, state, meta, val_loss=1.25)
        restored = checkpoints.restore(state)
        assert checkpoints.verify() == [(3, "")]
    assert (restored.step, restored.val_loss, restored.meta) == (3, 1.25, meta)
    assert_same_bits(restored.state, state)


names = st.one_of(st.text(max_size=4), st.sampled_from(["a/b", ".", "..", "%2F", ".zarray", "d"]))
trees = st.recursive(
    st.just(np.ones(2, np.float32)),
    lambda child: st.dictionaries(names, child, max_size=3) | st.lists(child, max_size=3),
    max_leaves=6,
)


@given(trees)
@example({"a/b": np.ones(2), "a": {"b": np.ones(2), "%2F": [np.ones(2)]}})
def test_paths_are_distinct_whatever_the_names(tree):
    paths, structure = flatten(tree)
    assert len(paths) == structure.num_leaves


@settings(max_examples=10)
@given(trees)
def test_any_names_are_saved_and_restored(tmp_path_factory, tree):
    with open_(tmp_path_factory.mktemp("names")) as checkpoints:
        checkpoints.save(1, tree, {}, val_loss=None)
        assert_same_bits(checkpoints.restore(tree).state, tree)


def test_a_path_may_lead_through_the_folder_above(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with open_(Path("../run")) as checkpoints:
        checkpoints.save(1, STATE, {}, val_loss=None)
        assert_same_bits(checkpoints.restore(LIKE).state, STATE)


def test_optimizer_state_and_a_part_of_the_state(tmp_path):
    params = {"kernel": jnp.linspace(0, 1, 6).reshape(2, 3)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    updates, opt_state = tx.update(params, tx.init(params), params)
    state = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, val_loss=None)
        like = jax.eval_shape(lambda: state)
        assert_same_bits(checkpoints.restore(like).state, state)
        part = {"params": like["params"]}
        assert_same_bits(checkpoints.restore(part).state, {"params": state["params"]})


def test_a_state_on_eight_devices_is_restored_on_one(eight_devices, tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    array = np.arange(48, dtype=np.float32).reshape(16, 3)
    state = {
        "params": jax.device_put(array, NamedSharding(mesh, P())),
        "carry": jax.device_put(array, NamedSharding(mesh, P("data"))),
    }
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, val_loss=None)
        assert_same_bits(checkpoints.restore(state).state, {"params": array, "carry": array})


def test_newest_and_best_are_kept(tmp_path):
    losses = [3.0, 2.0, 2.5, None, 2.0, float("inf"), 2.9, None]
    kept = [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [5, 6], [5, 6, 7], [5, 7, 8]]
    with open_(tmp_path, keep=2) as checkpoints:
        for step, (loss, steps) in enumerate(zip(losses, kept, strict=True), start=1):
            checkpoints.save(step, state_of(step), {}, val_loss=loss)
            assert checkpoints.steps() == steps
        best, newest = checkpoints.read_meta(which="best"), checkpoints.read_meta()
        assert (best.step, best.val_loss, newest.step, newest.val_loss) == (5, 2.0, 8, None)
        assert_same_bits(checkpoints.restore(LIKE, which=7).state, state_of(7))


def test_a_step_below_the_newest_is_saved_and_kept(tmp_path):
    save_all(tmp_path, 5, 6)
    with open_(tmp_path, keep=1) as checkpoints:
        checkpoints.save(4, state_of(4), {}, val_loss=None)
        assert checkpoints.steps() == [4, 6]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "deleted": Path.unlink,
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    save_all(directory, 1, 2)
    return directory


@pytest.fixture
def copy(two_steps, tmp_path) -> Path:
    """The checkpoints 1 and 2, to damage."""
    return shutil.copytree(two_steps, tmp_path / "copy")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_logged_and_the_older_step_used(two_steps, tmp_path, damage, log):
    fell_back = 0
    for number, name in enumerate(contents(two_steps / "2")):
        copy = shutil.copytree(two_steps, tmp_path / str(number))
        DAMAGES[damage](copy / "2" / name)
        log.clear()
        with open_(copy) as checkpoints:
            restored = checkpoints.restore(LIKE)
        assert_same_bits(restored.state, state_of(restored.step))
        assert restored.meta == {"name": f"at {restored.step}"}
        assert len(log.messages) == 2 - restored.step
        assert all("trying step 1" in line and "\n" not in line for line in log.messages)
        fell_back += restored.step == 1
    assert fell_back >= 3  # the record, the arrays and their index; other files matter little


def test_a_flipped_bit_anywhere_in_an_array_is_found(tmp_path, log):
    zeros, noise = np.zeros((40, 40)), np.random.default_rng(0).random((40, 40))
    with open_(tmp_path) as checkpoints:
        for step, leaf in {1: zeros, 2: noise}.items():
            checkpoints.save(step, {"leaf": leaf}, {}, val_loss=None)
        file = max((tmp_path / "2").rglob("ocdbt*/d/*"), key=lambda file: file.stat().st_size)
        good, found = file.read_bytes(), 0
        assert len(good) > noise.nbytes // 2  # this file has the array
        for position in range(0, len(good), 151):
            flipped = good[position] ^ 1 << position % 8
            file.write_bytes(good[:position] + bytes([flipped]) + good[position + 1 :])
            restored = checkpoints.restore({"leaf": noise})
            assert_same_bits(restored.state, {"leaf": noise if restored.step == 2 else zeros})
            found += restored.step == 1
        assert found > 60  # of 80; the other bytes are unused


def test_every_flipped_byte_of_the_record_is_found(copy, log):
    file = copy / "2" / "meta" / "record.json"
    good = file.read_bytes()
    for position in range(0, len(good), 2):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with open_(copy) as checkpoints:
            assert checkpoints.read_meta().step == 1, position


def test_only_a_number_is_a_step(two_steps):
    with Checkpoints(str(two_steps)) as checkpoints:
        assert checkpoints.read_meta(which=np.int64(1)).step == 1
        assert checkpoints.read_meta(which=jnp.int32(1)).step == 1
        for which in ("1", "latest", None, 1.0):
            with pytest.raises(InputError, match=rf"^which={which!r}: must be best, newest or"):
                checkpoints.read_meta(which=which)


@pytest.mark.parametrize("number", [np.int64, jnp.int32])
def test_a_step_and_a_loss_may_be_of_numpy_or_jax(number, tmp_path):
    step, loss = number(3), jnp.float32(0.5)
    with open_(tmp_path) as checkpoints:
        checkpoints.save(step, STATE, {}, val_loss=loss)
        assert checkpoints.update(step, {"name": "new"}, val_loss=np.float32(0.25))
        record = checkpoints.restore(LIKE, which=step)
    assert (record.step, record.val_loss, record.meta) == (3, 0.25, {"name": "new"})


def test_numbers_and_arrays_of_another_byte_order_are_restored(tmp_path):
    state = {"rate": 0.5, "count": 3, "flag": True, "big": np.arange(3, dtype=">f4")}
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, val_loss=None)
        restored = checkpoints.restore(state).state
    values = {name: value.tolist() for name, value in restored.items()}
    assert values == {"rate": 0.5, "count": 3, "flag": True, "big": [0, 1, 2]}


@pytest.mark.parametrize(
    "make",
    [
        lambda: "text",
        lambda: np.array([None]),
        lambda: np.datetime64("2026-01-01"),
        lambda: jax.random.key(0),
    ],
)
def test_what_is_no_number_is_not_saved(make, tmp_path):
    message = r"^a%2Fb: an array of (str128|object|datetime64\[D\]|key<fry>) cannot be saved; "
    with open_(tmp_path / "new") as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.save(1, {"a/b": make()}, {}, val_loss=None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keep", [0, -1, 1.5, "2"])
def test_at_least_one_step_is_kept(keep, tmp_path):
    with pytest.raises(InputError, match=f"^keep={keep!r}: must be "):
        Checkpoints(tmp_path, keep=keep)


@pytest.mark.parametrize("step", [-1, 1.0, "1", None, np.array([1]), jnp.float32(1)])
def test_what_is_no_step_is_not_saved(step, tmp_path):
    with open_(tmp_path / "new") as checkpoints:
        for call in (partial(checkpoints.save, step, STATE), partial(checkpoints.update, step)):
            with pytest.raises(InputError, match=r"^step=.*: must be (an integer|from 0 to \d+)$"):
                call({}, val_loss=None)
    assert not (tmp_path / "new").exists()


def test_the_best_falls_back_on_the_next_best(tmp_path, log):
    with open_(tmp_path) as checkpoints:
        for step, loss in {1: 2.0, 2: 1.0, 3: 1.5, 4: None}.items():
            checkpoints.save(step, state_of(step), {}, val_loss=loss)
        flip(tmp_path / "2" / "meta" / "record.json")
        assert checkpoints.restore(LIKE, which="best").step == 3
    assert len(log.messages) == 1
    assert "trying step 3" in log.messages[0]


def test_other_folders_are_not_steps_and_only_unfinished_saves_are_deleted(tmp_path, log):
    save_all(tmp_path, 1)
    for name in ("900", "7.orbax-checkpoint-tmp", "notes", "01"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    with open_(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(LIKE).step == 1
        checkpoints.save(2, state_of(2), {}, val_loss=None)
        assert checkpoints.steps() == [1, 2]
        assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "900", "notes", "01", "8"}
        assert [line for line in log.messages if "900" not in line] == []
        checkpoints.save(900, state_of(900), {}, val_loss=None)  # replaces an empty folder
        assert checkpoints.restore(LIKE).step == 900
        (tmp_path / "1000").mkdir()
        (tmp_path / "1000" / "thesis.txt").write_text("not charjax's")
        (tmp_path / "9").symlink_to(tmp_path / "notes")
        for step in (1000, 8, 9):
            with pytest.raises(InputError, match=f"/{step}: not a checkpoint, where .* move it"):
                checkpoints.save(step, state_of(step), {}, val_loss=None)
        assert (tmp_path / "1000" / "thesis.txt").exists()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda p: p.symlink_to("/")])
@pytest.mark.parametrize("name", ["x", "2", "7.damaged-1"])
def test_what_has_the_name_of_an_unfinished_save_blocks_none(tmp_path, name, make):
    make(tmp_path / f"{name}.orbax-checkpoint-tmp")
    save_all(tmp_path, 1, 2)
    with open_(tmp_path) as checkpoints:
        assert checkpoints.verify() == [(1, ""), (2, "")]
    assert (tmp_path / f"{name}.orbax-checkpoint-tmp").exists() == (name != "2")


def set_metadata(leaf: str, changes: Mapping[str, object], checkpoint: Path) -> None:
    """Changes the metadata that the array store keeps of an array."""
    store = open_arrays(checkpoint)
    store[f"{leaf}/.zarray"] = json.dumps(json.loads(store[f"{leaf}/.zarray"]) | changes)


def replace_file(name: str, make: Callable[[Path], object], checkpoint: Path) -> None:
    """Makes something else of a file of a checkpoint."""
    (checkpoint / name).unlink()
    make(checkpoint / name)


RECORDS: dict[str, Callable[[dict], object]] = {
    "no step": lambda r: r.pop("step"),
    "another step": lambda r: r.update(step=3),
    "no leaves": lambda r: r.pop("leaves"),
    "another field": lambda r: r.update(more=1),
    "another format": lambda r: r.update(format=[2]),
    "text as step": lambda r: r.update(step="2"),
    "bool as step": lambda r: r.update(step=True),
    "text as loss": lambda r: r.update(val_loss="low"),
    "nan as loss": lambda r: r.update(val_loss=math.nan),
    "list as meta": lambda r: r.update(meta=[]),
    "list as leaves": lambda r: r.update(leaves=[]),
    "text as leaf": lambda r: r["leaves"].update(step="int32"),
    "leaf without dtype": lambda r: r["leaves"]["step"].pop("dtype"),
    "unknown dtype": lambda r: r["leaves"]["step"].update(dtype="int33"),
    "object as dtype": lambda r: r["leaves"]["step"].update(dtype="object"),
    "shape below 0": lambda r: r["leaves"]["step"].update(shape=[-1]),
    "text in shape": lambda r: r["leaves"]["step"].update(shape=["1"]),
    "number as digest": lambda r: r["leaves"]["step"].update(sha256=7),
}
CHUNKS = (
    ({"chunks": [2**30, 2**20]}, "in chunks of [1073741824, 1048576]"),
    ({"chunks": [4, 3]}, "in chunks of [4, 3]"),
    ({"dtype": "<f8"}, "is float64[2, 3], not float32[2, 3]"),
    ({"shape": [2, 3, 1]}, "cannot be read"),
    ({"shape": [2000, 3]}, "is float32[2000, 3], not float32[2, 3]"),
)
OTHER_JSON = (b"", b"[]", b"7", b"{}", b'{"sha256": 1}', b"[" * 10**5)
RECORD, METADATA, MANIFEST = "meta/record.json", "state/_METADATA", "state/manifest.ocdbt"
OTHER_FILES = [
    (name, make)
    for name in (RECORD, METADATA, MANIFEST)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"))
]
# (what is wrong with a step, a part of the message); some of it could fill the memory or wait.
WRONG: list[tuple[Callable[[Path], object], str]] = [
    *((partial(rewrite_record, change), "record") for change in RECORDS.values()),
    *((partial(set_metadata, "params/dense/kernel", changes), said) for changes, said in CHUNKS),
    *((lambda step, text=text: (step / RECORD).write_bytes(text), "") for text in OTHER_JSON),
    *((partial(replace_file, name, make), "") for name, make in OTHER_FILES),
    (lambda step: os.truncate(step / METADATA, 2**40), "_METADATA is larger than"),
    (lambda step: os.truncate(step / RECORD, 2**40), "larger than"),  # sparse: uses no disk space
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong_with_a_step_is_one_warning_and_the_older_step_used(
    copy, spoil, message, log
):
    spoil(copy / "2")
    with open_(copy) as checkpoints:
        assert checkpoints.restore(LIKE).step == 1
        (good, damage), (_, problem) = checkpoints.verify()
    assert (good, damage) == (1, "")
    assert "\n" not in problem
    assert [f"{copy / '2'}: damaged checkpoint ({problem}); trying step 1"] == log.messages
    assert message in problem


def test_arrays_of_an_enormous_shape_are_damaged(copy):
    enormous = {"shape": [2**50, 2**50]}
    rewrite_record(lambda r: r["leaves"]["step"].update(enormous), copy / "2")
    with open_(copy) as checkpoints:
        (_, damage), (_, problem) = checkpoints.verify()
    assert (damage, problem[:8]) == ("", "arrays: ")


def test_a_reader_beside_a_run_that_deletes_steps_sees_no_damage(tmp_path):
    save_all(tmp_path, 1)
    stop = threading.Event()

    def write() -> None:
        with open_(tmp_path, keep=1) as checkpoints:
            for step in itertools.count(2):
                if stop.is_set():
                    break
                loss = None if step % 3 else 1 / step
                checkpoints.save(step, state_of(step), {}, val_loss=loss)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with open_(tmp_path) as checkpoints:
            for _ in range(30):
                newest, best = (checkpoints.restore(LIKE, which=w) for w in ("newest", "best"))
                assert_same_bits(newest.state, state_of(newest.step))
                assert_same_bits(best.state, state_of(best.step))
                verdicts = checkpoints.verify()
                assert verdicts
                assert not any(problem for _, problem in verdicts)
    finally:
        stop.set()
        writer.join()


def test_an_error_if_all_are_damaged_and_none_is_deleted(copy, log):
    flip(copy / "1" / "meta" / "record.json")
    shutil.rmtree(copy / "2" / "state")
    with open_(copy) as checkpoints:
        with pytest.raises(CheckpointError, match=r"no checkpoint that verifies \(tried 2, 1\)"):
            checkpoints.restore(LIKE)
        assert checkpoints.steps() == [1, 2]
        assert [bool(problem) for _, problem in checkpoints.verify()] == [True, True]
    assert len(log.messages) == 2


def test_a_damaged_step_is_neither_counted_nor_deleted_until_it_is_saved_again(copy, log):
    shutil.rmtree(copy / "2" / "state")
    with open_(copy, keep=2) as checkpoints:
        assert checkpoints.restore(LIKE).step == 1
        checkpoints.save(3, state_of(3), {}, val_loss=None)
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(2, state_of(2), {}, val_loss=None)
        assert checkpoints.verify() == [(2, ""), (3, "")]
    assert "saving it again" in log.messages[-1]


def test_saving_a_good_step_again_changes_nothing(tmp_path):
    save_all(tmp_path, 1)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    save_all(tmp_path, 1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_no_checkpoint_and_no_such_step(tmp_path):
    with open_(tmp_path / "never") as checkpoints:
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoints.restore(LIKE)
    save_all(tmp_path, 1)
    with open_(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="no such step"):
        checkpoints.read_meta(which=2)


def test_a_checkpoint_or_their_folder_in_place_of_a_run_is_said_to_be_one(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_all(run / "checkpoints", 40)
    remedy = rf"name the folder of .* run, {re.escape(str(run))}"
    for named, ending in (("checkpoints/40", ", where .* --checkpoint=40"), ("checkpoints", "")):
        with open_(run / named / "checkpoints") as checkpoints:
            for read in (checkpoints.read_meta, checkpoints.verify):
                with pytest.raises(CheckpointError, match=f"{named}: .* {remedy}{ending}$"):
                    read()


@pytest.mark.parametrize("below", [(), ("checkpoints",), ("a", "b")])
def test_a_file_in_place_of_the_folder_or_of_one_above_it_is_said_to_be_one(tmp_path, below):
    file = tmp_path / "text.txt"
    file.touch()
    with open_(file.joinpath(*below)) as checkpoints:
        for read in (checkpoints.read_meta, checkpoints.verify):
            with pytest.raises(CheckpointError, match=rf"^{re.escape(str(file))}: not a folder;"):
                read()


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        (jax.ShapeDtypeStruct((2, 4), np.float32), r"float32\[2, 3\].*float32\[2, 4\]"),
        (jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), r"float32\[2, 3\].*bfloat16\[2, 3\]"),
    ],
)
def test_another_shape_or_dtype_is_named_and_no_older_step_tried(two_steps, kernel, names):
    with open_(two_steps) as checkpoints:
        with pytest.raises(CheckpointError, match=f"params/dense/kernel is {names}"):
            checkpoints.restore({"params": {"dense": {"kernel": kernel}}})
        with pytest.raises(CheckpointError, match="ema/x is not there"):
            checkpoints.restore({"ema": {"x": kernel}})


@pytest.mark.parametrize("name", ["params", "ema"])
def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path, name):
    bad = {name: {"k": jnp.array([1, jnp.nan], jnp.bfloat16)}, "opt_state": np.ones(1)}
    with open_(tmp_path) as checkpoints:
        with pytest.raises(DivergedError, match=f"^{name}/k at step 1 is not finite"):
            checkpoints.save(1, bad, {}, val_loss=None)
        assert checkpoints.steps() == []


@pytest.mark.parametrize(
    "error",
    [
        NO_SPACE,
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']"),
    ],
)
def test_a_disk_error_leaves_the_older_steps_and_no_unfinished_files(tmp_path, monkeypatch, error):
    save_all(tmp_path, 1)
    with open_(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            fails = Mock(side_effect=error)
            patch.setattr(checkpoints._store._orbax, "_save_step_metadata", fails)
            with pytest.raises(HostError, match=r"28 bytes needed, \d+ free"):
                checkpoints.save(2, state_of(2), {}, val_loss=None)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpoints.save(2, state_of(2), {}, val_loss=None)
        assert checkpoints.verify() == [(1, ""), (2, "")]


def test_a_record_that_cannot_be_written_waits_for_the_arrays(tmp_path, monkeypatch):
    """Else they are written beside the deletion of the files, and their errors are printed."""
    background, written = _NumpyHandler._background_serialize, []

    async def slowly(*args):
        await asyncio.sleep(0.2)
        await background(*args)
        written.append(args)

    monkeypatch.setattr(_NumpyHandler, "_background_serialize", slowly)
    with open_(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(JsonCheckpointHandler, "_save_fn", AsyncMock(side_effect=NO_SPACE))
            with pytest.raises(HostError, match="No space left"):
                checkpoints.save(1, STATE, {}, val_loss=None)
            assert written
        assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_made_is_a_host_error(tmp_path):
    (tmp_path / "file").write_text("")
    with open_(tmp_path / "file" / "checkpoints") as checkpoints, pytest.raises(HostError):
        checkpoints.save(1, STATE, {}, val_loss=None)


def test_nothing_is_saved_where_the_folder_of_the_run_is_gone(tmp_path):
    """As it was moved while the run trained: it must not go on in two places."""
    checkpoints = open_(tmp_path / "run" / "checkpoints")
    with checkpoints, pytest.raises(HostError, match="No such file"):
        checkpoints.save(1, STATE, {}, val_loss=None)
    assert not list(tmp_path.iterdir())


def test_the_record_is_json_that_names_every_leaf(two_steps):
    record = json.loads((two_steps / "1" / "meta" / "record.json").read_text())
    assert set(record["leaves"]) == {"params/dense/kernel", "step"}
    assert record["format"] == 1
    with open_(two_steps) as checkpoints:
        assert checkpoints.read_meta(which=1).leaves["step"].dtype == "int32"
    assert checkpoint_files.is_checkpoint(two_steps / "1")


def test_damage_of_many_arrays_is_one_warning(tmp_path, capfd, log):
    state = {f"leaf{i}": np.random.default_rng(i).random((50, 50)) for i in range(30)}
    with open_(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, val_loss=None)
        checkpoints.save(2, state, {}, val_loss=None)
        for file in (tmp_path / "2" / "state").rglob("ocdbt*/d/*"):
            os.truncate(file, file.stat().st_size // 2)
        assert checkpoints.restore(state).step == 1
    assert len(log.messages) == 1
    assert capfd.readouterr() == ("", "")


def test_an_update_replaces_what_was_saved_with_the_arrays(tmp_path):
    """The loss of an evaluation that was done after the save."""
    with open_(tmp_path, keep=1) as checkpoints:
        checkpoints.save(10, state_of(10), {"name": "before"}, val_loss=2.0)
        checkpoints.save(20, state_of(20), {"name": "before"}, val_loss=None)
        assert checkpoints.steps() == [10, 20]
        assert checkpoints.update(20, {"name": "after"}, val_loss=1.0)
        assert checkpoints.steps() == [20]  # the best, too
        assert checkpoints.verify() == [(20, "")]
        restored = checkpoints.restore(LIKE, which="best")
    assert (restored.val_loss, restored.meta) == (1.0, {"name": "after"})
    assert_same_bits(restored.state, state_of(20))
    assert [path.name for path in tmp_path.iterdir()] == ["20"]


def test_an_update_of_a_damaged_record_is_refused_and_a_failed_one_changes_nothing(
    tmp_path, monkeypatch, log
):
    save_all(tmp_path, 10)
    with open_(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", Mock(side_effect=NO_SPACE))
            with pytest.raises(HostError, match="No space left"):
                checkpoints.update(10, {}, val_loss=1.0)
        assert checkpoints.read_meta().meta == {"name": "at 10"}
        assert [path.name for path in tmp_path.iterdir()] == ["10"]
        (tmp_path / "10" / "meta" / "record.json").write_bytes(b"{}")
        assert not checkpoints.update(10, {}, val_loss=1.0)


def test_a_step_that_alone_is_left_and_was_found_damaged_can_be_updated(copy, log):
    """Its record is read, and its arrays are not."""
    shutil.rmtree(copy / "1")
    shutil.rmtree(copy / "2" / "state")
    with open_(copy, keep=1) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
            checkpoints.restore(LIKE)
        assert checkpoints.update(2, {"name": "after"}, val_loss=1.0)
        assert checkpoints.read_meta().meta == {"name": "after"}
        assert checkpoints.steps() == [2]


def test_what_could_not_be_read_again_is_not_saved(tmp_path, monkeypatch):
    save_all(tmp_path, 10)
    with open_(tmp_path) as checkpoints:
        with pytest.raises(HostError, match=r"cannot be saved: its record .* values"):
            checkpoints.save(20, state_of(20), {"losses": [0] * 2_000_001}, val_loss=None)
        with pytest.raises(HostError, match=r"cannot be saved: its record .* values"):
            checkpoints.update(10, {"losses": [0] * 2_000_001}, val_loss=None)
        assert checkpoints.verify() == [(10, "")]
        monkeypatch.setattr(checkpoint_files, "_MAX_RECORD_BYTES", 1000)
        with pytest.raises(HostError, match=r"cannot be saved: its record .* 1000 bytes"):
            checkpoints.save(20, state_of(20), {"name": "x" * 1000}, val_loss=None)
        assert checkpoints.steps() == [10]


@pytest.mark.parametrize("other", [{"sha256": "b"}, {"val_record": 1}])
def test_the_best_is_that_on_the_text_of_the_newest_step(tmp_path, other):

    def meta(sha256: str = "a", val_record: int = 0) -> dict:
        return {"corpus": {"sha256": sha256}, "progress": {"val_record": val_record}}

    with open_(tmp_path, keep=2) as checkpoints:
        checkpoints.save(10, state_of(10), {"corpus": {"sha256": "a"}}, val_loss=1.0)
        checkpoints.save(20, state_of(20), meta(), val_loss=1.5)
        assert checkpoints.read_meta(which="best").step == 10
        checkpoints.save(30, state_of(30), meta(**other), val_loss=None)
        assert checkpoints.steps() == [20, 30]
        assert checkpoints.read_meta(which="best").step == 30  # the newest, as none is evaluated
        for step, val_loss in ((40, 3.0), (50, 4.0), (60, None)):
            checkpoints.save(step, state_of(step), meta(**other), val_loss=val_loss)
        assert checkpoints.steps() == [40, 50, 60]
        assert checkpoints.read_meta(which="best").step == 40


def test_threads_save_at_the_same_time(tmp_path):
    """As those of a sweep, of which each has a folder."""
    folders, steps = [tmp_path / name for name in "abcd"], range(1, 4)
    with ThreadPoolExecutor(len(folders)) as threads:
        list(threads.map(lambda folder: save_all(folder, *steps), folders))
    for folder in folders:
        with open_(folder) as checkpoints:
            assert checkpoints.verify() == [(step, "") for step in steps]
