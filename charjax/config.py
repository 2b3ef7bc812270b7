"""The one schema of a run: frozen dataclasses, their limits, and their way to and from flags.

A file in `configs/` returns `to_config_dict(Config(...))`, whose fields the
command line may override (`--config.model.hidden=512`); `from_config_dict`
turns the result back into the frozen `Config` that everything below sees.
"Off" is written 0 or "", never None, because a None cannot be overridden.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from charjax.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _number(default: int | float, low: int | float = 0, high: int | float = 2**31 - 1) -> Any:
    """A numeric field that must lie in [low, high]; counts fit the device's int32."""
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *others: str) -> Any:
    """A text field that must be one of the given words."""
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which text, and how it becomes batches."""

    corpus: str = "shakespeare"  # a named corpus; unused where `path` is given
    path: str = ""  # a file, a folder or a glob such as texts/**/*.txt
    offline: str = ""  # a named corpus to fall back on, loudly; "": stop with exit 4
    unit: str = _choice("codepoint", "byte")  # what one symbol is
    encoding: str = "utf-8"
    newlines: str = _choice("keep", "unix")  # unix: CR LF and CR become LF
    lowercase: bool = False
    start: str = ""  # keep the text from this marker on; "": from the beginning
    end: str = ""  # keep the text up to this marker; "": to the end
    # What one document is; windows never cross documents. A row is a CSV row.
    documents: str = _choice("none", "lines", "files", "rows")
    columns: tuple[int, ...] = ()  # with rows: the CSV columns to join by a blank
    vocabulary: str = _choice("sorted", "appearance")  # the order of the symbols
    unk: bool = False  # reserve a last symbol [UNK] for characters never seen
    split: tuple[float, ...] = (0.9, 0.1, 0.0)  # train, validation, test; contiguous
    batching: str = _choice("stream", "windows", "sliding")
    batch_size: int = _number(32, 1)  # lanes or windows of the whole (global) batch
    seq_len: int = _number(64, 1)  # characters predicted per lane and step
    stride: int = _number(1, 1)  # with sliding: characters between window starts
    targets: str = _choice("all", "last")  # the loss is on all characters or the last
    keep_partial: bool = False  # with windows, sliding: keep an epoch's last, smaller batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """embedding -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense."""

    cell: str = _choice("gru", "lstm", "rnn")
    hidden: int = _number(512, 1, 1 << 16)
    layers: int = _number(1, 1, 64)
    embed: int = _number(128, 0, 1 << 16)  # 0: one-hot input
    dropout: float = _number(0.0, 0, 0.99)  # on the last layer's output
    dropout_in: float = _number(0.0, 0, 0.99)  # on the embedding
    dropout_between: float = _number(0.0, 0, 0.99)  # between layers
    init: str = _choice("orthogonal", "keras", "keras_glorot", "torch")  # whose first weights
    dtype: str = _choice("float32", "bfloat16")  # of matmul inputs; state is float32
    recurrence: str = _choice("fast", "scan")
    # Keep only the carry between blocks of so many characters and compute the rest again
    # in the backward pass: less memory for more time, the same result. 0: keep all.
    remat: int = _number(0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer, its schedule, and what is done to gradients and weights."""

    name: str = _choice("adamw", "adam", "rmsprop", "sgd")
    learning_rate: float = _number(2e-3, 0)  # the schedule's peak
    b1: float = _number(0.9, 0, 0.999999)  # adam, adamw: decay of the mean; sgd: momentum
    b2: float = _number(0.99, 0, 0.999999)  # adam, adamw, rmsprop: decay of the square
    eps: float = _number(1e-8, 0)
    weight_decay: float = _number(0.0, 0)  # adamw, on kernels only
    schedule: str = _choice("constant", "cosine", "linear", "onecycle")
    warmup: float = _number(0.0, 0, 1)  # fraction of all steps, linear from 0
    final: float = _number(0.0, 0, 1)  # last learning rate as a fraction of the peak
    clip_norm: float = _number(1.0, 0)  # global norm of the gradient; 0: no clipping
    ema: float = _number(0.0, 0, 0.999999)  # decay of the averaged weights; 0: none


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, and what happens on the way. The first limit reached ends the run."""

    max_steps: int = _number(0, 0)
    max_epochs: float = _number(0.0, 0)
    max_minutes: float = _number(0.0, 0)  # of training, over all resumptions
    eval_every: int = _number(0, 0)  # steps; 0: once an epoch
    checkpoint_every: int = _number(0, 0)  # steps; 0: with every evaluation
    sample_every: int = _number(0, 0)  # steps; 0: with every evaluation
    log_every: int = _number(50, 0)  # steps; 0: with every evaluation
    steps_per_dispatch: int = _number(10, 1)  # at most; divides every interval above
    patience: int = _number(0, 0)  # evaluations without a new best; 0: never stop early
    keep: int = _number(2, 1)  # newest checkpoints kept, beside the best
    scheduled_sampling: float = _number(0.0, 0, 1)  # share of inputs that the model guessed itself
    scheduled_ramp: int = _number(1000, 1)  # steps over which that share rises from 0
    max_skipped: int = _number(10, 0)  # non-finite updates skipped before the run stops
    tensorboard: bool = False  # also write events for TensorBoard


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """The live samples of a run."""

    prompt: str = ""  # "": the start symbol, see `Vocab.start`
    num_chars: int = _number(300, 0, 10**6)
    temperatures: tuple[float, ...] = (0.5, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How one step is spread over devices and time; no choice changes the result."""

    backend: str = _choice("jit", "pmap")
    accumulate: int = _number(1, 1)  # parts of the batch run one after another, for memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    seed: int = _number(0, 0, 2**32 - 1)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    parallel: ParallelConfig = ParallelConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts (tuples stay tuples), for flags and for JSON."""
    return dataclasses.asdict(config)


