"""The conditions that a config must meet; configs from flags and from JSON, checked.

`charjax.config` has the fields, each with its limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from charjax.config import (
    BATCHING_FIELDS,
    CELL_SIZES,
    OPTIMIZER_FIELDS,
    Config,
    DataConfig,
    differences,
)
from charjax.errors import InputError
from charjax.schema import parse


def from_config_dict(values: Any) -> Config:
    """The frozen, validated `Config` of nested mappings, from flags or from JSON, or of another.

    Raises:
      InputError: a field is unknown, has the wrong type, is outside its limits, has no
        effect, or contradicts another field.
    """
    config = parse(Config, values, "config")
    _check_data(config.data)
    _check_run(config)
    parts = ["embedding"] * bool(config.model.embed)
    parts += [f"layer_{i}" for i in range(config.model.layers)] + ["output"]
    check_frozen(config.optim.frozen, parts)
    _check_no_field_is_unused(config)
    return config


def from_saved(values: Any) -> Config:
    """The `Config` of a saved run; of an older version, with the reading rules it had then.

    Raises:
      InputError: as `from_config_dict`.
    """
    data = values.get("data")
    if not isinstance(data, dict) or "documents" not in data:
        raise InputError("config.data: is missing, or has no documents")
    if "boundary" not in data and data["documents"] != "none":
        data = data | {"boundary": False}
        if data["documents"] == "rows":
            data |= {"csv_delimiter": ","}
    if "window_order" not in data and data.get("batching") not in (None, "stream"):
        data = data | {"window_order": "table"}
    return from_config_dict(values | {"data": data})


def for_dataset(values: Any) -> Config:
    """The `Config` of what `from_config_dict` takes, checked as far as a dataset depends on it.

    Raises:
      InputError: a value has the wrong type, is outside its limits, or contradicts another.
    """
    config = parse(Config, values, "config")
    _check_data(config.data)
    return config


def check_reading(data: DataConfig, given: Iterable[str]) -> None:
    """Checks a `DataConfig` of which the fields in `given` were set for one file, by flags.

    Raises:
      InputError: a field contradicts another one, or has no effect.
    """
    _check_data(data, "--")
    config = Config(data=data)
    for field, is_met, need in FIELD_NEEDS:
        name, needs = (words.replace("data.", "--") for words in (field, need))
        if name.removeprefix("--") in given and not is_met(config):
            raise InputError(f"{name}: has no effect here; needs {needs}")


def check_split(fractions: Sequence[float]) -> None:
    """Raises InputError for what are not the fractions of train, validation and test."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"config.data.split={fractions}: must be three fractions, "
            "train, validation and test, that add up to 1"
        )


def check_frozen(frozen: Collection[str], parts: Collection[str]) -> None:
    """Raises InputError for a part that the model, which has `parts`, lacks; and to train none."""
    for part in sorted({*frozen} - {*parts}):
        raise InputError(
            f"config.optim.freeze={part}: no such part; there are {', '.join(sorted({*parts}))}"
        )
    if {*frozen} == {*parts}:
        raise InputError("config.optim.freeze: leaves nothing to train; leave a part out")


def _check_data(data: DataConfig, prefix: str = "config.data.") -> None:
    check_split(data.split)
    if data.split[0] == 0:
        raise InputError("config.data.split: the train fraction is 0; make it larger")
    if data.columns and data.documents != "rows":
        raise InputError(f"{prefix}columns: only CSV rows have columns; set {prefix}documents=rows")
    is_one_byte = data.csv_delimiter.isascii() or data.unit != "byte"
    if len(data.csv_delimiter) > 1 or not is_one_byte or data.csv_delimiter in ('"', "\n", "\r"):
        raise InputError(
            f"{prefix}csv_delimiter={data.csv_delimiter!r}: must be one character, in "
            "bytes an ASCII one, no quote or line end, or empty to detect it"
        )
    if data.documents == "delimiter" and not data.delimiter:
        raise InputError(
            f"{prefix}documents=delimiter: set {prefix}delimiter to the text that "
            "separates documents"
        )
    names = [("columns", name) for name in data.columns if isinstance(name, str)]
    for field, text in [("delimiter", data.delimiter), *names]:
        letters = "".join(c for c in text if data.unit != "byte" or c.isascii())
        if data.lowercase and letters != letters.lower():
            raise InputError(
                f"{prefix}{field}={text!r}: {prefix}lowercase=True leaves no "
                "capitals in the text; write it in lower case"
            )


