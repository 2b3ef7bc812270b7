"""Checks and times the persistent kernels (`charjax/model/recurrence/pallas_hopper`) on a GPU.

    python -m benchmarks.performance.persistent --cells gru --batches 64 128 256

For each cell: values and gradients compared with XLA's, of a short sequence first, without and
with resets, of full and padded batches, and with tokens; where they agree, the time of a layer and
of a training step. A layer runs in several ways, see `make_layers`, a training step in the default
one, of 64 sequences. CTAs that deadlock spin for ever: `benchmarks.gpu` runs it under a time limit.
Writes `results/persistent_gpu.json` after each of them. Ends with one line and a nonzero exit code
if a check fails, or if there is no Hopper GPU; `--small --device=cpu` needs none, measures nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from benchmarks.common import finish, parser, progress
from benchmarks.peers.with_charjax import train_step
from benchmarks.workload import Shape, make_shape
from charjax.model.cells import CELLS
from charjax.model.recurrence import api
from charjax.model.recurrence.base import Inputs, Layer, Operands, Weights
from charjax.model.recurrence.pallas_hopper import ops
from charjax.train.intervals import STEPS_PER_DISPATCH

_CALLS = 20  # timed calls between two readings of the clock
_TRAINED = ("xla", "persistent")  # ways to run a layer that a config can name
_TOLERANCE = 1.5  # allowed error over the error of XLA's loops in bfloat16

Fields = dict[str, Any]
Layers = dict[str, Callable[..., Any]]


def make_layers(cell: str, batch_tiles: int) -> Layers:
    """The layer in bfloat16 with XLA's loops, and with the kernels in several ways."""
    ways: dict[str, Fields] = {"persistent": {}}
    if batch_tiles == 1:
        ways["persistent split 4"] = {"split_k": 4}
    if batch_tiles > 1:
        ways["persistent passes"] = {"batch_groups": 1, "batch_tiles": 1}  # of a tile each
    if batch_tiles > 2:
        ways["persistent groups"] = {"batch_tiles": 1}  # passes of a tile in each group
    launches = {name: dataclasses.replace(ops.launch_config(), **way) for name, way in ways.items()}
    found = {name: partial(ops.run_with, launch, cell) for name, launch in launches.items()}
    return {"xla": partial(api.run, "xla", cell, "bfloat16")} | found


def check(shape: Shape, layers: Layers, **kinds: bool) -> Fields:
    """Relative errors of values and gradients against float32, beside those of XLA's loops.

    Args:
      shape: of the layer.
      layers: what is checked.
      kinds: see `layer_operands`.
    """
    operands = layer_operands(shape, **kinds)
    with jax.default_matmul_precision("highest"):
        layer = partial(api.run, "xla", shape.cell, "float32")
        want = jax.device_get(value_and_grads(layer)(operands))
    errors = {
        name: relative_errors(jax.device_get(value_and_grads(layer)(operands)), want)
        for name, layer in layers.items()
    }
    wrong = [
        f"{name} {leaf}: error {error:.2g}, xla {errors['xla'][leaf]:.2g}"
        for name, error_of in errors.items()
        for leaf, error in error_of.items()
        if not error <= _TOLERANCE * errors["xla"][leaf] + jax.numpy.finfo("bfloat16").eps
    ]
    return {"off_float32": errors, "wrong": wrong}


def relative_errors(got: Any, want: Any) -> dict[str, float]:
    """The largest error of each leaf, over the leaf's largest entry."""
    pairs = zip(*(jax.tree.leaves_with_path(tree) for tree in (got, want)), strict=True)
    return {
        jax.tree_util.keystr(path): float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30))
        for (path, a), (_, b) in pairs
    }


def times(shape: Shape, layers: Layers, rounds: int) -> Fields:
    """Milliseconds of a layer, forward and with its gradient, and of a whole training step."""
    operands, found = layer_operands(shape), {}
    for name, layer in layers.items():
        forward = jax.jit(lambda operands, layer=layer: layer(operands)[0])
        found[name] = {
            f"{part}_ms": 1e3 * seconds(partial(run, operands), rounds)
            for part, run in (("forward", forward), ("with_gradient", value_and_grads(layer)))
        }
        if shape.batch == 64 and name in _TRAINED:
            task = train_step(dataclasses.asdict(shape), "bfloat16", name)
            dispatch_ms = 1e3 * seconds(partial(task.run, 1), rounds, calls=1)
            found[name]["train_step_ms"] = dispatch_ms / STEPS_PER_DISPATCH
    return found


