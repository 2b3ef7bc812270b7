"""Every benchmark of this folder that docs/performance.md shows, then the page itself.

python -m benchmarks.all --quick --keras_python=/path/to/bin/python
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.common import ROOT, progress


def commands(args: argparse.Namespace) -> list[list[str]]:
    """The modules and their flags. `--quick` leaves out what no row of the table needs."""
    keras = [f"--keras_python={args.keras_python}"] if args.keras_python else []
    common = [f"--device={args.device}", *(["--small"] if args.small else [])]
    if args.small:
        common += ["--rounds=2", "--turn_s=0.05"]
    if not args.quick:
        benchmarks = [["train_step", *keras], ["sample"], ["end_to_end"], ["sweep"]]
    else:
        common += [] if args.small else ["--rounds=3"]
        benchmarks = [
            ["train_step", *keras],
            ["sample", "--cells", "gru"],
            ["end_to_end", "--steps=200"],
        ]
    return [[name, *flags, *common] for name, *flags in benchmarks]


def main() -> None:
    """Runs them one after the other; stops at the first that fails."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    flags.add_argument("--quick", action="store_true", help="three rounds, no sweep")
    flags.add_argument("--small", action="store_true", help="tiny shapes, to try it out")
    flags.add_argument("--keras_python", help="an interpreter that has keras and its backends")
    args = flags.parse_args()
    for name, *rest in commands(args):
        progress(f"\n=== benchmarks.{name}")
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rest], cwd=ROOT, check=True)
    if not args.small:
        subprocess.run([sys.executable, "-m", "benchmarks.report"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