def to_config_dict(config: Config) -> ConfigDict:
    """The config as the `ConfigDict` that a file in `configs/` returns."""
    from ml_collections import ConfigDict  # only configs and the command line need it

    return ConfigDict(to_dict(config))


def from_config_dict(values: Any) -> Config:
    """The frozen, validated `Config` of nested mappings, from flags or from JSON.

    Raises:
      InputError: a field is unknown, has the wrong type or lies outside its limits,
        or fields contradict each other.
    """
    config: Config = _build(Config, values, "config")
    _check_together(config)
    _check_all_act(config)
    return config


def pick_variant(variants: Mapping[str, Config], name: str) -> ConfigDict:
    """The variant of a config file that `--config=FILE:NAME` asks for; "" is the plain one.

    Raises:
      InputError: the file has no such variant.
    """
    if name not in variants:
        raise InputError(
            f"--config=...:{name}: no such variant; leave it out, "
            f"or take one of {', '.join(filter(None, variants))}"
        )
    return to_config_dict(variants[name])


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old, new) for every field that differs."""
    before, after = dict(leaves(to_dict(old))), dict(leaves(to_dict(new)))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field in nested mappings such as `to_dict` returns."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _build(schema: type, values: Any, where: str) -> Any:
    if not hasattr(values, "items"):  # a ConfigDict has it, yet is no Mapping
        raise InputError(f"{where}={values!r}: must be a mapping of fields to values")
    types = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise InputError(f"{where}: no field {unknown[0]!r}; there are {', '.join(fields)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        path, wanted = f"{where}.{name}", types[name]
        if dataclasses.is_dataclass(wanted):
            built[name] = _build(typing.cast(type, wanted), value, path)
        else:
            built[name] = _coerce(value, wanted, path)
            _check_limits(built[name], fields[name].metadata, path)
    return schema(**built)


def _coerce(value: Any, wanted: Any, path: str) -> Any:
    """The value as the wanted type; int widens to float and list to tuple, nothing else."""
    if typing.get_origin(wanted) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(wanted)[0]
        return tuple(_coerce(v, item, path) for v in value)
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is wanted:
        return value
    name = getattr(wanted, "__name__", str(wanted))
    raise InputError(f"{path}={value!r}: must be of type {name}, not {type(value).__name__}")


def _check_limits(value: Any, limits: Mapping[str, Any], path: str) -> None:
    if "choices" in limits and value not in limits["choices"]:
        raise InputError(f"{path}={value!r}: must be one of {', '.join(limits['choices'])}")
    if "low" in limits and not limits["low"] <= value <= limits["high"]:
        raise InputError(f"{path}={value}: must be from {limits['low']} to {limits['high']}")


def _check_together(config: Config) -> None:
    data, optim, train = config.data, config.optim, config.train
    if len(data.split) != 3 or not (min(data.split) >= 0 and abs(sum(data.split) - 1) <= 1e-6):
        raise InputError(
            f"config.data.split={data.split}: must be three fractions, "
            "train, validation and test, that add up to 1"
        )
    if data.split[0] == 0:
        raise InputError("config.data.split: the train fraction is 0, nothing would be learnt")
    if data.columns and data.documents != "rows":
        raise InputError("config.data.columns: only CSV rows have columns; set data.documents=rows")
    if data.targets == "last" and data.batching == "stream":
        raise InputError("config.data.targets=last: needs data.batching=sliding or windows")
    if config.model.remat and data.seq_len % config.model.remat:
        raise InputError(
            f"config.model.remat={config.model.remat}: must divide "
            f"config.data.seq_len={data.seq_len}, or be 0"
        )
    if any(not 0 <= t < math.inf for t in config.sample.temperatures):
        raise InputError(
            f"config.sample.temperatures={config.sample.temperatures}: "
            "each must be 0 (greedy) or a positive number"
        )
    if optim.schedule != "constant" and not (train.max_steps or train.max_epochs):
        raise InputError(
            f"config.optim.schedule={optim.schedule}: needs train.max_steps or "
            "train.max_epochs, to know where it ends; or take optim.schedule=constant"
        )
    if not (train.max_steps or train.max_epochs or train.max_minutes):
        raise InputError(
            "config.train: no limit is set; give train.max_steps, max_epochs or max_minutes"
        )


# Fields that act only together with others: (field, whether it acts, what it needs).
FIELD_NEEDS: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("data.stride", lambda c: c.data.batching == "sliding", "data.batching=sliding"),
    ("data.keep_partial", lambda c: c.data.batching != "stream", "windows or sliding batches"),
    ("data.encoding", lambda c: c.data.unit == "codepoint", "data.unit=codepoint"),
    ("model.dropout_between", lambda c: c.model.layers > 1, "two layers or more"),
    ("optim.weight_decay", lambda c: c.optim.name == "adamw", "optim.name=adamw"),
    ("optim.b1", lambda c: c.optim.name != "rmsprop", "adam, adamw or sgd"),
    ("optim.b2", lambda c: c.optim.name != "sgd", "adam, adamw or rmsprop"),
    ("optim.eps", lambda c: c.optim.name != "sgd", "adam, adamw or rmsprop"),
    ("optim.warmup", lambda c: c.train.max_steps + c.train.max_epochs > 0, "max_steps"),
    ("optim.final", lambda c: c.optim.schedule != "constant", "a schedule that decays"),
    ("train.scheduled_ramp", lambda c: c.train.scheduled_sampling > 0, "train.scheduled_sampling"),
    ("train.patience", lambda c: c.data.split[1] > 0, "a validation part in data.split"),
)


def _check_all_act(config: Config) -> None:
    """Refuses a field that was set and has no effect: nothing is ignored in silence."""
    default = dict(leaves(to_dict(Config())))
    for name, value in leaves(to_dict(config)):
        for field_name, acts, needed in FIELD_NEEDS:
            if name == field_name and value != default[name] and not acts(config):
                raise InputError(f"config.{name}={value!r}: has no effect here; needs {needed}")
