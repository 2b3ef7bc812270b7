"""Sizes and steps of a run on a text that comes without a config, from a table and a warm-up.

The table is `choices.json` beside this file. `charjax.train.choice` records what was chosen.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from importlib import resources
from typing import Any, NamedTuple

from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_dict
from charjax.runtime.display import counted

_MAX_EVALUATIONS = 10  # in a run
_EVALUATION_FRACTION = 0.15  # of a run's time, at most, for all of its evaluations
# What a warm-up does not measure, estimated from runs of two minutes on two cores.
_SAVING_S = 0.6  # seconds of a checkpoint and samples, at every evaluation
_MIN_STEPS = 10  # whatever the time
_STEPS_FRACTION = 0.98  # of the time: the rest reads batches and writes records
# A text is a list, one item a line, if its lines are many, short, of few words, mostly distinct.
_MIN_ITEMS, _MAX_ITEM_CHARS, _MAX_ITEM_WORDS, _MIN_DISTINCT = 100, 40, 3, 0.5
_DOCUMENTS = {  # by `DataConfig.documents`
    "lines": "one item a line: each",
    "files": "each file",
    "rows": "each row",
    "delimiter": "each part between delimiters",
}


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
        train=TrainConfig(max_steps=1000, eval_every=100),
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
    steps = max(_MIN_STEPS, int((rest - evaluations * evaluation_s) / speed.step_s))
    multiple = next(n for n in (10, 5, 1) if n * evaluations <= steps)
    steps = steps // multiple * multiple
    # Rounded up, so that the last evaluation, at the end, may follow sooner than the others.
    every = math.ceil(steps / evaluations / multiple) * multiple
    log_every = min(every, config.train.log_every)
    train = replace(config.train, max_steps=steps, eval_every=every, log_every=log_every)
    # So the average spans about a tenth of the run.
    ema = round(min(0.999, max(0.9, 1 - 10 / steps)), 6)
    return replace(config, train=train, optim=replace(config.optim, ema=ema))


def describe_choice(
    config: Config, sized: Config, row: Row, chars: int, minutes: float, speed: Speed
) -> list[str]:
    """What was chosen and why, in three lines.

    Args:
      config: what the run has, with the user's flags.
      sized: that of `with_steps`, whose fields the flags may have replaced.
      row: of the table.
      chars: length of the text.
      minutes: how long the command may take.
      speed: the measured speed of the config.
    """
    model, data = config.model, config.data
    by = "measured" if row.measured else "extrapolated, not measured"
    rate = data.batch_size * data.seq_len / speed.step_s
    steps = _why_steps(config.train.max_steps, sized.train.max_steps)
    return [
        f"chosen: {counted(chars, 'character')}, {_kind_of_text(data)}",
        f"chosen: {model.summary}, embedding {model.embed}, dropout "
        f"{model.dropout:g}, weight-drop {model.dropout_recurrent:g}, {data.batch_size} x "
        f"{data.seq_len} characters a step; the table's row for {row.chars:,} characters, "
        f"{row.minutes} min, {row.device} ({by}){_replaced(config, sized)}",
        f"chosen: {steps} what is left of --minutes={minutes:g} at the {rate:,.0f} characters a "
        "second of a warm-up; --config.FIELD=VALUE overrides",
    ]


def _replaced(config: Config, sized: Config) -> str:
    """What the flags changed of the values that come from the table, for the end of a sentence."""
    given, chosen = to_dict(config), to_dict(sized)
    names = [("data", name) for name in ("batch_size", "seq_len")]
    names += [(section, name) for section in ("model", "optim") for name in given[section]]
    changed = [
        f"{section}.{name}={given[section][name]}"
        for section, name in names
        if given[section][name] != chosen[section][name]
    ]
    return f", changed by --config to {', '.join(changed)}" if changed else ""


def _why_steps(max_steps: int, chosen: int) -> str:
    """The number of steps and where it is from, for a sentence that goes on with the time."""
    if max_steps != chosen:
        return f"train.max_steps={max_steps:,}, as --config says, instead of {chosen:,} for"
    if chosen == _MIN_STEPS:
        return f"{chosen} steps, the fewest there are, for"
    return f"{chosen:,} steps, as many as fit into"


def _kind_of_text(data: DataConfig) -> str:
    """What the documents are; of a file of CSV that is one text, how to read its rows."""
    if data.documents != "none":
        shuffled = ", shuffled before the split" if data.shuffle_documents else ""
        return f"{_DOCUMENTS[data.documents]} is a document{shuffled}"
    if data.path.lower().endswith((".csv", ".tsv")):
        return (
            "one text, with its commas and quotes; --config.data.documents=rows reads each row as "
            "a document, --config.data.columns=NAME columns of it"
        )
    return "one text"
