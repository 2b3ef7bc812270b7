"""A training step of charjax and of its peers: forward, backward, clipping and Adam.

python -m benchmarks.performance.train_step
python -m benchmarks.performance.train_step --cells=gru --keras_python=/path/to/bin/python
python -m benchmarks.performance.train_step --cells=gru --batch=256 --device=gpu
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from benchmarks.common import Peer, measure_group, parser
from benchmarks.workload import Shape, make_shape
from charjax.train.intervals import STEPS_PER_DISPATCH

OURS = ("charjax float32", "charjax bfloat16")
KERAS_BACKENDS = ("jax", "torch", "tensorflow")


def peers(shape: Shape, *, device: str, keras_python: str, dispatch: int) -> list[Peer]:
    """The training step of charjax and of all others, at one shape."""
    where: dict[str, Any] = {"shape": dataclasses.asdict(shape)}
    half = ("bfloat16", "float16") if device == "gpu" else ("bfloat16",)
    slower = (
        (("xla", "bfloat16"),) if device == "gpu" else (("xla", "float32"), ("scan", "float32"))
    )
    flax_cells = {"gru": ("gru",), "lstm": ("lstm", "optimized_lstm")}[shape.cell]
    return [
        *(ours(shape, dtype=dtype, dispatch=dispatch) for dtype in ("float32", "bfloat16")),
        *(
            ours(shape, dtype=dtype, dispatch=dispatch, recurrence=recurrence)
            for recurrence, dtype in slower
        ),
        *(
            Peer(
                f"torch {dtype}", "benchmarks.peers.with_torch:train_step", where | {"dtype": dtype}
            )
            for dtype in ("float32", *half)
        ),
        *(
            Peer(f"flax {cell}", "benchmarks.peers.with_flax:train_step", where | {"cell": cell})
            for cell in flax_cells
        ),
        *(
            Peer(
                f"keras {backend}" if dtype == "float32" else f"keras {backend} {dtype}",
                "benchmarks.peers.with_keras:train_step",
                where | {"dtype": dtype},
                python=keras_python,
                env={"KERAS_BACKEND": backend},
            )
            for backend in KERAS_BACKENDS
            for dtype in ("float32", *half)
        ),
    ]


def ours(shape: Shape, *, dtype: str, dispatch: int, recurrence: str = "fast") -> Peer:
    """The training step of charjax."""
    return Peer(
        f"charjax {dtype}" if recurrence == "fast" else f"charjax {recurrence}",
        "benchmarks.peers.with_charjax:train_step",
        {"shape": dataclasses.asdict(shape), "dtype": dtype}
        | {"recurrence": recurrence, "dispatch": dispatch},
    )


def main() -> None:
    """Writes `results/train_step_<device>.json`."""
    flags = parser(__doc__)
    flags.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm"))
    flags.add_argument("--batch", type=int, help="sequences per step; default 64")
    flags.add_argument("--layers", type=int, help="recurrent layers; default 1")
    flags.add_argument(
        "--keras_python",
        default=sys.executable,
        help="an interpreter that has keras, jax, torch and tensorflow",
    )
    args = flags.parse_args()
    changed = {name: n for name in ("batch", "layers") if (n := getattr(args, name))}
    for cell in args.cells:
        shape = make_shape(small=args.small, cell=cell, **changed)
        group = " ".join((cell, *(f"{name} {n}" for name, n in changed.items())))
        found = peers(
            shape,
            device=args.device,
            keras_python=args.keras_python,
            dispatch=STEPS_PER_DISPATCH,
        )
        measure_group("train_step", group, found, args, OURS, shape=dataclasses.asdict(shape))


if __name__ == "__main__":
    main()
