"""Memory and time of a training step: rematerialised over time, or its kernels sharded.

python -m benchmarks.memory remat     what `model.remat` saves and costs
python -m benchmarks.memory shard     whether a second mesh axis would earn its keep

Bytes are those that XLA's compiler reports for the compiled step, a device.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import Any

os.environ.setdefault("NPROC", "16")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import machine
from charjax.config import Config, DataConfig, ModelConfig, TrainConfig
from charjax.data.batches import Batch
from charjax.runtime.sharding import LANES
from charjax.train.optimizer import make_optimizer
from charjax.train.step import init_state, make_step

VOCAB = 65


def config_of(hidden: int, batch: int, seq_len: int, remat: int = 0) -> Config:
    """A two-layer LSTM."""
    return Config(
        data=DataConfig(batch_size=batch, seq_len=seq_len),
        model=ModelConfig(cell="lstm", hidden=hidden, layers=2, remat=remat),
        train=TrainConfig(max_steps=1),
    )


def batch_of(config: Config) -> Batch:
    """Random symbols."""
    shape = (config.data.batch_size, config.data.seq_len)
    ids = np.random.default_rng(0).integers(0, VOCAB, shape, np.int32)
    return Batch(ids, ids, np.ones(shape, bool), np.zeros(shape[0], bool))


def compiled(config: Config, mesh: Mesh | None = None, placed: Any = None) -> Any:
    """The step compiled for a state that is not there yet, and that state's maker.

    With a mesh, every row of devices along `LANES` has its own lanes, as in training; what
    other axes do is left to XLA, which is told where the state lies.
    """
    optimizer = make_optimizer(config.optim, 1)
    step = make_step(config, VOCAB, optimizer, axis_name=LANES if mesh else None)
    shapes = jax.eval_shape(lambda: init_state(config, VOCAB, optimizer))
    where: dict[str, Any] = {}
    if mesh:
        whole, lanes = PartitionSpec(), PartitionSpec(LANES)
        state = jax.tree.map(lambda _: whole, shapes)
        state = state._replace(carry=jax.tree.map(lambda _: lanes, shapes.carry))
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(state, lanes),
            out_specs=(state, whole),
            axis_names={LANES},
            check_vma=False,
        )
        at = placed(shapes)
        where = {"in_shardings": (at, NamedSharding(mesh, lanes)), "out_shardings": (at, None)}
    jitted = jax.jit(step, donate_argnums=0, **where)
    return jitted.lower(shapes, batch_of(config)).compile(), optimizer


def cpu_seconds(config: Config, program: Any, optimizer: Any, placed: Any = None) -> float:
    """Of all threads, the least of five steps: work done, however busy the machine is."""
    state, batch = init_state(config, VOCAB, optimizer), batch_of(config)
    if placed is not None:
        state = jax.device_put(state, placed)
    taken = []
    for _ in range(6):
        began = time.process_time()
        state, _ = jax.block_until_ready(program(state, batch))
        taken.append(time.process_time() - began)
    return round(min(taken[1:]), 3)


def megabytes(program: Any) -> dict[str, float]:
    """What the compiled step holds for state and batch, and beside them."""
    sizes = program.memory_analysis()
    return {
        "state_mb": round(sizes.argument_size_in_bytes / 1e6, 1),
        "temporary_mb": round(sizes.temp_size_in_bytes / 1e6, 1),
    }


def remat() -> list[dict[str, Any]]:
    """Sequences of growing length, whole and in blocks."""
    rows = []
    for seq_len, blocks in ((256, (0, 64, 16)), (1024, (0, 128, 32)), (4096, (0, 128, 32))):
        for block in blocks:
            config = config_of(256, 8, seq_len, block)
            program, optimizer = compiled(config)
            row = {"seq_len": seq_len, "remat": block} | megabytes(program)
            rows.append(row | {"cpu_s_per_step": cpu_seconds(config, program, optimizer)})
            print(rows[-1], flush=True)
    return rows


def shard() -> list[dict[str, Any]]:
    """The columns of all kernels over 1, 2 and 4 of 8 devices, the lanes over the others."""
    rows = []
    for hidden in (256, 8192):
        for parts in (1, 2, 4):
            rows.append(sharded(hidden, parts))
            print(rows[-1], flush=True)
    return rows


def sharded(hidden: int, parts: int) -> dict[str, Any]:
    """One row; hidden 8192 is compiled and not run."""
    mesh = jax.make_mesh(
        (8 // parts, parts), (LANES, "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )

    def placed(state: Any) -> Any:
        def of(leaf: Any) -> NamedSharding:
            wide = leaf.ndim == 2 and leaf.shape[1] % hidden == 0
            return NamedSharding(mesh, PartitionSpec(None, "model") if wide else PartitionSpec())

        lanes = NamedSharding(mesh, PartitionSpec(LANES))
        tree = jax.tree.map(of, state)
        return tree._replace(carry=jax.tree.map(lambda _: lanes, state.carry))

    config = config_of(hidden, 32, 32)
    program, optimizer = compiled(config, mesh, placed)
    shapes = jax.eval_shape(lambda: init_state(config, VOCAB, optimizer))
    row = {"hidden": hidden, "lanes_axis": 8 // parts, "model_axis": parts} | megabytes(program)
    row["collectives_in_loops"] = in_loops(program.as_text())
    if hidden <= 256:
        row["cpu_s_per_step"] = cpu_seconds(config, program, optimizer, placed(shapes))
    return row


def in_loops(hlo: str) -> int:
    """Collectives inside a loop over time: they are run at every character."""
    bodies = re.findall(r"^%?\S*(?:body|region)\S* .*?^}", hlo, re.M | re.S)
    names = r"= \S+ (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    return sum(len(re.findall(names, body)) for body in bodies)


def main() -> None:
    """Writes `results/memory_<name>.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("remat", "shard"))
    name = parser.parse_args().name
    print(machine.write(f"memory_{name}", {"rows": {"remat": remat, "shard": shard}[name]()}))


if __name__ == "__main__":
    main()
