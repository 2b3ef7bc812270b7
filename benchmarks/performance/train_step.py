"""A training step of charjax and of its peers: forward, backward, clipping and Adam.

python -m benchmarks.performance.train_step
python -m benchmarks.performance.train_step --cells=gru --keras_python=/path/to/bin/python
python -m benchmarks.performance.train_step --cells=gru --batch=256 --device=gpu
"""

from __future__ import annotations

import dataclasses
import sys

from benchmarks.common import Peer, count, measure_group, parser
from benchmarks.performance.goals import BF16, F32
from benchmarks.workload import Shape, make_shape

OURS = (F32, BF16)


def peers(shape: Shape, *, device: str, keras_python: str) -> list[Peer]:
    """The training step of charjax and of all others, at one shape."""
    dtypes, slower = ["float32", "bfloat16"], {"xla": "float32", "scan": "float32"}
    if device == "gpu":
        dtypes, slower = [*dtypes, "float16"], {"xla": "bfloat16"}
    flax_cells = {"gru": ("gru",), "lstm": ("lstm", "optimized_lstm")}[shape.cell]

    def other(name: str, library: str, **arguments: str) -> Peer:
        task = f"benchmarks.peers.with_{library}:train_step"
        return Peer(name, task, {"shape": shape} | arguments)

    def keras(backend: str, dtype: str) -> Peer:
        name = f"keras {backend}" if dtype == "float32" else f"keras {backend} {dtype}"
        peer = other(name, "keras", dtype=dtype)
        return dataclasses.replace(peer, python=keras_python, env={"KERAS_BACKEND": backend})

    backends = ("jax", "torch", "tensorflow") if keras_python else ()
    return [
        *(ours(shape, dtype) for dtype in ("float32", "bfloat16")),
        *(ours(shape, dtype, recurrence) for recurrence, dtype in slower.items()),
        *(other(f"torch {dtype}", "torch", dtype=dtype) for dtype in dtypes),
        *(other(f"flax {cell}", "flax", cell=cell) for cell in flax_cells),
        *(keras(backend, dtype) for backend in backends for dtype in dtypes),
    ]


def ours(shape: Shape, dtype: str, recurrence: str = "fast") -> Peer:
    """The training step of charjax."""
    return Peer(
        f"charjax {dtype if recurrence == 'fast' else recurrence}",
        "benchmarks.peers.with_charjax:train_step",
        {"shape": shape, "dtype": dtype, "recurrence": recurrence},
    )


def main() -> None:
    """Writes `results/train_step_<device>.json`."""
    flags = parser(__doc__)
    flags.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm"))
    flags.add_argument("--batch", type=count, help="sequences per step; default 64")
    flags.add_argument("--layers", type=count, help="recurrent layers; default 1")
    flags.add_argument(
        "--keras_python",
        default=sys.executable,
        help="an interpreter that has keras, jax, torch and tensorflow; empty: without keras",
    )
    args = flags.parse_args()
    changed = {name: n for name in ("batch", "layers") if (n := getattr(args, name))}
    for cell in args.cells:
        shape = make_shape(small=args.small, cell=cell, **changed)
        group = " ".join((cell, *(f"{name} {n}" for name, n in changed.items())))
        found = peers(shape, device=args.device, keras_python=args.keras_python)
        measure_group("train_step", group, found, args, OURS, shape=shape)


if __name__ == "__main__":
    main()
