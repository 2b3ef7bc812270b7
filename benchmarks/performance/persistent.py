"""The persistent recurrence on a GPU: that it is right, and then what it costs.

    python -m benchmarks.performance.persistent
    python -m benchmarks.performance.persistent --cells=gru --limit_s=120

Every part runs in a process of its own with a time limit, so that a kernel whose CTAs
wait for one another for ever costs a minute and no more: the bare barrier over all
multiprocessors; then a cell at a time, first values and gradients against the fast
recurrence, and if they agree the time of a layer and of a whole training step. Writes
`results/persistent_gpu.json`. Where anything was wrong, or there is no such GPU, it says so in
a line and ends with an exit code that is not 0.
"""

from __future__ import annotations

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

_PEERS = (1, 2)  # see `charjax.model.recurrence.pallas_hopper.tiling.Spread`
_TURNS = (2_000, 22_000)  # of the bare barrier; the difference has no launch in it
_CALLS = 20  # of what is timed, between two looks at the clock
_AS_FAR_OFF = 1.5  # times what the fast recurrence in bfloat16 is off float32


def machine(_: dict[str, Any]) -> dict[str, Any]:
    """What the kernels would run on."""
    import jax

    from charjax.errors import InputError
    from charjax.model.recurrence.pallas_hopper import ops

    try:
        found = ops.machine("bfloat16", 64)
    except InputError as error:
        return {"unavailable": str(error)}
    kind = jax.devices()[0].device_kind
    return {"device": kind, "multiprocessors": found.multiprocessors}


def barrier(asked: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of a barrier over all multiprocessors, with nothing between two."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    ctas = asked["multiprocessors"]

    def bare(turns: int) -> Callable[[], Any]:
        def body(out: Any) -> None:
            count = pl.get_global(plgpu.SemaphoreType.REGULAR(()))

            def turn(t: Any, _: Any) -> Any:
                plgpu.semaphore_signal(count, memory_scope="gpu")
                plgpu.semaphore_wait(count, (t + 1) * ctas, decrement=False, memory_scope="gpu")
                return _

            out[lax.axis_index("cta")] = lax.fori_loop(0, turns, turn, jnp.int32(turns))

        params = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
        kind = jax.ShapeDtypeStruct((ctas,), jnp.int32)
        names = {"grid_names": ("cta",), "compiler_params": params}
        return jax.jit(plgpu.kernel(body, out_type=kind, grid=(ctas,), **names))

    few, many = (seconds(bare(turns), asked["rounds"], calls=1) for turns in _TURNS)
    return {"ctas": ctas, "us": 1e6 * (many - few) / (_TURNS[1] - _TURNS[0])}


def check(asked: dict[str, Any]) -> dict[str, Any]:
    """How far values and gradients are from those in float32, as the fast recurrence's are."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    fast, inputs = layer(asked, "fast", "bfloat16"), layer_inputs(asked)
    exact = layer(asked, "fast", "float32")

    def far(one: Any, other: Any) -> dict[str, float]:
        pairs = zip(*(jax.tree.leaves_with_path(tree) for tree in (one, other)), strict=True)
        return {
            jax.tree_util.keystr(path): float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30))
            for (path, a), (_, b) in pairs
        }

    with jax.default_matmul_precision("highest"):
        want = jax.device_get(jax.jit(value_and_grads(exact))(*inputs))
    found = {}
    for peers in _PEERS:
        got = jax.device_get(jax.jit(value_and_grads(layer(asked, peers, "bfloat16")))(*inputs))
        found[f"{peers} peers"] = far(got, want)
    allowed = far(jax.device_get(jax.jit(value_and_grads(fast))(*inputs)), want)
    wrong = [
        f"{name} {leaf}: {off:.2g} off, fast {allowed[leaf]:.2g}"
        for name, leaves in found.items()
        for leaf, off in leaves.items()
        if not off <= _AS_FAR_OFF * allowed[leaf] + jnp.finfo(jnp.bfloat16).eps
    ]
    return {"off_float32": {"fast": allowed} | found, "wrong": wrong}


def times(asked: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a layer, forwards and with its gradient, and of a whole training step."""
    import jax

    from benchmarks.peers.with_charjax import train_step
    from charjax.config import TrainConfig

    inputs, found = layer_inputs(asked), {}
    ways: dict[str, str | int] = {"fast": "fast"} | {f"{peers} peers": peers for peers in _PEERS}
    for name, way in ways.items():
        run = layer(asked, way, "bfloat16")
        forward = jax.jit(lambda *at, run=run: run(*at)[0])
        both = jax.jit(value_and_grads(run))
        found[name] = {
            "forward_ms": 1e3 * seconds(partial(forward, *inputs), asked["rounds"]),
            "with_gradient_ms": 1e3 * seconds(partial(both, *inputs), asked["rounds"]),
        }
    dispatch = TrainConfig().steps_per_dispatch
    for recurrence in ("fast", "persistent"):
        task = train_step(asked["shape"], "bfloat16", recurrence, dispatch)
        a_unit = seconds(partial(task.run, 1), asked["rounds"], calls=1)
        found.setdefault(recurrence, {})["train_step_ms"] = 1e3 * a_unit / dispatch
    return found


def layer_inputs(asked: dict[str, Any]) -> tuple[Any, ...]:
    """The input's share of the gates, the weights and a carry, none of them zero."""
    import jax

    from charjax.model.cells import CELLS
    from charjax.model.recurrence.base import Projected, Weights

    shape = Shape(**asked["shape"])
    cell, hidden = CELLS[shape.cell], shape.hidden

    def normal(seed: int, *sizes: int) -> Any:
        return jax.random.normal(jax.random.key(seed), sizes)

    bias = normal(0, hidden) if cell.reset_after else None
    weights = Weights(normal(1, hidden, cell.gates * hidden) / hidden**0.5, bias)
    carry = tuple(normal(2, cell.states, shape.batch, hidden))
    return Projected(normal(3, cell.gates * hidden, shape.length, shape.batch)), weights, carry


def layer(asked: dict[str, Any], way: str | int, dtype: str) -> Callable[..., Any]:
    """A layer: the fast recurrence, or the persistent one with so many peers."""
    from charjax.model.recurrence.pallas_hopper import ops
    from charjax.model.recurrence.xla import run as recur

    cell = asked["shape"]["cell"]
    if way == "fast":
        return partial(recur, cell, dtype)
    found = dataclasses.replace(ops.machine(dtype, asked["shape"]["batch"]), peers=way)
    return partial(ops.recur, cell, found)


def value_and_grads(run: Callable[..., Any]) -> Callable[..., Any]:
    """Outputs and last carry, and the gradients of all that they depend on."""
    import jax

    def both(*inputs: Any) -> Any:
        value, transpose = jax.vjp(run, *inputs)
        return value, transpose(jax.tree.map(jax.numpy.cos, value))

    return both


def seconds(work: Callable[[], Any], rounds: int, calls: int = _CALLS) -> float:
    """The median time of a call, once it is warm."""
    import jax

    jax.block_until_ready(work())
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            out = work()
        jax.block_until_ready(out)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)


