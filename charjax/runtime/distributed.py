"""The processes of a run: how they join, agree, wait for each other, and end together.

JAX's coordination service watches every process and, once one has died, aborts the
others with a long message. `join_processes` gives that abort the exit code and the one line of
any other error of the machine, and keeps the native libraries' own words in a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from charjax.errors import CharjaxError, HostError, InputError
from charjax.runtime.sharding import all_devices, batch_sharding, data_mesh, replicated, shard_local

_JOIN_S = 120  # the longest wait for all processes to be there
_DEATH_S = 30  # without a sign of life, after which a process counts as dead
_LEAVE_S = 10  # the longest wait for the others at the end


@dataclass(frozen=True)
class Place:
    """A process's place in a run of several, where JAX does not find it out by itself.

    Attributes:
      coordinator: HOST:PORT of process 0, the same on all.
      process_id: from 0.
      num_processes: how many there are.
    """

    coordinator: str
    process_id: int
    num_processes: int


def is_multiprocess() -> bool:
    """Whether this run has more processes than this one."""
    return bool(jax.process_count() > 1)


def is_primary() -> bool:
    """Whether this process writes for all."""
    return bool(jax.process_index() == 0)


@contextlib.contextmanager
def join_processes(place: Place | None, *, native_log: Path) -> Iterator[None]:
    """A context in which this process is one of its run's.

    Call it before anything else that makes JAX look for devices.

    Args:
      place: None: the place that JAX finds (SLURM, Open MPI, Kubernetes, TPU pods); where
        it finds none, the run has one process and this context does nothing.
      native_log: a file for what native libraries write to the standard streams; `{}` in
        its name becomes the number of the process. Unused with one process.

    Raises:
      HostError: the processes did not find each other, or one of them has died.
    """
    if not _join(place):
        yield
        return
    log = native_log.with_name(native_log.name.replace("{}", str(jax.process_index())))
    log.parent.mkdir(parents=True, exist_ok=True)
    end = _End(log)
    try:
        _connect()
        yield
    except CharjaxError as error:
        end.is_for(error)
        raise
    except jax.errors.JaxRuntimeError as error:
        # A collective broke off, most likely since a peer is gone. The service will know,
        # and then ends this process; if not, the error is of another kind.
        time.sleep(_DEATH_S + _LEAVE_S)
        end.is_for(HostError(f"{error}"))
        raise
    finally:
        _leave()


def all_max(values: Sequence[int]) -> list[int]:
    """The largest of each number over all processes. A collective: all must call it."""
    if not is_multiprocess():
        return list(values)
    largest: list[int] = multihost_utils.process_allgather(np.asarray(values)).max(0).tolist()
    return largest


def require_same(what: str, value: str) -> None:
    """Refuses to go on with processes that differ. A collective.

    Raises:
      InputError: this process's value is not that of the first one.
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
    """Process 0 goes through first and the others after it. A collective."""
    if is_multiprocess() and not is_primary():
        multihost_utils.sync_global_devices("charjax: after the first")
    yield
    if is_multiprocess() and is_primary():
        multihost_utils.sync_global_devices("charjax: after the first")


class Exchange:
    """Numbers that the processes tell each other at every dispatch, without waiting.

    What is said at one call is known to all at the next. By then it has long arrived, so
    that a call costs little and the devices' queue never runs dry for it.
    """

    def __init__(self, size: int) -> None:
        mesh = data_mesh(all_devices())
        self._lanes = batch_sharding(mesh, axis=0)
        self._largest = jax.jit(lambda said: jnp.max(said, axis=0), out_shardings=replicated(mesh))
        self._said = self._largest(self._shown([0] * size))

    def __call__(self, values: Sequence[int]) -> list[int]:
        """Says these; returns the largest of what all processes said at the call before."""
        known: list[int] = np.asarray(self._said).tolist()
        self._said = self._largest(self._shown(values))
        return known

    def _shown(self, values: Sequence[int]) -> jax.Array:
        shown: jax.Array = shard_local(
            np.tile(np.asarray(values, np.int32), (jax.local_device_count(), 1)), self._lanes
        )
        return shown


class _End:
    """How this process ends if native code aborts it: in one line, with an exit code."""

    def __init__(self, log: Path) -> None:
        self._exit_code = HostError.exit_code
        self._line = (
            f"charjax: process {jax.process_index()} of {jax.process_count()}: another process "
            f"of this run has ended (details in {log}); start all of them again to go on from "
            "the newest checkpoint\n"
        )
        self._stderr = _set_native_streams_apart(log)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._now)  # must outlive the call
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def is_for(self, error: CharjaxError) -> None:
        """From here on an abort only hastens the end that this error brings."""
        self._line, self._exit_code = f"charjax: {error}\n", error.exit_code

    def _now(self, number: int) -> None:
        os.write(self._stderr, self._line.encode())
        os._exit(self._exit_code)


def _join(place: Place | None) -> bool:
    """Whether there is more than one process; connects them if so."""
    if place is not None and place.num_processes == 1:
        return False
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator if place else None,
            num_processes=place.num_processes if place else None,
            process_id=place.process_id if place else None,
            cluster_detection_method="deactivate" if place else None,
            initialization_timeout=_JOIN_S,
            heartbeat_timeout_seconds=_DEATH_S,
            shutdown_timeout_seconds=_LEAVE_S,
        )
    except ValueError:
        if place is not None:
            raise
        return False  # no cluster that JAX knows
    except RuntimeError as error:
        if "must be called before" in str(error) and place is None:
            return False  # JAX is in use already, as in a notebook
        where = place.coordinator if place else "the cluster that JAX found"
        raise HostError(
            f"--coordinator={where}: the processes did not find each other within {_JOIN_S} s "
            f"({str(error).splitlines()[0]}); start all of them, and check address and firewall; "
            "or give --num_processes=1"
        ) from error
    return is_multiprocess()


def _connect() -> None:
    """Opens the devices' connections, while all processes are here: some give up after 30 s."""
    all_max([0])
    Exchange(1)([0])


def _leave() -> None:
    """Leaves together with the others; if they do not come, the service aborts, see `_End`."""
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _set_native_streams_apart(log: Path) -> int:
    """Python keeps the standard streams, native code gets a file; returns the new stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(stdout, "w", encoding=sys.stdout.encoding, buffering=1)
    sys.stderr = os.fdopen(stderr, "w", encoding=sys.stderr.encoding, buffering=1)
    return stderr
