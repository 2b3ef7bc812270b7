"""What a large text costs: packed, verified, trained on and resumed, beside the same in memory.

    CHARJAX_DATA_DIR=... python -m tests.data.measure_scale FOLDER MEGABYTES

Writes a text of that size to FOLDER from the built-in corpus and the *.txt of $CHARJAX_DATA_DIR,
with their paragraphs in another order each time. Packs it, packs it again with five kills on the
way, and compares the digests of the two stores. 10,000 megabytes take about 25 GB of disk. Writes
benchmarks/results/scale.json, and the table of docs/scale.md from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from charjax.data.named_corpora import read_named
from charjax.data.store import TextStore
from tests.environment import provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PAGE = ROOT / "docs" / "scale.md"
START, END = "<!-- begin: python -m tests.data.measure_scale -->\n", "<!-- end -->"
COMMAND = (sys.executable, "-m", "charjax")
KILLS = 5
MAX_IN_MEMORY_MB = 2000
STEPS = 200


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


def run(*arguments: object) -> tuple[float, float]:
    """The seconds and the peak memory in MB of a command."""
    started = time.monotonic()
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()
    return time.monotonic() - started, usage.ru_maxrss / 1024


def pack_with_kills(text: Path, out: Path, seconds: float) -> None:
    for number in range(KILLS):
        process = subprocess.Popen(
            [*COMMAND, "pack", text, f"--out={out}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds * (0.2 + 0.1 * number))
        process.kill()
        process.wait()
    run("pack", text, f"--out={out}")


def train(path: Path, workdir: Path) -> dict[str, float]:
    """Seconds and memory of a run of ten steps, of its resumption, and its speed after that."""
    command = (
        *("train", "--config=quickstart", f"--workdir={workdir}", f"--config.data.path={path}"),
        *("--config.data.corpus=", "--config.data.eval_chars=20000", "--config.sample.num_chars=1"),
        *("--config.optim.schedule=constant", "--config.optim.warmup=0.0"),
        *("--config.train.eval_every=10", "--config.train.log_every=10"),
    )
    first, memory = run(*command, "--config.train.max_steps=10")
    resumed, _ = run(*command, "--config.train.max_steps=20")
    run(*command, f"--config.train.max_steps={STEPS}", "--config.train.eval_every=50")
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    speeds = sorted(record["chars_per_second"] for record in records if record["step"] > 50)
    return {
        "ten_steps_s": round(first, 2),
        "resumed_s": round(resumed, 2),
        "peak_mb": round(memory),
        "chars_per_s": round(speeds[len(speeds) // 2]),
    }


def measure(folder: Path, megabytes: float) -> dict[str, Any]:
    small, text, store = folder / "small.txt", folder / "text.txt", folder / "store"
    write_text(small, 1)
    write_text(text, megabytes)
    size = text.stat().st_size / 1e6
    packing, memory = run("pack", text, f"--out={store}")
    pack_with_kills(text, folder / "killed", packing)
    same = TextStore(str(store)).index.sha256 == TextStore(str(folder / "killed")).index.sha256
    verifying, verify_memory = run("verify", store)
    on_disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    run(
        "train", "--config=quickstart", f"--workdir={folder / 'warm'}", "--config.train.max_steps=1"
    )
    runs = {"1 MB in memory": train(small, folder / "run-small")}
    runs["packed"] = train(store, folder / "run-store")
    if megabytes <= MAX_IN_MEMORY_MB:
        runs["in memory"] = train(text, folder / "run-memory")
    return {
        "megabytes": round(size),
        "pack_s": round(packing, 1),
        "pack_mb_per_s": round(size / packing, 1),
        "pack_peak_mb": round(memory),
        "same_after_kills": same,
        "verify_mb_per_s": round(size / verifying, 1),
        "verify_peak_mb": round(verify_memory),
        "bytes_on_disk_per_char": round(on_disk / 1e6 / size, 3),
        "runs": runs,
    }


def computed(values: dict[str, Any]) -> list[str]:
    """What 1 GB, 100 GB and 10 TB cost at the rates that were measured of one text."""
    rate, disk, packed = (
        values[name] for name in ("pack_mb_per_s", "bytes_on_disk_per_char", "runs")
    )
    speed, memory = packed["packed"]["chars_per_s"], packed["packed"]["peak_mb"]
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
    packing = [
        "| text | pack, MB/s | its peak, MB | verify, MB/s | its peak, MB |",
        "|---" * 5 + "|",
    ]
    running = ["| a run on | ten steps, s | ten more, resumed, s | peak, MB | characters/s |"]
    running.append("|---" * 5 + "|")
    sources = []
    for values in sizes.values():
        size = f"{values['megabytes'] / 1000:.0f} GB"
        figures = ("pack_mb_per_s", "pack_peak_mb", "verify_mb_per_s", "verify_peak_mb")
        packing.append(f"| {size} | {' | '.join(f'{values[name]:.0f}' for name in figures)} |")
        for name, run in values["runs"].items():
            about = name if name.startswith("1 MB") else f"{size} {name}"
            seconds = f"{run['ten_steps_s']:.1f} | {run['resumed_s']:.1f}"
            running.append(f"| {about} | {seconds} | {run['peak_mb']:,} | {run['chars_per_s']:,} |")
        killed = "has the digest of one" if values["same_after_kills"] else "DIFFERS FROM ONE"
        sources.append(
            f"{size}: a store killed {KILLS} times {killed} that was not; on disk "
            f"{values['bytes_on_disk_per_char']:.2f} bytes a character (`{values['command']}`: "
            f"{values['machine']}; {values['date']})."
        )
    tables = "\n".join(
        [*packing, "", *running, "", "\n\n".join(sources), "", *computed(values), ""]
    )
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    _, end, after = rest.partition(END)
    PAGE.write_text(before + START + tables + end + after, "utf-8")


if __name__ == "__main__":
    place, number = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    about = provenance("tests.data.measure_scale", ["FOLDER", number])
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    found[number] = about | measure(Path(place), float(number))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    write_page(found)
