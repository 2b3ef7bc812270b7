"""Runs one fault injection in full: `python -m tests.faults kill --out=FILE`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.environment import provenance

# name, which is also that of its module -> number of repetitions in full
FAULTS = {
    "kill": 200,
    "signals": 100,
    "endings": 100,
    "corrupt": 1000,
    "stores": 200,
    "disk": 50,
    "servers": 21,
    "two-writers": 100,
    "inputs": 2000,
    "resume": 50,
    "readers": 200,
    "shapes": 1000,
    "caches": 500,
    "sanitizers": 3000,
    "cost": 10,
}


def run(name: str, repetitions: int = 0) -> dict[str, Any]:
    """The figures of one fault injection; `repetitions` 0: as many as in full."""
    module = name.replace("-", "_")
    check = getattr(importlib.import_module(f"tests.faults.{module}"), f"check_{module}")
    with tempfile.TemporaryDirectory(prefix="charjax-faults-") as folder:
        figures: dict[str, Any] = check(
            repetitions or FAULTS[name], Path(folder), lambda line: print(line, file=sys.stderr)
        )
    return figures


def main(arguments: list[str]) -> int:
    """Prints the figures as JSON; exit code 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--n", type=int, default=0, help="repetitions; 0: as many as in full")
    parser.add_argument("--out", type=Path, help="write the result with its environment here")
    args = parser.parse_args(arguments)
    if args.n < 0:
        parser.error(f"--n={args.n}: must be at least 0")
    if args.out:  # rather now than after an hour
        if args.out.is_dir():
            parser.error(f"--out={args.out}: is a folder; give a file in it")
        args.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    figures = run(args.fault, args.n)
    if args.out:
        seconds = round(time.monotonic() - started, 1)
        result = provenance("tests.faults", arguments) | {"fault": args.fault, "seconds": seconds}
        args.out.write_text(json.dumps(result | {"figures": figures}, indent=2) + "\n", "utf-8")
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
