"""Whole runs of `launch.py` with an empty compilation cache: seconds, speed, validation loss.

python -m benchmarks.performance.runs shakespeare --device=gpu
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.common import finish, parser, progress
from benchmarks.performance.headline import train

SHIPPED = "shakespeare"  # configs/shakespeare_gru.py as it is
_WIDE = (
    "--config.data.batch_size=64 --config.data.seq_len=128 --config.model.hidden=1024 "
    "--config.model.dropout=0.6 --config.train.eval_every=200 --config.train.max_steps=1600 "
)
# Name -> flags. The names of the wide ones end with the weight decay.
RUNS = {SHIPPED: ""} | {
    f"{cell} {decay}": f"{_WIDE}--config.model.cell={cell} --config.optim.weight_decay={decay}"
    for cell, decay in (("lstm", 0.5), ("lstm", 1.0), ("gru", 1.0))
}
_SMALL = (
    "--config.train.max_steps=20 --config.train.eval_every=20 --config.sample.num_chars=20 "
    "--config.model.hidden=16 --config.data.batch_size=8 --config.data.seq_len=16"
)


def main() -> None:
    """Writes `results/runs_<device>.json`."""
    flags = parser(__doc__, turns=False)
    flags.add_argument("name", nargs="?", default=SHIPPED, choices=RUNS)
    args = flags.parse_args()
    # No substitute text, unless `benchmarks.gpu` says which.
    offline = f"--config.data.offline={os.environ.get('BENCHMARK_OFFLINE', '')}"
    more = f"{RUNS[args.name]} {_SMALL if args.small else ''}".split()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
        figures = train("shakespeare_gru", Path(scratch, "run"), offline, *more)
    progress(f"{args.name}: {figures['wall_s']} s, {figures['best']}")
    finish("runs", args, {args.name: figures})


if __name__ == "__main__":
    main()
