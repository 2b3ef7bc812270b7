"""Measures programs (peers) in turn: each in its own process, over several rounds."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.result_files import RESULTS, keep_other_groups, record

ROOT = Path(__file__).parent.parent

# An idle thread pool spins for some milliseconds before it sleeps.
_PAUSE_S = 0.05


class PeerUnavailableError(Exception):
    """A peer that is not installed here, or that cannot do what is asked."""


@dataclass(frozen=True)
class Peer:
    """A program to measure.

    Attributes:
      name: its name in the tables.
      task: `module:function` that returns its `benchmarks.worker.Task`.
      arguments: keyword arguments of that function; a dataclass is passed as its fields.
      python: the interpreter to run it with.
      env: variables added to its environment.
    """

    name: str
    task: str
    arguments: Mapping[str, Any]
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """The process of a peer, started at once; `wait` returns when it is warm."""

    chars: int
    about: dict[str, Any]

    def __init__(self, peer: Peer, device: str) -> None:
        self.peer = peer
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        arguments = json.dumps(dict(peer.arguments), default=asdict)
        self._process = subprocess.Popen(
            [peer.python, "-m", "benchmarks.worker", peer.task, arguments],
            cwd=ROOT,  # the checkout that has this file, not an installed charjax
            env=_environment(device) | dict(peer.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def wait(self) -> None:
        """Waits until the peer is warm, and has reported about itself.

        Raises:
          PeerUnavailableError: it cannot be measured here.
        """
        answer = self._read()
        if "unavailable" in answer:
            raise PeerUnavailableError(answer["unavailable"])
        self.chars, self.about = answer["chars"], answer["about"]

    def run(self, units: int) -> dict[str, Any]:
        """Runs some units of work; see `benchmarks.worker.timed`."""
        print(json.dumps({"units": units}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read().strip().splitlines()
            last = errors[-1] if errors else "no message"
            raise PeerUnavailableError(f"its process died ({code}): {last}")
        return dict(json.loads(line))


def figure_of(
    rounds: Sequence[Mapping[str, Any]], *, chars: int, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The figures of a peer, as result files have them.

    Args:
      rounds: `seconds` a unit of work; `notes`, what the work returned; and `peak_bytes` of memory.
      chars: characters per unit.
      about: what the peer reports of itself, such as its number of parameters.
    """
    seconds = [one["seconds"] for one in rounds]
    return {
        "chars_per_second": chars / statistics.median(seconds),
        "about": about or {},
        "chars": chars,
        "seconds": seconds,
        "peak_bytes": max(one.get("peak_bytes", 0) for one in rounds),
        "notes": [one.get("notes", {}) for one in rounds],
    }


def measure(peers: Sequence[Peer], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures peers in turn.

    All start, compile and warm up at once. Then they run one at a time, in an order that
    rotates from round to round.

    Args:
      peers: what to measure; names differ.
      args: with `rounds`, the number of turns of each peer; `turn_s`, about how many seconds a
        turn takes, for which the work is repeated; and `device`, cpu or gpu.

    Returns:
      `peers`: the figures of each peer, see `figure_of`; `skipped`: why others have none.

    Raises:
      SystemExit: no peer can be measured here.
    """
    skipped: dict[str, str] = {}
    rounds_of: dict[Worker, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        for worker in [stack.enter_context(Worker(peer, args.device)) for peer in peers]:
            try:
                worker.wait()
                rounds_of[worker] = []
            except PeerUnavailableError as error:
                skipped[worker.peer.name] = str(error)
                progress(f"{worker.peer.name}: skipped: {error}")
        if not rounds_of:
            sys.exit(f"none of the peers can be measured on this {args.device}")
        turns = deque(
            (one, max(1, round(args.turn_s / one.run(1)["seconds"]))) for one in rounds_of
        )
        for turn in range(args.rounds):
            for worker, units in turns:
                time.sleep(_PAUSE_S)
                rounds_of[worker].append(worker.run(units))
            turns.rotate(-1)
            progress(f"round {turn + 1} of {args.rounds}")
    found = {
        worker.peer.name: figure_of(answers, chars=worker.chars, about=worker.about)
        for worker, answers in rounds_of.items()
    }
    return {"peers": found, "skipped": skipped}


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Median over the rounds of our characters per second over theirs.

    Args:
      ours: a figure of a result file.
      theirs: another figure of the same rounds.
    """
    rounds = zip(ours["seconds"], theirs["seconds"], strict=True)
    faster: float = statistics.median(theirs_s / ours_s for ours_s, theirs_s in rounds)
    return faster * float(ours["chars"] / theirs["chars"])


def _environment(device: str) -> dict[str, str]:
    env = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_FILTERING": "off",  # so that the last line is the error
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    if device == "cpu":
        return env | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # A peer that finds no GPU must fail, not measure the CPU: see `benchmarks.worker.check_gpu`.
    return env | {"JAX_PLATFORMS": "cuda"}


def count(text: str) -> int:
    """The value of a flag that counts something: at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _file(text: str) -> Path:
    """The value of `--out`: refused before anything is measured, not when it is to be written."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a folder; give a file in it")
    return path


