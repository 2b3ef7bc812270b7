"""The metrics of a run: a log with one JSON object per record, and the loss curves."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from charjax.config import Config
from charjax.errors import InputError
from charjax.runtime.distributed import is_primary
from charjax.runtime.files import append_content, replace_content
from charjax.schema import is_finite
from charjax.train.tensorboard import EventLog, open_events
from charjax.workdir import Workdir


class MetricsLog:
    """Appends records to `metrics.jsonl` and, if there are any, to TensorBoard events.

    The keys of a record are among

    * `step`, `epoch`, `time_s` (seconds of training), `learning_rate`, `grad_norm`, `skipped`
    * `train_loss` and `val_loss` (nats per character), `val_bpc` (bits per character)
    * `val_record`: how many times the validation text has changed, if it has; losses on different
      texts cannot be compared
    * `chars_per_second`, `flops_per_second` (see `charjax.train.step_metrics.step_flops`) and
      `input_stall`, since the last record, without evaluations, samples and checkpoints

    `input_stall` is the fraction of that time in which the devices of process 0 waited for batches,
    at most: the time to make or read a batch counts if the devices are idle once it is made.

    With path=None, as in all processes but the first, nothing is written.
    """

    def __init__(self, path: Path | None, events: EventLog | None = None) -> None:
        """Opens nothing.

        Args:
          path: `metrics.jsonl`.
          events: those for TensorBoard; None: none are written.
        """
        self._path, self._events = path, events

    def add_text(self, title: str, text: str, step: int) -> None:
        """Adds a text to the TensorBoard events, if there are any."""
        if self._events is not None:
            self._events.add_text(title, text, step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; on return it is flushed to the operating system.

        Raises:
          HostError: a file cannot be written.
        """
        if self._path is not None:
            append_content(self._path, f"{json.dumps(record, allow_nan=False)}\n".encode())
        if self._events is not None:
            self._events.add_scalars(record)


def open_log(workdir: Workdir, config: Config, first_step: int) -> MetricsLog:
    """The log of a run, with TensorBoard events if `train.tensorboard` asks for them.

    Args:
      workdir: of the run.
      config: of the run.
      first_step: see `charjax.train.tensorboard.open_events`.
    """
    if not is_primary():
        return MetricsLog(None)
    has_events = config.train.tensorboard
    events = open_events(workdir.path, config, first_step=first_step) if has_events else None
    return MetricsLog(workdir.metrics, events)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; [] if there is no file.

    Raises:
      InputError: a line is not a record.
    """
    if not path.exists():
        return []
    return [_record(line, path, i) for i, line in enumerate(path.read_bytes().splitlines(), 1)]


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8, or deeply nested
        record = None
    is_record = isinstance(record, dict) and type(record.get("step")) is int
    if not is_record or not all(map(is_finite, record.values())):
        raise InputError(f"{path}: line {number} is not a record; correct or delete it")
    return cast(dict[str, Any], record)


def _plot_losses(axes: Any, groups: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Plots the losses of records that are grouped by validation text."""
    lines = (("train_loss", "training", "", "C0"), ("val_loss", "validation", ".", "C1"))
    for key, label, marker, color in lines:
        name = label
        for records in groups:
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                steps, losses = zip(*points, strict=True)
                axes.plot(steps, losses, color=color, label=name, marker=marker, linewidth=1)
                name = "_"  # one entry in the legend
    for records in groups[1:]:
        axes.axvline(records[0]["step"], color="gray", linewidth=0.5)


def figure_class() -> Any:
    """`matplotlib.figure.Figure`, which takes half a second to import."""
    # Silences its warnings about its cache: that it builds one, or has no folder to write it to.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws training and validation loss over steps as a PNG.

    At a change of the validation text there is a vertical line, and new curves begin. The best
    loss in the title is that on the last text.

    Raises:
      InputError: the path is a link, or another kind of file.
      HostError: the file cannot be written.
    """
    figure = figure_class()(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    by_val_text = itertools.groupby(records, lambda record: record.get("val_record", 0))
    groups = [list(group) for _, group in by_val_text]
    _plot_losses(axes, groups)
    if validated := [r for group in groups[-1:] for r in group if "val_loss" in r]:
        best = min(validated, key=lambda r: r["val_loss"])
        axes.axhline(best["val_loss"], color="gray", linewidth=0.5, linestyle=":")
        axes.set_title(f"best validation loss {best['val_loss']:.4f} at step {best['step']}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per character)")
    losses = [r["train_loss"] for r in records if "train_loss" in r]
    if losses:  # the loss of the first steps, log(vocabulary size), would flatten the rest
        low = min(losses + [r["val_loss"] for r in records if "val_loss" in r])
        high = sorted(losses)[-max(1, len(losses) // 20)]
        margin = 0.05 + 0.01 * high
        axes.set_ylim(low - margin, high + margin)
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    replace_content(path, image.getvalue())
