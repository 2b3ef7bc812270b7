"""Several processes that train one model: how they start, agree, wait for each other, and end."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from charjax.errors import CharjaxError, HostError, InputError, first_line
from charjax.runtime.native_abort import AbortHandler
from charjax.runtime.sharding import all_devices, batch_sharding, data_mesh, replicated, shard_local

_INITIALIZATION_TIMEOUT_S = 120
_HEARTBEAT_TIMEOUT_S = 30  # a process that is silent for longer counts as dead
_SHUTDOWN_TIMEOUT_S = 10


@dataclass(frozen=True)
class ProcessSpec:
    """This process's place among several: arguments of `jax.distributed.initialize`.

    Attributes:
      coordinator: HOST:PORT of process 0, the same on all.
      process_id: from 0.
      num_processes: how many there are.
    """

    coordinator: str
    process_id: int
    num_processes: int


def is_multiprocess() -> bool:
    """Whether several processes run this program."""
    return bool(jax.process_count() > 1)


def is_primary() -> bool:
    """Whether this is process 0, which alone writes files and messages."""
    return bool(jax.process_index() == 0)


@contextlib.contextmanager
def join_processes(spec: ProcessSpec | None, *, native_log: Path) -> Iterator[None]:
    """A context in which this process works with the others; enter it before JAX is used.

    JAX aborts this process when another one dies. In this context, an abort prints one line and
    ends the process with exit code 4.

    Args:
      spec: this process and the others. None: what JAX detects (SLURM, Open MPI, Kubernetes, TPU
        pods); if nothing, there is one process, and the context only checks for a device.
      native_log: the file for what native libraries write to the standard streams; `{}` in
        its name becomes the process's number. Unused with one process.

    Raises:
      HostError: the processes do not find each other, one of them died, or JAX has no device.
    """
    initialized = _initialize(spec)
    all_devices()
    if not (initialized and is_multiprocess()):
        yield
        return
    log = native_log.with_name(native_log.name.replace("{}", str(jax.process_index())))
    abort = AbortHandler(
        f"process {jax.process_index()} of {jax.process_count()}: another process of this run "
        f"has ended (details in {log}); start all of them again to resume from the newest "
        "checkpoint",
        HostError.exit_code,
        native_log=log,
    )
    try:
        # Opens the connections between devices; if opened later, some time out after 30 s.
        all_max([0])
        Exchange(1)([0])
        yield
        all_max([0])  # waits for the slowest process; the shutdown below would not wait for long
    except CharjaxError as error:
        # The others may find this process gone before it has printed its error.
        abort.message, abort.exit_code = str(error), error.exit_code
        raise
    except jax.errors.JaxRuntimeError as error:
        # A collective failed, most likely because another process died. Then JAX aborts this
        # process during the sleep; if it does not, the error has another cause.
        time.sleep(_HEARTBEAT_TIMEOUT_S + _SHUTDOWN_TIMEOUT_S)
        abort.message = str(error)
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()  # waits for the others, or aborts: see AbortHandler


def all_max(values: Sequence[int]) -> list[int]:
    """The elementwise maximum over all processes. A collective: every process must call it."""
    if not is_multiprocess():
        return list(values)
    largest: list[int] = multihost_utils.process_allgather(np.asarray(values)).max(0).tolist()
    return largest


def require_same(what: str, value: str) -> None:
    """Checks that this process has the same value as process 0. A collective.

    Raises:
      InputError: the values differ.
    """
    if not is_multiprocess():
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(digest), digest):
        raise InputError(
            f"process {jax.process_index()}: {what} differs from that of process 0; start all "
            "processes with the same version, config and files"
        )


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """A context whose body process 0 runs first, then all others. A collective."""
    if is_multiprocess() and not is_primary():
        multihost_utils.sync_global_devices("charjax: primary_first")
    yield
    if is_multiprocess() and is_primary():
        multihost_utils.sync_global_devices("charjax: primary_first")


class Exchange:
    """The maximum of integers over all processes, returned one call late.

    Each call starts a collective and returns the result of the one before, which has arrived by
    then. So no process waits, and the devices' queues never run empty.
    """

    def __init__(self, size: int) -> None:
        """Starts with zeros.

        Args:
          size: how many integers each call exchanges.
        """
        mesh = data_mesh()
        self._sharding = batch_sharding(mesh, axis=0)
        self._max = jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=replicated(mesh))
        self._pending = self._max(self._rows([0] * size))

    def __call__(self, values: Sequence[int]) -> list[int]:
        """Sends this process's values; returns the maximum of those of the call before."""
        previous: list[int] = np.asarray(self._pending).tolist()
        self._pending = self._max(self._rows(values))
        return previous

    def _rows(self, values: Sequence[int]) -> jax.Array:
        """The values int32 [devices, size], one row per device."""
        local = np.tile(np.asarray(values, np.int32), (jax.local_device_count(), 1))
        rows: jax.Array = shard_local(local, self._sharding)
        return rows


def _initialize(spec: ProcessSpec | None) -> bool:
    """Runs `jax.distributed.initialize`; False: there is only this process.

    Raises:
      HostError: the processes do not find each other.
    """
    if spec is not None and spec.num_processes == 1:
        return False
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM itself
    try:
        jax.distributed.initialize(
            coordinator_address=spec.coordinator if spec else None,
            num_processes=spec.num_processes if spec else None,
            process_id=spec.process_id if spec else None,
            cluster_detection_method="deactivate" if spec else None,
            initialization_timeout=_INITIALIZATION_TIMEOUT_S,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        )
    except ValueError:
        if spec is not None:
            raise
        return False  # JAX detects no cluster
    except RuntimeError as error:
        if "must be called before" in str(error) and spec is None:
            return False  # JAX is in use already, as in a notebook
        where = spec.coordinator if spec else "the cluster that JAX detected"
        raise HostError(
            f"--coordinator={where}: the processes did not find each other within "
            f"{_INITIALIZATION_TIMEOUT_S} s ({first_line(error)}); start all of them, "
            "and check address and firewall; or give --num_processes=1"
        ) from error
    return True
