"""Every test runs on eight CPU devices, with JAX at its strictest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# A shell's background jobs ignore SIGINT, and charjax leaves an ignored signal ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax is imported. On a machine with few cores, eight devices deadlock in XLA's thread pool
# unless it believes in more cores.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import settings

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
    """Sorts the tests by package, from the bottom layer up."""
    tests = Path(__file__).parent
    ranks = {name: rank for rank, name in enumerate(_ORDER)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(tests).parts[0], len(ranks)))
