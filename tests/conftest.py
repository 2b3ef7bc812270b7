"""Strict runtime for every test, on eight host devices that do not deadlock."""

from __future__ import annotations

import os
import signal

# Whoever starts the tests in the background has interrupts ignored, and charjax keeps them so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax is imported: eight host devices on few cores deadlock in the CPU
# runtime's thread pool unless it is told of more cores.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("charjax", deadline=None, max_examples=50)
settings.load_profile("charjax")

# The tests run in the order of the rooms: a broken vocabulary is reported
# before the training runs that it breaks.
_ROOMS = ("layers", "config", "data", "model", "checkpoint", "inference", "export", "train", "cli")


def pytest_collection_modifyitems(items: list) -> None:
    def room(item) -> int:
        path = str(item.path)
        return next((i for i, name in enumerate(_ROOMS) if name in path), len(_ROOMS))

    items.sort(key=room)
