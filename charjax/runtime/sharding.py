"""A 1-D mesh over all devices; the batch is sharded along its one axis, `data`."""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.errors import HostError
from charjax.types import PyTree

DATA_AXIS = "data"


def all_devices() -> list[jax.Device]:
    """The devices of all processes, in the same order on each, sorted by process.

    Raises:
      HostError: JAX finds no device for the platform that `JAX_PLATFORMS` names.
    """
    try:
        devices = jax.devices()
    except (AssertionError, RuntimeError) as error:  # AssertionError: no plugin is installed
        reason = str(error).partition("\n")[0] or "its plugin is not installed"
        raise HostError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX found no such device "
            f"({reason}); try JAX_PLATFORMS=cpu, or unset it"
        ) from error
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def host_device() -> jax.Device | None:
    """This process's CPU as a device of JAX; None where `JAX_PLATFORMS` leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """The 1-D mesh of these devices, or of all, its axis named `DATA_AXIS`."""
    # With explicit axes, the default of jax.make_mesh, the embedding's lookup fails.
    return Mesh(np.array(devices or all_devices()), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, axis: int) -> NamedSharding:
    """One array axis split evenly over the mesh; other axes are not split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


def process_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process's devices hold."""
    devices = all_devices()
    local = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    rows_per_device = batch_size // len(devices)
    return slice(local[0] * rows_per_device, (local[-1] + 1) * rows_per_device)


def shard(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Global arrays from host arrays that every process has in full."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at]), tree
    )


def shard_local(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Global arrays from host arrays of which each process has its `process_rows`."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def local_copy(tree: PyTree) -> PyTree:
    """Replicated arrays as arrays of one device of this process; numpy arrays unchanged."""
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree
    )
