"""The metrics of a run: a log with one JSON object per record, and the loss curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from charjax.errors import InputError
from charjax.workdir import append, replace


class MetricsLog:
    """Appends records to `metrics.jsonl`, and to TensorBoard events if asked.

    Keys are among `step`, `epoch`, `time_s` (seconds of training), `train_loss` and
    `val_loss` (nats per character), `val_bpc` (bits per character), `chars_per_second`,
    `learning_rate`, `grad_norm` and `skipped`.
    """

    def __init__(self, path: Path, *, tensorboard: bool) -> None:
        self._path = path
        self._events = _event_writer(path.parent) if tensorboard else None

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        if self._events is not None:
            self._events.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record, which the operating system has when this returns.

        Raises:
          HostError: the file cannot be written.
        """
        append(self._path, json.dumps(record, allow_nan=False) + "\n")
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])


class NoLog:
    """Drops all records: for the processes of a run that write no files."""

    def close(self) -> None:
        """Nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


Log: TypeAlias = MetricsLog | NoLog


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, or [] where there is no file.

    Raises:
      InputError: a line is not a record.
    """
    if not path.exists():
        return []
    return [_record(line, path, i) for i, line in enumerate(path.read_bytes().splitlines(), 1)]


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        record = None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise InputError(f"{path}: line {number} is not a record; correct or delete it")
    return record


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws training and validation loss over steps as a PNG.

    Raises:
      InputError: the path is a link, or another kind of file.
      HostError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes half a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, marker in (("train_loss", "training", ""), ("val_loss", "validation", ".")):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, linewidth=1)
    validated = [r for r in records if "val_loss" in r]
    if validated:
        best = min(validated, key=lambda r: r["val_loss"])
        axes.axhline(best["val_loss"], color="gray", linewidth=0.5, linestyle=":")
        axes.set_title(f"best validation loss {best['val_loss']:.4f} at step {best['step']}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per character)")
    losses = [r["train_loss"] for r in records if "train_loss" in r]
    if losses:  # the loss of the first steps, log(vocabulary size), would flatten the rest
        low = min(losses + [r["val_loss"] for r in validated])
        high = sorted(losses)[-max(1, len(losses) // 20)]
        margin = 0.05 + 0.01 * high
        axes.set_ylim(low - margin, high + margin)
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    replace(path, image.getvalue())


def _event_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "config.train.tensorboard=True: tensorboardX is not installed; "
            "run: pip install 'charjax[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
