"""Weak scaling on your GPUs: `python examples/weak_scaling.py 8 [flags of charjax train]`.

Trains on 1, 2, 4, ... GPUs with the same batch size per GPU and prints the speed-ups.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from charjax.train.metrics import read_metrics

BATCH_PER_GPU = 128
# offline=: no substitute text, whose figures would look the same.
FLAGS = "--config.train.max_steps=300 --config.sample.num_chars=0 --config.data.offline="


def chars_per_second(gpus: int, flags: list[str]) -> float:
    """Median training speed of a short run on that many GPUs."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    # Without a GPU: as many CPU devices.
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={gpus}"
    batch = f"--config.data.batch_size={BATCH_PER_GPU * gpus}"
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "launch.py", "--config=configs/shakespeare.py", *FLAGS.split()]
        run += [f"--workdir={folder}", batch, *flags]
        if code := subprocess.run(run, env=env, stdout=subprocess.DEVNULL).returncode:
            sys.exit(code)  # it has said why
        speeds = sorted(r["chars_per_second"] for r in read_metrics(Path(folder, "metrics.jsonl")))
    return speeds[len(speeds) // 2]


def main(most: str, *flags: str) -> None:
    """Prints a row for each number of GPUs."""
    print("GPUs      chars/s  speed-up  efficiency")
    one = 0.0
    for gpus in [n for n in (1, 2, 4, 8, 16) if n <= int(most)]:
        speed = chars_per_second(gpus, list(flags))
        one = one or speed
        print(f"{gpus:4}  {speed:11,.0f}  {speed / one:8.2f}  {speed / one / gpus:10.0%}")


if __name__ == "__main__":
    if not sys.argv[1:] or not sys.argv[1].isdecimal():
        sys.exit(__doc__)
    main(*sys.argv[1:])
