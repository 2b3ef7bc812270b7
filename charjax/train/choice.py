"""Chooses the config for `charjax train TEXT`: sizes from a table, steps from a timed warm-up.

The table is `choices.json` beside this file. The chosen config is recorded in the run's folder;
the same command reads it there when it resumes, and does not choose again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
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
from charjax.data.records import has_records
from charjax.errors import CharjaxError, InputError
from charjax.runtime.display import counted
from charjax.runtime.files import read_regular, replace_content
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)

DEFAULT_MINUTES = 4.0
_MAX_EVALUATIONS = 10  # in a run
_EVALUATION_FRACTION = 0.15  # of a run's time, at most, for all of its evaluations
# What a warm-up does not measure, estimated from runs of two minutes on two cores.
_SAVING_S = 0.6  # seconds of a checkpoint and samples, at every evaluation
_STEPS_FRACTION = 0.98  # of the time: the rest reads batches and writes records
_MAX_RECORD_BYTES = 2**20
# A text is a list, one item a line, if its lines are many, short, of few words, mostly distinct.
_MIN_ITEMS, _MAX_ITEM_CHARS, _MAX_ITEM_WORDS, _MIN_DISTINCT = 100, 40, 3, 0.5


class Row(NamedTuple):
    """A row of the table: what to use for a device, a length of text and a training time.

    Attributes:
      device: "cpu", or "gpu" for any accelerator.
      chars: length of the text, in characters.
      minutes: training time.
      measured: whether these values were the best of some that were tried; else extrapolated.
      data: fields of `DataConfig`.
      model: fields of `ModelConfig`.
      optim: fields of `OptimConfig`.
    """

    device: str
    chars: int
    minutes: int
    measured: bool
    data: dict[str, Any]
    model: dict[str, Any]
    optim: dict[str, Any]


class Speed(NamedTuple):
    """Durations measured in a warm-up, in seconds.

    Attributes:
      step_s: of a training step.
      compile_s: of compiling the training step.
      evaluation_s: of an evaluation.
    """

    step_s: float
    compile_s: float
    evaluation_s: float


class _ChoiceJson(NamedTuple):
    """The JSON of `choice.json` in a run's folder."""

    minutes: float
    config: Mapping[str, Any]
    chosen: list[str]


def load_rows() -> list[Row]:
    """The rows of the table."""
    table = json.loads(resources.files("charjax.train").joinpath("choices.json").read_text("utf-8"))
    return [Row(**values) for values in table["rows"]]


def find_row(chars: int, minutes: float, device: str) -> Row:
    """The nearest row of the table; the distance is in log characters and log minutes."""
    device = "cpu" if device == "cpu" else "gpu"
    rows = [row for row in load_rows() if row.device == device]

    def distance(row: Row) -> float:
        return abs(math.log(row.chars / chars)) + abs(math.log(row.minutes / minutes))

    return min(rows, key=distance)


