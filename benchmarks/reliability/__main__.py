"""`python -m benchmarks.reliability kill --n=200 --json --out=FILE`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine

# command -> (function of benchmarks.reliability, n of the long form)
PROOFS = {
    "kill": ("kill.prove_kill", 200),
    "signals": ("signals.prove_signals", 100),
    "corrupt": ("corrupt.prove_corrupt", 1000),
    "disk": ("disk.prove_disk", 50),
    "servers": ("servers.prove_servers", 12),
    "two-writers": ("two_writers.prove_two_writers", 100),
    "inputs": ("inputs.prove_inputs", 2000),
    "resume": ("resume.prove_resume", 50),
    "cost": ("cost.prove_cost", 10),
}


def main() -> int:
    """Runs one proof; exit code 1 where a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("proof", choices=PROOFS)
    parser.add_argument("--n", type=int, default=0, help="how often; 0: as in the long form")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--out", type=Path, help="also write it to this file")
    args = parser.parse_args()

    where, n = PROOFS[args.proof]
    module, function = where.split(".")
    prove = getattr(importlib.import_module(f"benchmarks.reliability.{module}"), function)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="charjax-reliability-") as folder:
        figures = prove(args.n or n, Path(folder), lambda line: print(line, file=sys.stderr))
    seconds = round(time.monotonic() - started, 1)
    result = machine.record() | {"proof": args.proof, "seconds": seconds, "figures": figures}
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result if args.json else figures, indent=None if args.json else 2))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
