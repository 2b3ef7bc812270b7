"""Checks and times the persistent kernels (`charjax/model/recurrence/pallas_hopper`) on a GPU.

    python -m benchmarks.performance.persistent
    python -m benchmarks.performance.persistent --cells=gru --limit_s=120

First a bare grid barrier; then, for each cell, values and gradients compared with XLA's; and,
where they agree, the time of a layer and of a whole training step. Each part runs in its own
process with a time limit, since CTAs that deadlock would spin for ever. Writes
`results/persistent_gpu.json`. Ends with one line and a nonzero exit code if a check fails, or
if there is no Hopper GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import ROOT, finish, parser, progress
from benchmarks.workload import Shape, make_shape

_CLUSTERS = (1, 2)  # see `charjax.model.recurrence.pallas_hopper.tiling.Tiling`
_BARRIERS = (2_000, 22_000)  # per launch; the difference in time excludes the launch
_CALLS = 20  # timed calls between two readings of the clock
_TOLERANCE = 1.5  # allowed error over the error of XLA's loops in bfloat16

# A part's parameters, and its results, as they pass between processes in JSON.
Fields = dict[str, Any]


def find_gpu(_: Fields) -> Fields:
    """The GPU, or why the kernels do not run here."""
    import jax

    from charjax.model.recurrence.base import Layer
    from charjax.model.recurrence.pallas_hopper import ops

    if refusal := ops.supports(Layer("gru", 1024, "bfloat16", 64)):
        return {"unavailable": refusal}
    num_sms = ops.launch_config().num_sms
    return {"device": jax.devices()[0].device_kind, "multiprocessors": num_sms}


def barrier(params: Fields) -> Fields:
    """Microseconds of a barrier over one CTA per SM, back to back."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    ctas = params["multiprocessors"]

    def make(count: int) -> Callable[[], Any]:
        def kernel(out: Any) -> None:
            semaphore = pl.get_global(plgpu.SemaphoreType.REGULAR(()))

            def step(i: Any, carry: Any) -> Any:
                plgpu.semaphore_signal(semaphore, memory_scope="gpu")
                plgpu.semaphore_wait(semaphore, (i + 1) * ctas, decrement=False, memory_scope="gpu")
                return carry

            out[lax.axis_index("cta")] = lax.fori_loop(0, count, step, jnp.int32(count))

        return jax.jit(
            plgpu.kernel(
                kernel,
                out_type=jax.ShapeDtypeStruct((ctas,), jnp.int32),
                grid=(ctas,),
                grid_names=("cta",),
                compiler_params=plgpu.CompilerParams(
                    lowering_semantics=plgpu.LoweringSemantics.Lane
                ),
            )
        )

    few, many = (seconds(make(count), params["rounds"], calls=1) for count in _BARRIERS)
    return {"ctas": ctas, "us": 1e6 * (many - few) / (_BARRIERS[1] - _BARRIERS[0])}


def check(params: Fields) -> Fields:
    """Relative errors of values and gradients against float32, beside those of XLA's loops."""
    import jax
    import jax.numpy as jnp

    operands = layer_operands(params)

    def value_and_grads_of(implementation: str | int, dtype: str) -> Any:
        layer = make_layer(params, implementation, dtype)
        return jax.device_get(jax.jit(value_and_grads(layer))(operands))

    with jax.default_matmul_precision("highest"):
        want = value_and_grads_of("xla", "float32")
    xla = relative_errors(value_and_grads_of("xla", "bfloat16"), want)
    errors = {
        f"cluster {cluster}": relative_errors(value_and_grads_of(cluster, "bfloat16"), want)
        for cluster in _CLUSTERS
    }
    wrong = [
        f"{name} {leaf}: error {error:.2g}, xla {xla[leaf]:.2g}"
        for name, leaves in errors.items()
        for leaf, error in leaves.items()
        if not error <= _TOLERANCE * xla[leaf] + jnp.finfo(jnp.bfloat16).eps
    ]
    return {"off_float32": {"xla": xla} | errors, "wrong": wrong}


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
    from charjax.config import TrainConfig

    operands, found = layer_operands(params), {}
    names: dict[str, str | int] = {"xla": "xla"} | {f"cluster {c}": c for c in _CLUSTERS}
    for name, implementation in names.items():
        layer = make_layer(params, implementation, "bfloat16")
        forward = jax.jit(lambda operands, layer=layer: layer(operands)[0])
        with_gradient = jax.jit(value_and_grads(layer))
        found[name] = {
            "forward_ms": 1e3 * seconds(partial(forward, operands), params["rounds"]),
            "with_gradient_ms": 1e3 * seconds(partial(with_gradient, operands), params["rounds"]),
        }
    steps = TrainConfig().steps_per_dispatch
    for recurrence in ("xla", "persistent"):
        task = train_step(params["shape"], "bfloat16", recurrence, steps)
        dispatch_s = seconds(partial(task.run, 1), params["rounds"], calls=1)
        found.setdefault(recurrence, {})["train_step_ms"] = 1e3 * dispatch_s / steps
    return found


