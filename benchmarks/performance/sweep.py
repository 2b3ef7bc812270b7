"""The training step over hidden size, batch, length and layers, beside the machine's peak.

    python -m benchmarks.performance.sweep --quick
    python -m benchmarks.performance.sweep --over_torch --cells lstm --hidden 64 128

Every point is measured in turn with a large matmul in the same dtype, so that a slow phase of the
machine slows both. Points that were measured before stay in the file until all are measured again.
With --over_torch, layers as wide as people train on a CPU, in turn with torch. Each of these is a
group of its file, so that a run that was cut off goes on with the others.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from benchmarks.common import (
    Peer,
    check,
    count,
    finish,
    measure,
    parser,
    progress,
    ratio,
    result_file,
    show,
)
from benchmarks.performance.goals import TORCH
from benchmarks.performance.train_step import OURS, ours, peers
from benchmarks.workload import Shape, make_shape
from charjax.train.intervals import STEPS_PER_DISPATCH

CELLS, DTYPES = ("gru", "lstm"), ("float32", "bfloat16")
HIDDEN = (128, 256, 512, 1024, 2048)
_CHANGES = {"batch": (16, 256), "length": (25, 400), "layers": (2, 3)}
VARIANTS = [{name: size} for name, sizes in _CHANGES.items() for size in sizes]
# Hidden sizes of --over_torch, and the shape of configs/quickstart.py.
SMALL_HIDDEN, QUICKSTART = (64, 128, 256, 512), {"embed": 64, "batch": 32, "length": 64}
_MATMUL = {"cpu": 2048, "gpu": 8192}


def points(*, small: bool, quick: bool, device: str) -> list[tuple[Shape, str]]:
    """The shapes and dtypes: hidden size for both cells, the rest around the reference."""
    dtype_of_variants = "bfloat16" if device == "gpu" else "float32"
    found = [
        (make_shape(small=small, cell=cell, hidden=hidden), dtype)
        for cell in CELLS
        for dtype in DTYPES
        for hidden in (HIDDEN[:1] if small else HIDDEN)
        if (device, dtype) != ("gpu", "float32")
        if not quick or (cell, dtype) == ("gru", "float32") or 512 <= hidden <= 1024
    ]
    variants = VARIANTS[:2] if small else [{"hidden": 512} | variant for variant in VARIANTS]
    return found + [(make_shape(small=small, **fields), dtype_of_variants) for fields in variants]


def measure_point(shape: Shape, dtype: str, args: Any) -> dict[str, Any]:
    """One point: time, peak memory, and the fraction of the large matmul's FLOP/s."""
    matmul, step = matmul_peer(dtype, args), ours(shape, dtype)
    found = measure([matmul, step], args)
    if found["skipped"]:
        raise SystemExit(f"{shape}: {found['skipped']}")
    figure, matmul_figure = (found["peers"][peer.name] for peer in (step, matmul))
    return {
        "shape": shape,
        "dtype": dtype,
        "step_s": statistics.median(figure["seconds"]) / STEPS_PER_DISPATCH,
        "chars_per_second": figure["chars_per_second"],
        "peak_bytes": figure["peak_bytes"],
        "peak_flops_per_second": matmul_figure["chars_per_second"],
        "fraction_of_peak": fraction(figure, matmul_figure, shape),
    }


def matmul_peer(dtype: str, args: Any) -> Peer:
    """The large matmul, which counts its floating-point operations as `chars`."""
    size = 256 if args.small else _MATMUL[args.device]
    arguments = {"size": size, "dtype": dtype}
    return Peer(f"matmul {dtype}", "benchmarks.peers.with_charjax:matmul", arguments)


def fraction(step: dict[str, Any], matmul: dict[str, Any], shape: Shape) -> float:
    """The FLOP/s of a training step over those of the large matmul in the same rounds."""
    return ratio(step | {"chars": STEPS_PER_DISPATCH * shape.flops}, matmul)


def over_torch(args: Any) -> None:
    """Writes `results/sweep_small_<device>.json`: both dtypes beside torch and a large matmul."""
    for cell, hidden in itertools.product(args.cells or CELLS, args.hidden or SMALL_HIDDEN):
        fields = {"hidden": hidden} | ({} if args.small else QUICKSTART)
        shape = make_shape(small=args.small, cell=cell, **fields)
        every = peers(shape, device=args.device, keras_python="")
        found = [peer for peer in every if peer.name in (*OURS, TORCH)]
        matmuls = {name: matmul_peer(dtype, args) for name, dtype in zip(OURS, DTYPES, strict=True)}
        found += matmuls.values()
        measured = measure(found, args)
        check(measured, OURS)
        figures = measured["peers"]
        rates = {name: figures.pop(matmul.name) for name, matmul in matmuls.items()}
        fractions = {name: fraction(figures[name], rates[name], shape) for name in OURS}
        group = f"{cell} {hidden}"
        show(group, measured, OURS)
        content = {"shape": shape, "fraction_of_matmul": fractions}
        finish("sweep_small", args, {group: measured | content})


def main() -> None:
    """Writes `results/sweep_<device>.json`."""
    flags = parser(__doc__)
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="fewer points; takes some minutes")
    what.add_argument("--over_torch", action="store_true", help="small layers in turn with torch")
    flags.add_argument("--cells", nargs="+", choices=CELLS, help="with --over_torch; default both")
    flags.add_argument("--hidden", nargs="+", type=count, help="with --over_torch; 64 to 512")
    args = flags.parse_args()
    if args.over_torch:
        return over_torch(args)
    if args.cells or args.hidden:
        flags.error("--cells and --hidden are read with --over_torch alone")
    is_first = not result_file("sweep", args).exists()
    wanted, found = points(small=args.small, quick=args.quick, device=args.device), []
    for shape, dtype in wanted:
        point = measure_point(shape, dtype, args)
        found.append(point)
        progress(f"{shape} {dtype}: {point['fraction_of_peak']:.2f} of the peak")
        if is_first or len(found) == len(wanted):
            finish("sweep", args, {"points": found})


if __name__ == "__main__":
    main()