def _check_run(config: Config) -> None:
    """Refuses what contradicts across sections, and a run without an end."""
    model, seq_len, temperatures = config.model, config.data.seq_len, config.sample.temperatures
    if not (config.train.max_steps or config.train.max_epochs or config.train.max_minutes):
        raise InputError(
            "config.train: no limit is set; give train.max_steps, max_epochs or max_minutes"
        )
    if model.remat and seq_len % model.remat:
        raise InputError(
            f"config.model.remat={model.remat}: must divide config.data.seq_len={seq_len}, or be 0"
        )
    if model.dtype == "int8":
        raise InputError(
            "config.model.dtype=int8: quantized weights have no gradient; train in float32, "
            "bfloat16 or auto, and give --weights=int8 to charjax sample and score"
        )
    if min(temperatures, default=0) < 0:
        raise InputError(
            f"config.sample.temperatures={temperatures}: "
            "each must be 0 (greedy) or a positive number"
        )


class Need(NamedTuple):
    """What a field needs of other fields to have an effect."""

    field: str  # dotted, such as data.stride
    is_met: Callable[[Config], bool]
    text: str


def _needs_by_choice(
    section: str, choosing: str, fields_of: Mapping[str, frozenset[str]]
) -> Iterator[Need]:
    """The needs of the fields that only some values of the field `choosing` read."""
    for field in sorted(frozenset().union(*fields_of.values())):
        readers = " or ".join(value for value, fields in fields_of.items() if field in fields)

        def is_read(config: Config, field: str = field) -> bool:
            return field in fields_of[getattr(getattr(config, section), choosing)]

        yield Need(f"{section}.{field}", is_read, f"{section}.{choosing}={readers}")


def _needs_of_schedule_free() -> Iterator[Need]:
    """What contradicts schedule-free learning: other averages, and other learning rates."""
    text = "an optim.name other than schedule_free, which averages weights at a constant rate"
    for field in ("ema", "schedule", "imported_rate"):
        yield Need(f"optim.{field}", lambda c: c.optim.name != "schedule_free", text)
    text = "more than 0 with optim.name=schedule_free"
    yield Need("optim.b1", lambda c: c.optim.name != "schedule_free" or c.optim.b1 > 0, text)


# A field that needs another such field comes after it.
FIELD_NEEDS: tuple[Need, ...] = (
    *_needs_by_choice("data", "batching", BATCHING_FIELDS),
    *_needs_by_choice("optim", "name", OPTIMIZER_FIELDS),
    *_needs_of_schedule_free(),
    Need(
        "model.dropout_recurrent",
        lambda c: CELL_SIZES[c.model.cell].has_recurrent_kernel,
        "a model.cell with a recurrent kernel",
    ),
    Need("data.delimiter", lambda c: c.data.documents == "delimiter", "data.documents=delimiter"),
    Need("data.boundary", lambda c: c.data.documents != "none", "data.documents"),
    Need("data.shuffle_documents", lambda c: c.data.documents != "none", "data.documents"),
    Need("data.split_by", lambda c: c.data.documents != "none", "data.documents"),
    Need("data.header", lambda c: c.data.documents == "rows", "data.documents=rows"),
    Need("data.csv_delimiter", lambda c: c.data.documents == "rows", "data.documents=rows"),
    Need("data.encoding", lambda c: c.data.unit == "codepoint", "data.unit=codepoint"),
    Need("model.dropout_embed", lambda c: c.model.embed > 0, "model.embed"),
    Need("model.dropout_between", lambda c: c.model.layers > 1, "two layers or more"),
    Need("optim.warmup", lambda c: c.train.max_steps + c.train.max_epochs > 0, "train.max_steps"),
    Need("optim.schedule", lambda c: c.train.max_steps + c.train.max_epochs > 0, "train.max_steps"),
    Need("optim.final", lambda c: c.optim.schedule != "constant", "a schedule that decays"),
    Need("data.eval_chars", lambda c: c.data.split[1] > 0, "a validation split in data.split"),
    Need("train.scheduled_sampling", lambda c: c.data.seq_len > 1, "data.seq_len of 2 or more"),
    Need(
        "train.scheduled_ramp", lambda c: c.train.scheduled_sampling > 0, "train.scheduled_sampling"
    ),
    Need("train.init_characters", lambda c: bool(c.train.init_from), "train.init_from"),
    Need("optim.imported_rate", lambda c: bool(c.train.init_from), "train.init_from"),
    Need("train.patience", lambda c: c.data.split[1] > 0, "a validation split in data.split"),
)


def without_unused(values: Any, given: Collection[str]) -> Config:
    """A config with the default in each field that has no effect, but for the given ones.

    Raises:
      InputError: a field is unknown, has the wrong type or is outside its limits.
    """
    config = parse(Config, values, "config")
    for field, is_met, _ in FIELD_NEEDS:
        if field not in given and not is_met(config):
            section, name = field.split(".")
            part = getattr(config, section)
            part = replace(part, **{name: getattr(type(part)(), name)})
            config = replace(config, **{section: part})
    return config


def _check_no_field_is_unused(config: Config) -> None:
    """Refuses a field that was set but has no effect."""
    changed = differences(Config(), config)
    for field, is_met, need in FIELD_NEEDS:
        if field in changed and not is_met(config):
            value = changed[field][1]
            raise InputError(f"config.{field}={value!r}: has no effect here; needs {need}")
