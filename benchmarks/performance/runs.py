"""A whole run of configs/shakespeare_gru.py, with an empty compilation cache.

python -m benchmarks.performance.runs --device=gpu
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.common import finish, parser, progress
from benchmarks.performance.headline import train

_SMALL = (
    "--config.train.max_steps=20 --config.train.eval_every=20 --config.sample.num_chars=20 "
    "--config.model.hidden=16 --config.data.batch_size=8 --config.data.seq_len=16"
)


def main() -> None:
    """Writes `results/runs_<device>.json`."""
    args = parser(__doc__, turns=False).parse_args()
    # No substitute text, unless `benchmarks.gpu` says which.
    offline = f"--config.data.offline={os.environ.get('BENCHMARK_OFFLINE', '')}"
    small = _SMALL.split() if args.small else []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
        figures = train("shakespeare_gru", Path(scratch, "run"), offline, *small)
    progress(f"{figures['wall_s']} s, {figures['best']}")
    finish("runs", args, {"shakespeare": figures})


if __name__ == "__main__":
    main()