def layer_operands(shape: Shape, *, resets: bool = False, tokens: bool = False) -> Operands:
    """Random input gates, weights, carry and, if asked for, resets; or a table and tokens."""
    cell, hidden = CELLS[shape.cell], shape.hidden

    def normal(seed: int, *sizes: int) -> Any:
        return jax.random.normal(jax.random.key(seed), sizes)

    bias = normal(0, hidden) if cell.reset_after else None
    weights = Weights(normal(1, hidden, cell.gates * hidden) / hidden**0.5, bias)
    carry = tuple(normal(2, cell.states, shape.batch, hidden))
    igates = normal(3, cell.gates * hidden, shape.length, shape.batch)
    drawn = jax.random.bernoulli(jax.random.key(4), 0.1, (shape.length, shape.batch))
    inputs = Inputs(igates)
    if tokens:
        ids = jax.random.randint(jax.random.key(5), drawn.shape, 0, shape.vocab)
        inputs = Inputs(normal(3, cell.gates * hidden, shape.vocab), ids)
    return Operands(inputs, weights, carry, drawn if resets else None)


@cache
def value_and_grads(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function that returns a layer's results, and the gradients of its inputs."""

    def run(operands: Operands) -> Any:
        (igates, tokens), resets = operands.inputs, operands.resets

        def with_fixed(real: Operands) -> Any:
            return layer(real._replace(inputs=Inputs(real.inputs.igates, tokens), resets=resets))

        value, vjp = jax.vjp(with_fixed, operands._replace(inputs=Inputs(igates), resets=None))
        return value, vjp(jax.tree.map(jax.numpy.cos, value))

    return jax.jit(run)


def seconds(work: Callable[[], Any], rounds: int, calls: int = _CALLS) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(work())
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            out = work()
        jax.block_until_ready(out)
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def check_and_time(shape: Shape, rounds: int, write: Callable[[Fields], None]) -> list[str]:
    """Checks, then times if they hold; writes what it has after each. Returns what is wrong."""
    both = make_layers(shape.cell, shape.batch // 64)
    found: Fields = {"checks": {}, "shape": shape}
    short, padded, long = (3, shape.batch, False), (3, 100, True), (shape.length, 40, True)
    for length, batch, resets in (short, padded, long) if shape.batch == 64 else (padded,):
        result = check(dataclasses.replace(shape, length=length, batch=batch), both, resets=resets)
        found["checks"][f"length {length}, batch {batch}, resets {resets}"] = result
        write(found)
        if result["wrong"]:
            return list(result["wrong"])
    found["check"] = check(shape, both, tokens=True)
    if not found["check"]["wrong"]:
        found["times"] = times(shape, both, rounds)
        progress(f"{shape.cell}, batch {shape.batch}: {found['times']}")
    write(found)
    return list(found["check"]["wrong"])


def main() -> None:
    """Writes `results/persistent_gpu.json`."""
    flags = parser(__doc__)
    flags.set_defaults(device="gpu")
    cells = ["gru", "lstm", "rnn"]
    flags.add_argument("--cells", nargs="+", default=cells[:2], choices=cells)
    flags.add_argument("--batches", nargs="+", type=int, default=[64], choices=(64, 128, 192, 256))
    args = flags.parse_args()
    if refusal := ops.supports(Layer("gru", 1024, "bfloat16", 64)):
        refusal = f"benchmarks.performance.persistent: {refusal}"
        return progress(refusal) if args.small and args.device == "cpu" else sys.exit(refusal)
    gpu = {"device": jax.devices()[0].device_kind, "multiprocessors": ops.launch_config().num_sms}
    finish("persistent", args, {"gpu": gpu})
    sizes, wrong = {"hidden": 256, "length": 10} if args.small else {}, []
    for cell, batch in itertools.product(args.cells, args.batches):
        shape = make_shape(small=False, cell=cell, batch=batch, **sizes)
        group = cell if batch == 64 else f"{cell} {batch}"
        wrong += check_and_time(
            shape, args.rounds, lambda found, at=group: finish("persistent", args, {at: found})
        )
    if wrong:
        sys.exit("benchmarks.performance.persistent: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
