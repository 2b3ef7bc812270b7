"""A config for a text that comes without one: sizes by a table, steps by a timed warm-up.

The table is `choices.json` beside this file. What was chosen is recorded in the run's folder, and
the same command resumes from that record and never chooses again.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from charjax import schema
from charjax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    from_saved,
    to_dict,
)
from charjax.data.corpus import load_corpus
from charjax.errors import InputError
from charjax.runtime.files import read_regular
from charjax.workdir import Workdir
from charjax.workdir import replace as replace_content

_logger = logging.getLogger(__name__)

DEFAULT_MINUTES = 4.0
_EVALUATIONS, _EVALUATION_FRACTION = 10, 0.15  # at most; of the time
_MAX_RECORD_BYTES = 2**20
# A text of one item a line, such as names: many short lines, of few words and mostly distinct.
_MIN_ITEMS, _MAX_ITEM_CHARS, _MAX_ITEM_WORDS, _MIN_DISTINCT = 100, 40, 3, 0.5


class Row(NamedTuple):
    """A row of the table: the sizes for a device, a length of the text, and minutes.

    Attributes:
      device: "cpu" or "gpu"; others are as a gpu.
      chars: characters of the text.
      minutes: of training.
      cell: of `ModelConfig`, as are hidden, embed and dropout.
      hidden: units.
      embed: size of the embedding.
      dropout: on the outputs.
      batch_size: of `DataConfig`, as is seq_len.
      seq_len: characters a sequence and step.
      learning_rate: the peak.
      epochs: to train at most, since more would overfit; 0: no limit but the time.
      measured: whether it won on a grid; otherwise it is extrapolated.
    """

    device: str
    chars: int
    minutes: int
    cell: str
    hidden: int
    embed: int
    dropout: float
    batch_size: int
    seq_len: int
    learning_rate: float
    epochs: int
    measured: bool


class Speed(NamedTuple):
    """What a warm-up measures, in seconds.

    Attributes:
      step_s: a training step.
      compile_s: compiling the training step.
      evaluation_s: an evaluation.
    """

    step_s: float
    compile_s: float
    evaluation_s: float


class _Record(NamedTuple):
    """The content of the record in a run's folder."""

    minutes: float
    config: Any
    chosen: list[str]


def find_row(chars: int, minutes: float, device: str) -> Row:
    """The row of the table that is nearest, by the ratios of characters and minutes."""
    table = json.loads(resources.files("charjax.train").joinpath("choices.json").read_text("utf-8"))
    device = "cpu" if device == "cpu" else "gpu"
    rows = [Row(**values) for values in table["rows"] if values["device"] == device]

    def distance(row: Row) -> float:
        return abs(math.log(row.chars / chars)) + abs(math.log(row.minutes / minutes))

    return min(rows, key=distance)


