"""Draws what a terminal shows of a finished run: `python -m tests.runtime.draw_panel WORKDIR`.

Replays `metrics.jsonl` and `samples.txt` through the same views, up to a part of the steps, and
writes docs/img/panel-light.svg and panel-dark.svg. rich's fonts come from the web; these files name
the reader's fonts instead.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from rich.console import Console, RenderableType
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme

from charjax.runtime import status
from charjax.runtime.panel import TaskView, sample_box, side_by_side
from charjax.runtime.status import TrainingStatus
from charjax.train.metrics import read_metrics
from charjax.workdir import Workdir
from tests.environment import existing

IMAGES = Path(__file__).parents[2] / "docs" / "img"
WIDTH, SHOWN_CHARS = 100, 260
_COLORS = "000000 be0000 008200 a06e00 0050be 960096 00788c 6e6e6e"
LIGHT = TerminalTheme(
    (255, 255, 255), (40, 40, 40), [tuple(bytes.fromhex(color)) for color in _COLORS.split()]
)


def replay(workdir: Path, fraction: float) -> list[object]:
    """What is on the terminal once this fraction of the steps is done."""
    files = Workdir(workdir)
    records, total = read_metrics(files.metrics), last_step(files)
    view, best = TaskView("training"), None
    for record in records:
        if record["step"] <= fraction * total:
            val_loss = record.get("val_loss")
            best = min(filter(None, (best, val_loss)), default=None)
            loss, speed = record["train_loss"], record["chars_per_second"]
            clock = SimpleNamespace(monotonic=lambda record=record: record["time_s"])
            with mock.patch.object(status, "time", clock):
                view.update(record["step"], total, "", TrainingStatus(loss, val_loss, best, speed))
    return [samples(files, fraction * total), view]


def last_step(files: Workdir) -> int:
    """The number of steps of the run."""
    return int(json.loads(files.run_json.read_bytes())["config"]["train"]["max_steps"])


def samples(files: Workdir, step: float) -> RenderableType:
    """The samples of the last evaluation up to a step, side by side."""
    parts = re.split(
        r"^=== step (\d+), temperature (\S+) ===\n", files.samples.read_text(), flags=re.M
    )
    found = list(zip(map(int, parts[1::3]), parts[2::3], parts[3::3], strict=True))
    newest = max(number for number, *_ in found if number <= step)
    boxes = [
        sample_box(f"step {number}, temperature {temperature}", text.strip()[:SHOWN_CHARS])
        for number, temperature, text in found
        if number == newest
    ]
    return side_by_side(boxes[:2])


def draw(parts: list[object], theme: TerminalTheme) -> str:
    """The parts as SVG."""
    console = Console(record=True, width=WIDTH, height=40, file=io.StringIO(), force_terminal=True)
    for part in parts:
        console.print(part)
    svg = console.export_svg(title="charjax train", theme=theme, unique_id="panel")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace") + "\n"


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=existing, metavar="WORKDIR")
    parts = replay(parser.parse_args().workdir, 0.7)
    for name, theme in (("light", LIGHT), ("dark", DIMMED_MONOKAI)):
        (IMAGES / f"panel-{name}.svg").write_text(draw(parts, theme), encoding="utf-8")


if __name__ == "__main__":
    main()
