"""Tests run on one CPU device, or on eight of them, with JAX at its strictest and one cache.

A process has eight devices from its start or never. So each has them, and charjax sees one of
them unless a test asks for `eight_devices`: programs for eight take a quarter more of the time.
"""

from __future__ import annotations

import atexit
import functools
import gc
import io
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.environment import FAST_COMPILES, with_devices

# Background jobs of a shell ignore SIGINT and nohup ignores SIGHUP, the commands that tests start
# inherit that, and charjax leaves an ignored signal ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What is imported and collected stays until the end: to look for garbage among it takes a sixth of
# the CPU of imports and collection, and again as the process ends.
if gc.isenabled():
    gc.disable()
    atexit.register(gc.freeze)

# Before jax is imported. On a machine with few cores, eight devices deadlock in XLA's thread pool
# unless it believes in more cores.
os.environ.setdefault("NPROC", "16")
os.environ["XLA_FLAGS"] = with_devices(8)["XLA_FLAGS"]  # workers inherit those of commands, below
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# One compilation cache for the session: its workers and the commands that tests start inherit the
# environment, and compile the same program once.
if "CHARJAX_TEST_CACHE" not in os.environ:
    os.environ["CHARJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="charjax-test-cache-")
    atexit.register(shutil.rmtree, os.environ["CHARJAX_TEST_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["CHARJAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Processes share bytecode, too, also where the environment of a container turns it off.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
# The tests are about values: compiling quickly matters more than running quickly.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jaxtyping
import pytest
from hypothesis import settings
from jax._src.compiler import get_compile_options
from jax._src.interpreters import mlir as lowering
from jaxtyping import _decorator as checks

jax.config.update("jax_numpy_rank_promotion", "raise")
# To make a context with all dialects is a quarter of what it takes to compile one operation.
lowering.make_ir_context = functools.cache(lowering.make_ir_context)


def _cached(function: Callable) -> Callable:
    """The function, whose result for arguments that can be hashed is computed once."""
    remembered = functools.cache(function)

    def call(*args, **kwargs):
        try:
            return remembered(*args, **kwargs)
        except TypeError:  # an argument cannot be hashed
            return function(*args, **kwargs)

    return call


# jaxtyping makes the checks of a function within a function anew each time that the outer one runs.
for _name in ("_make_fn_with_signature", "_apply_typechecker"):
    setattr(checks, _name, _cached(getattr(checks, _name)))
_DEVICES = jax.devices()
os.environ["XLA_FLAGS"] = with_devices(1)["XLA_FLAGS"]  # of the commands that tests start
settings.register_profile("charjax", deadline=None, max_examples=50)
settings.load_profile("charjax")

# A broken vocabulary is to fail before the training runs that it breaks.
_ORDER = (
    "test_layers.py",
    "test_config.py",
    "runtime",
    "data",
    "model",
    "checkpoint",
    "inference",
    "export",
    "train",
    "cli",
)


def pytest_collection_modifyitems(items: list) -> None:
    """Sorts the tests by package, from the bottom layer up; those of other folders come last."""
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(_ORDER)}

    def rank(item) -> int:
        return next((ranks[p] for p in (item.path, *item.path.parents) if p in ranks), len(ranks))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Looks for garbage from now on, and only in what the tests make."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()


def _show_devices(count: int) -> None:
    """Makes charjax see the first devices alone."""
    for name in ("devices", "local_devices"):
        setattr(jax, name, lambda *_, **__: _DEVICES[:count])
    for name in ("device_count", "local_device_count"):
        setattr(jax, name, lambda *_, **__: count)


_show_devices(1)


@pytest.fixture(scope="module")
def eight_devices() -> Iterator[None]:
    """Shows charjax eight devices, in the rest of a module."""
    assert len(_DEVICES) == 8
    _show_devices(8)
    yield
    _show_devices(1)


@pytest.fixture(scope="session", autouse=True)
def _curves_are_not_drawn() -> Iterator[None]:
    """Runs in this process write an empty picture: to draw it takes a third of a tiny run."""
    from charjax.runtime.files import replace_content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charjax.train.loop.draw_curves", lambda _, path: replace_content(path, b""))
        yield


@pytest.fixture(scope="session", autouse=True)
def _progress_is_not_printed() -> Iterator[None]:
    """Commands in this process print no line of progress, which only slow machines would see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charjax.runtime.display._PLAIN_INTERVAL_S", math.inf)
        yield


@pytest.fixture
def time_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the monotonic time, which is 0 from now on."""

    def set_time(seconds: float) -> None:
        monkeypatch.setattr("time.monotonic", lambda: seconds)

    set_time(0.0)
    return set_time


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A stream that is a terminal of 100 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    return stream


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Does not check the annotations of charjax, as for users, who may give another type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles just as for users: with the newer code generator and with all optimizations."""

    def with_fusion_emitters(*args, env_options_overrides, **kwargs):
        generator = {"xla_cpu_use_fusion_emitters": True} if FAST_COMPILES else {}
        options = {**(env_options_overrides or {}), **generator}
        return get_compile_options(*args, env_options_overrides=options, **kwargs)

    monkeypatch.setattr("jax._src.compiler.get_compile_options", with_fusion_emitters)
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