def has_items(text: str) -> bool:
    """Whether a text has one item a line, such as names, rather than prose or verse."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < _MIN_ITEMS:
        return False
    words = statistics.fmean(len(line.split()) for line in lines)
    long = sum(len(line) > _MAX_ITEM_CHARS for line in lines)
    distinct = len(set(lines)) / len(lines)
    return words <= _MAX_ITEM_WORDS and long <= len(lines) / 100 and distinct >= _MIN_DISTINCT


def sized_config(path: str, text: str, row: Row, devices: int) -> Config:
    """The config of a text by a row of the table, with a provisional number of steps."""
    items = has_items(text)
    batch, length = -(-row.batch_size // devices) * devices, row.seq_len
    train_chars = int(DataConfig().split[0] * len(text))
    while batch * (length + 1) > train_chars // 2 and batch > devices:
        batch = max(devices, batch // 2 // devices * devices)
    length = max(1, min(length, train_chars // (2 * batch) - 1))
    return Config(
        data=DataConfig(
            path=path,
            batch_size=batch,
            seq_len=length,
            documents="lines" if items else "none",
            shuffle_documents=items,
        ),
        model=ModelConfig(
            cell=row.cell, hidden=row.hidden, embed=row.embed, dropout=row.dropout, dtype="auto"
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=row.learning_rate,
            weight_decay=0.05,
            schedule="linear",
            warmup=0.1,
            final=0.01,
            ema=0.99,
        ),
        train=TrainConfig(max_steps=1000, eval_every=100, log_every=50),
    )


def with_steps(config: Config, speed: Speed, seconds_left: float, most: int = 0) -> Config:
    """The config whose training ends when the time is over, if the speed stays as measured.

    Args:
      config: the run.
      speed: as measured.
      seconds_left: to its end.
      most: steps at most; 0: as many as the time allows.
    """
    rest = seconds_left - speed.compile_s
    affordable = int(_EVALUATION_FRACTION * rest / speed.evaluation_s)
    evaluations = max(2, min(_EVALUATIONS, affordable))
    steps = max(10, int((rest - evaluations * speed.evaluation_s) / speed.step_s))
    steps = min(steps, max(10, most)) if most else steps
    coarse = next(n for n in (50, 10, 5, 1) if n * evaluations <= steps)
    every = steps // evaluations // coarse * coarse
    steps = steps // every * every
    train = replace(config.train, max_steps=steps, eval_every=every, log_every=min(every, 50))
    # The average is over a tenth of the run.
    ema = round(min(0.999, max(0.9, 1 - 10 / steps)), 6)
    return replace(config, train=train, optim=replace(config.optim, ema=ema))


def choose_config(
    path: str,
    workdir: Path,
    minutes: float | None,
    override: Callable[[Config], Config],
    measure: Callable[[Config], tuple[Speed, float]],
    devices: tuple[str, int],
) -> Config:
    """The config of the run in a workdir: the one recorded there, or one that is chosen now.

    Logs three lines that say what was chosen and why.

    Args:
      path: of the text, as `data.path` takes it.
      workdir: the run's folder.
      minutes: that the command may take; None: as recorded, or `DEFAULT_MINUTES`.
      override: what the user demands of a config.
      measure: config -> (its speed here, seconds since the command began).
      devices: the platform that JAX runs on, and the number of its devices.

    Raises:
      InputError: the folder holds a run with a config of its own, or one for other minutes.
    """
    files = Workdir(workdir)
    files.create()
    with files.lock():
        if files.choice.exists():
            return override(_recorded(files, path, minutes))
        if files.run_json.exists():
            raise InputError(
                f"{workdir}: holds a run that a config describes; resume it by the same --config, "
                "or choose another --workdir"
            )
        minutes = DEFAULT_MINUTES if minutes is None else minutes
        plain = override(Config(data=DataConfig(path=path), train=TrainConfig(max_steps=1)))
        text = load_corpus(plain.data).text
        row = find_row(len(text), minutes, devices[0])
        config = override(sized_config(path, text, row, devices[1]))
        speed, elapsed = measure(config)
        epoch = len(text) * config.data.split[0] / (config.data.batch_size * config.data.seq_len)
        config = override(
            with_steps(config, speed, 60 * minutes - elapsed, math.ceil(row.epochs * epoch))
        )
        chosen = describe_choice(config, row, len(text), minutes, speed)
        record = _Record(minutes, to_dict(config), chosen)
        files.write_choice(record._asdict())
    for line in chosen:
        _logger.info(line)
    return config


def keep_input(workdir: Path, data: bytes) -> str:
    """Keeps the text of standard input in the run's folder; returns its path.

    A resumed run reads the text that it has, and nothing needs to be given again.

    Raises:
      InputError: the text is empty, or the run in the folder has another one.
    """
    files = Workdir(workdir)
    files.create()
    if not files.choice.exists():
        if not data:
            raise InputError("TEXT: standard input is empty")
        replace_content(files.input, data)
    elif data and data != files.input.read_bytes():
        raise InputError(
            f"{files.input}: is another text than that of standard input; choose another --workdir"
        )
    return str(files.input)


def describe_choice(
    config: Config, row: Row, chars: int, minutes: float, speed: Speed
) -> list[str]:
    """What was chosen and why, in three lines."""
    items = config.data.documents == "lines"
    kind = "one item a line: each is a document, shuffled before the split" if items else "one text"
    model, data, train = config.model, config.data, config.train
    by = "measured" if row.measured else "extrapolated, not measured"
    rate = data.batch_size * data.seq_len / speed.step_s
    needed = (speed.compile_s + train.max_steps * speed.step_s) / 60
    limit = "what they allow"
    if row.epochs and needed < minutes / 2:
        limit = f"{row.epochs} epochs, since more would overfit"
    return [
        f"chosen: {chars:,} characters, {kind}",
        f"chosen: {model.cell} {model.layers} x {model.hidden}, embedding {model.embed}, dropout "
        f"{model.dropout:g}, {data.batch_size} x {data.seq_len} characters a step; the table's row "
        f"for {row.chars:,} characters, {row.minutes} min, {row.device} ({by})",
        f"chosen: {train.max_steps:,} steps in at most {minutes:g} minutes ({limit}), at the "
        f"{rate / 1000:.3g}k characters a second of a warm-up; --config.FIELD=VALUE overrides",
    ]


def _recorded(files: Workdir, path: str, minutes: float | None) -> Config:
    """The config that was chosen before, for the text at this path."""
    try:
        values = json.loads(read_regular(files.choice, _MAX_RECORD_BYTES).decode("utf-8"))
        record: _Record = schema.parse(_Record, values, files.choice.name)
        config = from_saved(record.config)
    except (ValueError, InputError) as error:
        raise InputError(
            f"{files.choice}: cannot be read ({error}); choose another --workdir"
        ) from None
    if minutes not in (None, record.minutes):
        raise InputError(
            f"--minutes={minutes:g}: {files.path} was started with {record.minutes:g}, which fixed "
            "its steps; leave the flag out, or choose another --workdir"
        )
    _logger.info(f"chosen: as recorded in {files.choice}")
    return replace(config, data=replace(config.data, path=path))
