"""What a large text costs: packed, verified, trained on and resumed, beside a text in memory.

    CHARJAX_DATA_DIR=... python -m tests.data.measure_scale FOLDER MEGABYTES

Writes a text of that size from the built-in corpus and the *.txt of $CHARJAX_DATA_DIR, with their
paragraphs in another order each time. Packs it, packs it again with five kills on the way, and
compares the digests of the two stores. Trains on the store, on 1 MB in memory, and on the text in
memory or, where it is larger than 1 GB, on one of 1 GB. 10,000 megabytes take 25 GB of disk in
FOLDER, which are deleted at the end, and seven minutes. Writes benchmarks/results/scale.json, and
the tables of docs/scale.md from it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from charjax.data.packed.store import TextStore
from charjax.data.sources.named_corpora import read_named
from tests.environment import provenance, replaced_between

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PAGE = ROOT / "docs" / "scale.md"
START, END = "<!-- begin: python -m tests.data.measure_scale -->\n", "<!-- end -->"
CHARJAX = (sys.executable, "-m", "charjax")
KILLS = 5
MAX_IN_MEMORY_MB = 1000
TURNS = 3  # of which the median counts
STEPS, FIRST_TIMED_STEP = 300, 50


def write_text(path: Path, megabytes: float) -> None:
    texts = [b"".join(read_named("python_docs").blocks).decode()]
    folder = Path(os.environ.get("CHARJAX_DATA_DIR", path.parent / "none"))
    texts += [file.read_text("utf-8") for file in sorted(folder.glob("*.txt"))]
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n\n")]
    generator = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            generator.shuffle(paragraphs)
            file.write("\n\n".join(paragraphs) + "\n")


class Measured(NamedTuple):
    """A command that has ended.

    Attributes:
      seconds: from its start to its end.
      first_s: from its start until it has logged its first step; as `seconds` without such.
      peak_mb: the most memory that it had.
    """

    seconds: float
    first_s: float
    peak_mb: float


def run(*command: object, cache: Path | None = None, metrics: Path | None = None) -> Measured:
    """Runs a command, and looks at its `metrics.jsonl` every few milliseconds.

    Args:
      command: with its arguments.
      cache: in which it finds what earlier commands compiled and read; None: the user's.
      metrics: the `metrics.jsonl` of its run.
    """
    started, size = time.monotonic(), size_of(metrics)
    first_s = None
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*map(str, command)],
            env=os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {}),
            stdout=log,
            stderr=log,
        )
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if first_s is None and size_of(metrics) > size:
                first_s = time.monotonic() - started
            time.sleep(0.005)
        seconds = time.monotonic() - started
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        assert process.returncode == 0, log.read().decode()
    return Measured(seconds, first_s or seconds, usage.ru_maxrss / 1024)


def size_of(file: Path | None) -> int:
    return file.stat().st_size if file and file.exists() else 0


def pack_with_kills(text: Path, out: Path, shards: int, cache: Path) -> int:
    """Packs a text; kills that on the way. Returns how many kills hit a running process."""
    hits = 0
    for number in range(KILLS):
        process = subprocess.Popen(
            [*CHARJAX, "pack", text, f"--out={out}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        due = (number + 1) * shards // (KILLS + 1)
        while process.poll() is None and len([*out.glob("shards/*.json")]) < due:
            time.sleep(0.02)
        time.sleep(0.2)  # into the next shard
        hits += process.poll() is None
        process.kill()
        process.wait()
    run(*CHARJAX, "pack", text, f"--out={out}", cache=cache)
    return hits


def train(path: Path, workdir: Path, steps: int, cache: Path, *, log_every: int) -> Measured:
    """Runs `launch.py` up to a step, from the start or from where it is."""
    return run(
        *(sys.executable, ROOT / "launch.py", "--config=quickstart", f"--workdir={workdir}"),
        *(f"--config.data.path={path}", "--config.data.corpus=", "--config.data.eval_chars=20000"),
        *("--config.sample.num_chars=1", "--config.train.eval_every=1000"),
        *("--config.optim.schedule=constant", "--config.optim.warmup=0.0"),
        *(f"--config.train.log_every={log_every}", f"--config.train.max_steps={steps}"),
        cache=cache,
        metrics=workdir / "metrics.jsonl",
    )


def start_and_resume(path: Path, workdir: Path, cache: Path, *, starts: int) -> dict[str, float]:
    """The seconds to the first step of new runs and of resumed ones, and their memory."""
    started = [train(path, workdir / f"{turn}", 2, cache, log_every=1) for turn in range(starts)]
    resumed = [
        train(path, workdir / "0", 4 + 2 * turn, cache, log_every=1) for turn in range(TURNS)
    ]
    return {
        "first_step_s": round(statistics.median(run.first_s for run in started), 2),
        "resumed_s": round(statistics.median(run.first_s for run in resumed), 2),
        "peak_mb": round(max(run.peak_mb for run in started + resumed)),
    }


def speeds(paths: dict[str, Path], folder: Path, cache: Path) -> dict[str, dict[str, float]]:
    """Characters a second of runs on these texts, in turn, and their memory."""
    found: dict[str, list[float]] = {name: [] for name in paths}
    peaks = dict.fromkeys(paths, 0.0)
    for turn in range(TURNS):
        for name in sorted(paths, reverse=bool(turn % 2)):
            workdir = folder / f"speed-{name}-{turn}"
            measured = train(paths[name], workdir, STEPS, cache, log_every=10)
            peaks[name] = max(peaks[name], measured.peak_mb)
            records = map(json.loads, (workdir / "metrics.jsonl").open())
            found[name] += [r["chars_per_second"] for r in records if r["step"] > FIRST_TIMED_STEP]
    return {
        name: {"chars_per_s": round(statistics.median(found[name])), "peak_mb": round(peaks[name])}
        for name in paths
    }


def measure_runs(small: Path, in_memory: Path, store: Path, folder: Path) -> dict[str, Any]:
    """The runs on 1 MB, on the packed text, and on the text in memory."""
    cache = folder / "cache"
    for log_every in (1, 10):  # compiles what the runs need
        train(small, folder / f"warm-{log_every}", 20, cache, log_every=log_every)
    runs = {
        # Of a text in memory, only the first run reads the text.
        name: start_and_resume(path, folder / name, cache, starts=1 if name == "memory" else TURNS)
        for name, path in {"small": small, "packed": store, "memory": in_memory}.items()
    }
    for name, found in speeds({"packed": store, "memory": in_memory}, folder, cache).items():
        runs[name] |= found | {"peak_mb": max(found["peak_mb"], runs[name]["peak_mb"])}
    return runs


def measure(folder: Path, megabytes: float) -> dict[str, Any]:
    small, text, store, cache = (folder / n for n in ("small.txt", "text.txt", "store", "cache"))
    write_text(small, 1)
    write_text(text, megabytes)
    in_memory = text
    if megabytes > MAX_IN_MEMORY_MB:
        write_text(in_memory := folder / "memory.txt", MAX_IN_MEMORY_MB)
    size = text.stat().st_size / 1e6
    packing = run(*CHARJAX, "pack", text, f"--out={store}", cache=cache)
    index = TextStore(str(store)).index
    kills = pack_with_kills(text, folder / "killed", len(index.shards), cache)
    verifying = run(*CHARJAX, "verify", store, cache=cache)
    on_disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return {
        "megabytes": round(size),
        "megabytes_in_memory": round(in_memory.stat().st_size / 1e6),
        "pack_mb_per_s": round(size / packing.seconds, 1),
        "pack_peak_mb": round(packing.peak_mb),
        "kills": kills,
        "same_after_kills": TextStore(str(folder / "killed")).index.sha256 == index.sha256,
        "verify_mb_per_s": round(size / verifying.seconds, 1),
        "verify_peak_mb": round(verifying.peak_mb),
        "bytes_on_disk_per_char": round(on_disk / 1e6 / size, 3),
        "runs": measure_runs(small, in_memory, store, folder),
    }


def row(name: str, number: str, limit: str = "") -> tuple[str, str, Callable[[Any], str]]:
    """A row of the table: its name, its limit, and its value of what was measured of a text."""
    of_run, _, key = number.rpartition(".")

    def value(values: dict[str, Any]) -> str:
        return f"{(values['runs'][of_run] if of_run else values)[key]:,}"

    return name, limit, value


def kills(values: dict[str, Any]) -> str:
    return f"{'equal' if values['same_after_kills'] else 'DIFFERENT'} after {values['kills']}"


def later(values: dict[str, Any]) -> str:
    runs = values["runs"]
    return f"{runs['packed']['first_step_s'] - runs['small']['first_step_s']:.2f}"


def ratio(values: dict[str, Any]) -> str:
    runs = values["runs"]
    return f"{runs['packed']['chars_per_s'] / runs['memory']['chars_per_s']:.3f}"


ROWS = (
    row("`charjax pack`: MB/s", "pack_mb_per_s", "60 or more"),
    row("its peak memory, MB", "pack_peak_mb", "1,000"),
    ("its store and one killed by `kill -9` on the way, by digest", "equal after 5", kills),
    row("`charjax verify`: MB/s", "verify_mb_per_s"),
    row("its peak memory, MB", "verify_peak_mb"),
    row("on disk, bytes a character", "bytes_on_disk_per_char"),
    row("`launch.py` on the store: first step, s", "packed.first_step_s"),
    ("later than on 1 MB in memory, s", "1", later),
    row("resumed: first new step, s", "packed.resumed_s", "5"),
    row("its peak memory, MB", "packed.peak_mb", "1,200"),
    row("characters a second", "packed.chars_per_s"),
    ("divided by those of a text in memory", "0.98 or more", ratio),
    row("in memory, MB of text", "megabytes_in_memory"),
    row("`launch.py` on it: first step, s", "memory.first_step_s", "12"),
    row("resumed: first new step, s", "memory.resumed_s", "4"),
    row("its peak memory, MB", "memory.peak_mb", "2,200"),
    row("characters a second", "memory.chars_per_s"),
)


def computed(values: dict[str, Any]) -> list[str]:
    """What 1 GB, 100 GB and 10 TB cost at the rates that were measured of one text."""
    rate, disk, runs = (
        values[name] for name in ("pack_mb_per_s", "bytes_on_disk_per_char", "runs")
    )
    speed, memory = runs["packed"]["chars_per_s"], runs["packed"]["peak_mb"]
    lines = [
        "Computed from the last of these rates, for one such machine with disks that keep up:",
        "",
        "| text | pack | verify | disk for the store, GB | memory to pack, MB | "
        "memory to train, MB | an epoch |",
        "|---" * 7 + "|",
    ]
    for name, megabytes in (("1 GB", 1e3), ("100 GB", 1e5), ("10 TB", 1e7)):
        seconds = (megabytes / rate, megabytes / values["verify_mb_per_s"], megabytes * 1e6 / speed)
        pack_time, verify_time, epoch = map(duration, seconds)
        lines.append(
            f"| {name} | {pack_time} | {verify_time} | {megabytes / 1000 * disk:,.1f} | "
            f"{values['pack_peak_mb']} | {memory} | {epoch} |"
        )
    return lines


def duration(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def write_page(sizes: dict[str, dict[str, Any]]) -> None:
    """The tables of docs/scale.md, from what was measured of each size."""
    names = [f"{values['megabytes'] / 1000:,.4g} GB of text" for values in sizes.values()]
    table = [f"| | wanted | {' | '.join(names)} |", "|---" * (2 + len(sizes)) + "|"]
    for name, limit, value in ROWS:
        table.append(f"| {name} | {limit} | {' | '.join(map(value, sizes.values()))} |")
    sources = [
        f"`{values['command']}`: {values['machine']}; {values['date']}."
        for values in sizes.values()
    ]
    last = [*sizes.values()][-1]
    tables = "\n".join([*table, "", "\n\n".join(sources), "", *computed(last), ""])
    PAGE.write_text(replaced_between(PAGE.read_text("utf-8"), START, tables, END), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("megabytes", type=int, metavar="MEGABYTES")
    args = parser.parse_args()
    if args.megabytes < 1:
        parser.error(f"{args.megabytes}: must be at least 1")
    args.folder.mkdir(parents=True, exist_ok=True)
    number = str(args.megabytes)
    about = provenance("tests.data.measure_scale", ["FOLDER", number])
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as inside:
        found[number] = about | measure(Path(inside), args.megabytes)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    write_page(found)