def layer_operands(params: Fields) -> Any:
    """Random input gates, weights and carry."""
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
    return Operands(Projected(igates), weights, carry)


def make_layer(params: Fields, implementation: str | int, dtype: str) -> Callable[..., Any]:
    """A layer by XLA's loops ("xla"), or by the persistent kernels in clusters of a size."""
    from charjax.model.recurrence import xla
    from charjax.model.recurrence.pallas_hopper import ops

    cell = params["shape"]["cell"]
    if isinstance(implementation, str):
        return partial(xla.run, cell, dtype)
    launch = dataclasses.replace(ops.launch_config(), cluster=implementation)
    return partial(ops.recurrence, cell, launch)


def value_and_grads(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns a layer's results, and the gradients of its inputs."""
    import jax

    def run(operands: Any) -> Any:
        value, vjp = jax.vjp(layer, operands)
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


PARTS = {part.__name__: part for part in (find_gpu, barrier, check, times)}


def run_part(name: str, limit_s: float, **params: Any) -> Fields:
    """Runs a part in its own process, which is killed after `limit_s` seconds."""
    command = [sys.executable, "-m", "benchmarks.performance.persistent", name, json.dumps(params)]
    progress(f"{name} {params.get('shape', '')}")
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=limit_s, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {limit_s:g} s; a deadlock of CTAs?"}
    if done.returncode:
        errors = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": f"exit code {done.returncode}: {errors[-1]}"}
    answer: Fields = json.loads(done.stdout.splitlines()[-1])
    return answer


def check_and_time(shape: Shape, args: argparse.Namespace) -> Fields:
    """The check, first of a short sequence, and the times if it passes."""
    params = {"shape": dataclasses.asdict(shape), "rounds": args.rounds}
    short = params | {"shape": dataclasses.asdict(dataclasses.replace(shape, length=3))}
    found = {"check": run_part("check", args.limit_s, **short)}
    if not problems(found):
        found["check"] = run_part("check", args.limit_s, **params)
    if not problems(found):
        found["times"] = run_part("times", args.limit_s, **params)
    return found | {"shape": params["shape"]}


def problems(found: Fields) -> list[str]:
    """Parts that failed, and checks that did not hold."""
    failed = [f"{name}: {part['failed']}" for name, part in found.items() if "failed" in part]
    return failed + found.get("check", {}).get("wrong", [])


def main() -> None:
    """Writes `results/persistent_gpu.json`."""
    flags = parser(__doc__)
    flags.set_defaults(device="gpu")
    flags.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm"))
    flags.add_argument("--limit_s", type=float, default=180.0, help="seconds a part may take")
    args = flags.parse_args()
    gpu = run_part("find_gpu", args.limit_s)
    if "multiprocessors" not in gpu:
        sys.exit(f"benchmarks.performance.persistent: {gpu.get('unavailable') or gpu['failed']}")
    params = {"rounds": args.rounds, "multiprocessors": gpu["multiprocessors"]}
    results = {"gpu": gpu, "barrier": run_part("barrier", args.limit_s, **params)}
    sizes = {"hidden": 256, "length": 10} if args.small else {}
    for cell in args.cells:
        shape = dataclasses.replace(make_shape(small=False, cell=cell), **sizes)
        results[cell] = check_and_time(shape, args)
    for name, found in results.items():
        progress(f"{name}: {json.dumps(found.get('times', found))}")
    finish("persistent", args, results)
    wrong = problems(results) + [p for cell in args.cells for p in problems(results[cell])]
    if wrong:
        sys.exit("benchmarks.performance.persistent: " + "; ".join(wrong))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in PARTS:
        print(json.dumps(PARTS[sys.argv[1]](json.loads(sys.argv[2]))))
    else:
        main()