def parser(
    about: str | None, *, turns: bool = True, is_folder: bool = False
) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have.

    Args:
      about: the benchmark's docstring.
      turns: whether to add the flags of `measure`.
      is_folder: whether `--out` is a folder of result files, not one file.
    """
    flags = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    flags.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    if turns:
        flags.add_argument(
            "--rounds", type=count, default=7, help="turns of each peer; default %(default)s"
        )
        flags.add_argument(
            "--turn_s",
            type=float,
            default=0.5,
            help="seconds of a turn, at least; default %(default)s",
        )
    flags.add_argument("--small", action="store_true", help="tiny shapes, to try it out")
    if is_folder:
        out, about_out = Path, "the folder of the result files; default %(default)s"
    else:
        out, about_out = _file, "the result file; default in benchmarks/results"
    flags.add_argument("--out", type=out, help=about_out)
    return flags


def result_file(name: str, args: argparse.Namespace) -> Path:
    """The file that `finish` writes to."""
    return Path(args.out or RESULTS / f"{name}_{args.device}.json")


def finish(name: str, args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Writes groups of results to `<name>_<device>.json`, beside those that the file has."""
    about = {"benchmark": name, "device": args.device, "small": args.small}
    result = record() | about | {"groups": results}
    path = result_file(name, args)
    if path.exists():
        result = keep_other_groups(json.loads(path.read_text(encoding="utf-8")), result)
    if args.out or not args.small:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.tmp")  # a killed process leaves the old file
        unfinished.write_text(json.dumps(result, indent=1, default=asdict) + "\n", encoding="utf-8")
        unfinished.replace(path)
        progress(f"wrote {path}")


def measure_group(
    benchmark: str, group: str, peers: Sequence[Peer], args: Any, ours: Sequence[str], **more: Any
) -> None:
    """Measures peers as the flags say, shows them, and writes them as a group with more fields."""
    measured = measure(peers, args)
    show(group, measured, ours)
    finish(benchmark, args, {group: measured | more})
    check(measured, ours)


def check(measured: Mapping[str, Any], ours: Iterable[str]) -> None:
    """Ends the process with an error if one of `ours` was skipped."""
    reasons = measured["skipped"]
    if skipped := [f"{name}: {reasons[name]}" for name in ours if name in reasons]:
        sys.exit("; ".join(skipped))


def show(title: str, measured: Mapping[str, Any], ours: Sequence[str]) -> None:
    """Prints every peer's speed, and how many times as fast each of `ours` is."""
    peers = measured["peers"]
    progress(f"\n{title}")
    for name, figure in peers.items():
        ratios = "".join(
            f"  {ratio(peers[our], figure):6.2f}x" for our in ours if our in peers and our != name
        )
        progress(f"  {name:32} {figure['chars_per_second']:12,.0f} characters/s{ratios}")


def progress(line: str) -> None:
    """Prints a line to standard error."""
    print(line, file=sys.stderr, flush=True)