def is_list(text: str) -> bool:
    """Whether a text is a list with one item a line, such as names, not prose or verse."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < _MIN_ITEMS:
        return False
    words = statistics.fmean(len(line.split()) for line in lines)
    long = sum(len(line) > _MAX_ITEM_CHARS for line in lines)
    distinct = len(set(lines)) / len(lines)
    return words <= _MAX_ITEM_WORDS and long <= len(lines) / 100 and distinct >= _MIN_DISTINCT


def sized_config(path: str, text: str, row: Row, devices: int) -> Config:
    """The config with the values of a row; `with_steps` replaces its number of steps."""
    documents = "lines" if is_list(text) else "none"
    table = DataConfig(**row.data)
    batch = -(-table.batch_size // devices) * devices
    train_chars = int(table.split[0] * len(text))
    while batch * (table.seq_len + 1) > train_chars // 2 and batch > devices:
        batch = max(devices, batch // 2 // devices * devices)
    length = max(1, min(table.seq_len, train_chars // (2 * batch) - 1))
    return Config(
        data=replace(
            table,
            path=path,
            batch_size=batch,
            seq_len=length,
            documents=documents,
            shuffle_documents=documents == "lines",
        ),
        model=ModelConfig(dtype="auto", **row.model),
        optim=OptimConfig(
            name="adamw", schedule="linear", warmup=0.1, final=0.01, ema=0.99, **row.optim
        ),
        train=TrainConfig(max_steps=1000, eval_every=100, log_every=50),
    )


def with_steps(config: Config, speed: Speed, seconds_left: float) -> Config:
    """The config with as many steps as the time allows at the measured speed.

    Args:
      config: the config to change.
      speed: the measured speed of this config.
      seconds_left: the time that remains for training.
    """
    rest = _STEPS_FRACTION * seconds_left - speed.compile_s
    evaluation_s = speed.evaluation_s + _SAVING_S
    affordable = int(_EVALUATION_FRACTION * rest / evaluation_s)
    evaluations = max(2, min(_MAX_EVALUATIONS, affordable))
    steps = max(10, int((rest - evaluations * evaluation_s) / speed.step_s))
    multiple = next(n for n in (10, 5, 1) if n * evaluations <= steps)
    steps = steps // multiple * multiple
    # Rounded up, so that the last evaluation, at the end, may follow sooner than the others.
    every = math.ceil(steps / evaluations / multiple) * multiple
    train = replace(config.train, max_steps=steps, eval_every=every, log_every=min(every, 50))
    # So the average spans about a tenth of the run.
    ema = round(min(0.999, max(0.9, 1 - 10 / steps)), 6)
    return replace(config, train=train, optim=replace(config.optim, ema=ema))


def choose_config(
    source: str | bytes,
    workdir: Path,
    minutes: float | None,
    override: Callable[[Config], Config],
    measure: Callable[[Config], tuple[Speed, float]],
    devices: tuple[str, int],
) -> Config:
    """The config of the run in a workdir: the one recorded there, else a newly chosen one.

    Logs in three lines what was chosen and why.

    Args:
      source: the text, as in `data.path`; or what standard input had, which is kept in the workdir.
        A resumed run reads what was kept, so that standard input may be empty then.
      workdir: the run's folder.
      minutes: how long the command may take; None for the recorded time or `DEFAULT_MINUTES`.
      override: applies the user's `--config.FIELD=VALUE` flags to a config.
      measure: config -> (its speed on this machine, seconds since the command began).
      devices: the platform of JAX, and the number of its devices.

    Raises:
      InputError: standard input is empty; or the folder holds a run that was started with --config,
        other --minutes or another text on standard input, or files that are not a run's; none of
        its files is written then.
    """
    files = Workdir(workdir)
    if source == b"" and not files.choice.exists():
        raise InputError("TEXT: standard input is empty")
    path = str(files.input) if isinstance(source, bytes) else source
    with files.claim():
        if files.choice.exists():
            if isinstance(source, bytes):
                _check_input(files.input, source)
            return override(_recorded(files, path, minutes))
        if files.run_json.exists():
            raise InputError(
                f"{workdir}: holds a run that was started with --config; resume it with the same "
                "--config, or choose another --workdir"
            )
        files.check_start()
        minutes = DEFAULT_MINUTES if minutes is None else minutes
        unsized = override(Config(data=DataConfig(path=path), train=TrainConfig(max_steps=1)))
        with _kept_input(files.input, source):
            text = load_corpus(unsized.data).text
            row = find_row(len(text), minutes, devices[0])
            config = override(sized_config(path, text, row, devices[1]))
            speed, elapsed = measure(config)
            config = override(with_steps(config, speed, 60 * minutes - elapsed))
            chosen = describe_choice(config, row, len(text), minutes, speed)
            files.write_choice(_ChoiceJson(minutes, to_dict(config), chosen)._asdict())
    for line in chosen:
        _logger.info(line)
    return config


@contextlib.contextmanager
def _kept_input(kept: Path, source: str | bytes) -> Iterator[None]:
    """Keeps what standard input had, unless no config can be chosen for it."""
    is_new = isinstance(source, bytes) and not kept.exists()
    if isinstance(source, bytes):
        if is_new:
            replace_content(kept, source)
        else:
            _check_input(kept, source)
    try:
        yield
    except CharjaxError:
        if is_new:  # so that the folder may have another text
            kept.unlink()
        raise


def _check_input(kept: Path, data: bytes) -> None:
    """Raises InputError if standard input had a text other than the one that the run has kept."""
    if data and not (kept.exists() and data == kept.read_bytes()):
        raise InputError(
            f"{kept}: is another text than that of standard input; choose another --workdir"
        )


def describe_choice(
    config: Config, row: Row, chars: int, minutes: float, speed: Speed
) -> list[str]:
    """What was chosen and why, in three lines."""
    model, data, train = config.model, config.data, config.train
    by = "measured" if row.measured else "extrapolated, not measured"
    rate = data.batch_size * data.seq_len / speed.step_s
    return [
        f"chosen: {counted(chars, 'character')}, {_kind_of_text(data)}",
        f"chosen: {model.cell} {model.layers} x {model.hidden}, embedding {model.embed}, dropout "
        f"{model.dropout:g}, weight-drop {model.dropout_recurrent:g}, {data.batch_size} x "
        f"{data.seq_len} characters a step; the table's row for {row.chars:,} characters, "
        f"{row.minutes} min, {row.device} ({by})",
        f"chosen: {train.max_steps:,} steps, as many as fit into --minutes={minutes:g} at the "
        f"{rate:,.0f} characters a second of a warm-up; --config.FIELD=VALUE overrides",
    ]


def _kind_of_text(data: DataConfig) -> str:
    """What the documents are; of a file of records, how to read its texts alone."""
    if data.documents == "lines":
        return "one item a line: each is a document, shuffled before the split"
    if data.documents == "none" and has_records(data.path):
        return (
            "one text, with the syntax of its JSON lines; `charjax pack --field=NAME` packs the "
            "texts of a field"
        )
    if data.documents == "none" and data.path.lower().endswith((".csv", ".tsv")):
        return (
            "one text, with its commas and quotes; --config.data.documents=rows reads each row as "
            "a document, --config.data.columns=NAME columns of it"
        )
    return "one text"


def _recorded(files: Workdir, path: str, minutes: float | None) -> Config:
    """The recorded config, with `data.path` replaced by `path`."""
    try:
        values = json.loads(read_regular(files.choice, _MAX_RECORD_BYTES).decode("utf-8"))
        record: _ChoiceJson = schema.parse(_ChoiceJson, values, files.choice.name)
        config = from_saved(record.config)
    except (ValueError, RecursionError, InputError) as error:
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
