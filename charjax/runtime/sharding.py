"""All devices of a run as one row of lanes, and arrays on them, in one process or in several."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.types import PyTree

LANES = "lanes"


def all_devices() -> list[jax.Device]:
    """The devices of all processes, those of one process side by side, in one order for all."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def data_mesh(devices: list[jax.Device]) -> Mesh:
    """These devices along the axis `LANES`."""
    # Explicit axes, the default of make_mesh, break the embedding's look-up.
    return Mesh(np.array(devices), (LANES,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, axis: int) -> NamedSharding:
    """That axis cut into one part a device, in the order of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, LANES))


def process_rows(batch_size: int) -> slice:
    """The rows of a global batch that belong to the devices of this process."""
    devices = all_devices()
    own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    share = batch_size // len(devices)
    return slice(own[0] * share, (own[-1] + 1) * share)


def shard(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, whole and equal on every process, on the devices."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at]), tree
    )


def shard_local(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, of which every process has the part of its own devices, on the devices."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def local_copy(tree: PyTree) -> PyTree:
    """Replicated arrays on one device of this process; what lies on the host stays there."""
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree
    )


def loop_compiler_options() -> dict[str, bool] | None:
    """Compiler options for programs whose time goes into loops over characters."""
    # On a CPU such a loop would otherwise copy its carry at every character.
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_cpu_copy_insertion_use_region_analysis": True} if on_cpu else None
