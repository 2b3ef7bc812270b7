"""Checks and times the persistent kernels (`charjax/model/recurrence/pallas_hopper`) on a GPU.

    python -m benchmarks.performance.persistent --cells=gru

For each cell: values and gradients compared with XLA's, of a short sequence first, without and
with resets, of full and padded batches; where they agree, the time of a layer and of a training
step. CTAs that deadlock spin for ever: `benchmarks.gpu` runs it under a time limit. Writes
`results/persistent_gpu.json` after each of them. Ends with one line and a nonzero exit code if a
check fails, or if there is no Hopper GPU; `--small --device=cpu` needs none, and measures nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import finish, parser, progress
from benchmarks.workload import Shape, make_shape

_CALLS = 20  # timed calls between two readings of the clock
_TOLERANCE = 1.5  # allowed error over the error of XLA's loops in bfloat16

Fields = dict[str, Any]


def check(params: Fields) -> Fields:
    """Relative errors of values and gradients against float32, beside those of XLA's loops."""
    import jax
    import jax.numpy as jnp

    from charjax.model.recurrence import api

    operands = layer_operands(params)

    def value_and_grads_of(implementation: str, dtype: str) -> Any:
        layer = partial(api.run, implementation, params["shape"]["cell"], dtype)
        return jax.device_get(jax.jit(value_and_grads(layer))(operands))

    with jax.default_matmul_precision("highest"):
        want = value_and_grads_of("xla", "float32")
    xla = relative_errors(value_and_grads_of("xla", "bfloat16"), want)
    errors = relative_errors(value_and_grads_of("persistent", "bfloat16"), want)
    wrong = [
        f"{leaf}: error {error:.2g}, xla {xla[leaf]:.2g}"
        for leaf, error in errors.items()
        if not error <= _TOLERANCE * xla[leaf] + jnp.finfo(jnp.bfloat16).eps
    ]
    return {"off_float32": {"xla": xla, "persistent": errors}, "wrong": wrong}


def relative_errors(got: Any, want: Any) -> dict[str, float]:
    """The largest error of each leaf, over the leaf's largest entry."""
    import jax
    import numpy as np

    pairs = zip(*(jax.tree.leaves_with_path(tree) for tree in (got, want)), strict=True)
    return {
        jax.tree_util.keystr(path): float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30))
        for (path, a), (_, b) in pairs
    }


def times(params: Fields) -> Fields:
    """Milliseconds of a layer, forward and with its gradient, and of a whole training step."""
    import jax

    from benchmarks.peers.with_charjax import train_step
    from charjax.model.recurrence import api
    from charjax.train.intervals import STEPS_PER_DISPATCH

    operands, found, steps = layer_operands(params), {}, STEPS_PER_DISPATCH
    for name in ("xla", "persistent"):
        layer = partial(api.run, name, params["shape"]["cell"], "bfloat16")
        forward = jax.jit(lambda operands, layer=layer: layer(operands)[0])
        with_gradient = jax.jit(value_and_grads(layer))
        found[name] = {
            "forward_ms": 1e3 * seconds(partial(forward, operands), params["rounds"]),
            "with_gradient_ms": 1e3 * seconds(partial(with_gradient, operands), params["rounds"]),
        }
        task = train_step(params["shape"], "bfloat16", name, steps)
        dispatch_s = seconds(partial(task.run, 1), params["rounds"], calls=1)
        found[name]["train_step_ms"] = 1e3 * dispatch_s / steps
    return found


def layer_operands(params: Fields) -> Any:
    """Random input gates, weights, carry and resets."""
    import jax

    from charjax.model.cells import CELLS
    from charjax.model.recurrence.base import Operands, Projected, Weights

    shape = Shape(**params["shape"])
    cell, hidden = CELLS[shape.cell], shape.hidden

    def normal(seed: int, *sizes: int) -> Any:
        return jax.random.normal(jax.random.key(seed), sizes)

    bias = normal(0, hidden) if cell.reset_after else None
    weights = Weights(normal(1, hidden, cell.gates * hidden) / hidden**0.5, bias)
    carry = tuple(normal(2, cell.states, shape.batch, hidden))
    igates = normal(3, cell.gates * hidden, shape.length, shape.batch)
    resets = jax.random.bernoulli(jax.random.key(4), 0.1, (shape.length, shape.batch))
    return Operands(Projected(igates), weights, carry, resets if params.get("resets") else None)


def value_and_grads(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns a layer's results, and the gradients of its inputs."""
    import jax

    def run(operands: Any) -> Any:
        differentiated = operands._replace(resets=None)
        value, vjp = jax.vjp(lambda o: layer(o._replace(resets=operands.resets)), differentiated)
        return value, vjp(jax.tree.map(jax.numpy.cos, value))

    return run


def seconds(work: Callable[[], Any], rounds: int, calls: int = _CALLS) -> float:
    """Median seconds of a call, after one that compiles."""
    import jax

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
    params: Fields = {"shape": dataclasses.asdict(shape), "rounds": rounds}
    found: Fields = {"checks": {}, "shape": params["shape"]}
    short, padded = (3, shape.batch, False), (3, 100, True)
    for length, batch, resets in (short, padded, (shape.length, 40, True)):
        at = {"shape": params["shape"] | {"length": length, "batch": batch}, "resets": resets}
        result = found["checks"][f"length {length}, batch {batch}, resets {resets}"] = check(at)
        write(found)
        if result["wrong"]:
            return list(result["wrong"])
    found["check"] = check(params | {"resets": False})
    if not found["check"]["wrong"]:
        found["times"] = times(params)
        progress(f"{shape.cell}: {found['times']}")
    write(found)
    return list(found["check"]["wrong"])


def main() -> None:
    """Writes `results/persistent_gpu.json`."""
    import jax

    from charjax.model.recurrence.base import Layer
    from charjax.model.recurrence.pallas_hopper import ops

    flags = parser(__doc__)
    flags.set_defaults(device="gpu")
    flags.add_argument(
        "--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm", "rnn")
    )
    args = flags.parse_args()
    if refusal := ops.supports(Layer("gru", 1024, "bfloat16", 64)):
        refusal = f"benchmarks.performance.persistent: {refusal}"
        return progress(refusal) if args.small and args.device == "cpu" else sys.exit(refusal)
    num_sms = ops.launch_config().num_sms
    gpu = {"device": jax.devices()[0].device_kind, "multiprocessors": num_sms}
    finish("persistent", args, {"gpu": gpu})
    sizes, wrong = {"hidden": 256, "length": 10} if args.small else {}, []
    for cell in args.cells:
        shape = dataclasses.replace(make_shape(small=False, cell=cell), **sizes)
        wrong += check_and_time(
            shape, args.rounds, lambda found, cell=cell: finish("persistent", args, {cell: found})
        )
    if wrong:
        sys.exit("benchmarks.performance.persistent: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