PARTS = {part.__name__: part for part in (machine, barrier, check, times)}


def apart(part: str, limit_s: float, **asked: Any) -> dict[str, Any]:
    """A part in a process of its own, which is killed when its time is over."""
    command = [sys.executable, "-m", "benchmarks.performance.persistent", part, json.dumps(asked)]
    progress(f"{part} {asked.get('shape', '')}")
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=limit_s, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {limit_s:g} s; CTAs that wait for one another?"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        return {"failed": f"exit code {done.returncode}: {said[-1]}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def of_cell(shape: Shape, args: Any) -> dict[str, Any]:
    """The check, and if it holds the times."""
    asked = {"shape": dataclasses.asdict(shape), "rounds": args.rounds}
    brief = asked | {"shape": dataclasses.asdict(dataclasses.replace(shape, length=3))}
    found = {"check": apart("check", args.limit_s, **brief)}
    if not problems(found):
        found["check"] = apart("check", args.limit_s, **asked)
    if not problems(found):
        found["times"] = apart("times", args.limit_s, **asked)
    return found | {"shape": asked["shape"]}


def problems(found: dict[str, Any]) -> list[str]:
    """What went wrong, in parts or in what they checked."""
    failed = [f"{name}: {part['failed']}" for name, part in found.items() if "failed" in part]
    return failed + found.get("check", {}).get("wrong", [])


def main() -> None:
    """Writes `results/persistent_gpu.json`."""
    flags = parser(__doc__)
    flags.set_defaults(device="gpu")
    flags.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm"))
    flags.add_argument("--limit_s", type=float, default=180.0, help="seconds a part may take")
    args = flags.parse_args()
    gpu = apart("machine", args.limit_s)
    if "multiprocessors" not in gpu:
        sys.exit(f"benchmarks.performance.persistent: {gpu.get('unavailable') or gpu['failed']}")
    asked = {"rounds": args.rounds, "multiprocessors": gpu["multiprocessors"]}
    results = {"gpu": gpu, "barrier": apart("barrier", args.limit_s, **asked)}
    sizes = {"hidden": 256, "length": 10} if args.small else {}
    for cell in args.cells:
        shape = dataclasses.replace(make_shape(small=False, cell=cell), **sizes)
        results[cell] = of_cell(shape, args)
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
