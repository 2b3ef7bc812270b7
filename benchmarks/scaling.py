"""Weak scaling on your own GPUs: python -m benchmarks.scaling 8 [flags of charjax train].

Trains on 1, 2, 4, ... GPUs with the same number of lanes on each, and prints the table.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from charjax.train.metrics import read_metrics

LANES, TRAIN = 128, ["--config.train.max_steps=300", "--config.sample.num_chars=0"]
TRAIN += ["--config.data.offline="]  # no other text, whose figures would not be told apart
most, *flags = sys.argv[1:]
alone = 0.0
print("GPUs      chars/s  speed-up  efficiency")
for gpus in [n for n in (1, 2, 4, 8, 16) if n <= int(most)]:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={gpus}"  # where there is no GPU
    with tempfile.TemporaryDirectory() as folder:
        run = ["launch.py", "--config=configs/shakespeare.py", f"--workdir={folder}", *TRAIN]
        run += [f"--config.data.batch_size={LANES * gpus}", *flags]
        subprocess.run([sys.executable, *run], env=env, stdout=subprocess.DEVNULL, check=True)
        speeds = sorted(r["chars_per_second"] for r in read_metrics(Path(folder, "metrics.jsonl")))
    speed = speeds[len(speeds) // 2]
    alone = alone or speed
    print(f"{gpus:4}  {speed:11,.0f}  {speed / alone:8.2f}  {speed / alone / gpus:10.0%}")
