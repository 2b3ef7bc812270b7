"""Every test runs on eight CPU devices, with JAX at its strictest and one compilation cache."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.environment import FAST_COMPILES

# Background jobs of a shell ignore SIGINT and nohup ignores SIGHUP, the commands that tests start
# inherit that, and charjax leaves an ignored signal ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before jax is imported. On a machine with few cores, eight devices deadlock in XLA's thread pool
# unless it believes in more cores.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FAST_COMPILES}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# One compilation cache for the session: its workers and the commands that tests start inherit the
# environment, and compile the same program once.
if "CHARJAX_TEST_CACHE" not in os.environ:
    os.environ["CHARJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="charjax-test-cache-")
    atexit.register(shutil.rmtree, os.environ["CHARJAX_TEST_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["CHARJAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# The tests are about values: compiling quickly matters more than running quickly.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest
from hypothesis import settings
from jax._src.compiler import get_compile_options

jax.config.update("jax_numpy_rank_promotion", "raise")
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


@pytest.fixture(scope="session", autouse=True)
def _curves_are_not_drawn() -> Iterator[None]:
    """Runs in this process write an empty picture: to draw it takes a third of a tiny run."""
    from charjax.workdir import replace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charjax.train.loop.draw_curves", lambda _, path: replace(path, b""))
        yield


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles as for users, for tests of equal bits between different programs."""

    def options_for_users(*args, env_options_overrides, **kwargs):
        generator = {"xla_cpu_use_fusion_emitters": True} if FAST_COMPILES else {}
        options = {**(env_options_overrides or {}), **generator}
        return get_compile_options(*args, env_options_overrides=options, **kwargs)

    monkeypatch.setattr("jax._src.compiler.get_compile_options", options_for_users)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
