"""The one schema of a run: frozen dataclasses, their limits, and their way to and from flags.

A file in `configs/` returns `to_config_dict(Config(...))`, whose fields the
command line may override (`--config.model.hidden=512`); `from_config_dict`
turns the result back into the frozen `Config` that everything below sees.
"Off" is written 0 or "", never None, because a None cannot be overridden.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from charjax.errors import InputError
from charjax.schema import build, choice, leaves, number

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which text, and how it becomes batches."""

    corpus: str = "shakespeare"  # a named corpus; unused where `path` is given
    path: str = ""  # a file, a folder or a glob such as texts/**/*.txt
    offline: str = ""  # a named corpus to fall back on, loudly; "": stop with exit 4
    unit: str = choice("codepoint", "byte")  # what one symbol is
    encoding: str = "utf-8"
    newlines: str = choice("keep", "unix")  # unix: CR LF and CR become LF
    lowercase: bool = False
    start: str = ""  # keep the text from this marker on; "": from the beginning
    end: str = ""  # keep the text up to this marker; "": to the end
    # What one document is; windows never cross documents. A row is a CSV row.
    documents: str = choice("none", "lines", "files", "rows")
    columns: tuple[int, ...] = ()  # with rows: the CSV columns to join by a blank
    vocabulary: str = choice("sorted", "appearance")  # the order of the symbols
    unk: bool = False  # reserve a last symbol [UNK] for characters never seen
    split: tuple[float, ...] = (0.9, 0.1, 0.0)  # train, validation, test; contiguous
    batching: str = choice("stream", "windows", "sliding")
    batch_size: int = number(32, 1)  # lanes or windows of the whole (global) batch
    seq_len: int = number(64, 1)  # characters predicted per lane and step
    stride: int = number(1, 1)  # with sliding: characters between window starts
    targets: str = choice("all", "last")  # the loss is on all characters or the last
    keep_partial: bool = False  # with windows, sliding: keep an epoch's last, smaller batch
    # With windows, sliding: a row starts from the carry that the row before it in its lane
    # left, though the text does not go on there, as in Keras' stateful layers.
    stateful: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """embedding -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense."""

    cell: str = choice("gru", "lstm", "rnn")
    hidden: int = number(512, 1, 1 << 16)
    layers: int = number(1, 1, 64)
    embed: int = number(128, 0, 1 << 16)  # 0: one-hot input
    dropout: float = number(0.0, 0, 0.99)  # on the last layer's output
    dropout_in: float = number(0.0, 0, 0.99)  # on the embedding
    dropout_between: float = number(0.0, 0, 0.99)  # between layers
    init: str = choice("orthogonal", "keras", "keras_glorot", "torch")  # whose first weights
    # Of matmul inputs; state is float32. auto: what the devices multiply fastest, see
    # `charjax.runtime.dtypes.fast_dtype`; a run decides once, when it begins.
    # int8: whole numbers, see `charjax.model.quantization`, to write and score with, not to train.
    dtype: str = choice("float32", "bfloat16", "auto", "int8")
    # How the loop over time runs, see `charjax.model.recurrence.api`. fast: the fastest
    # implementation that this machine has. c: C loops, compiled for this CPU when first needed.
    # xla: jax.lax.scan with a hand-written gradient. scan: the cell as it is written, the
    # reference. persistent: one NVIDIA Hopper GPU in bfloat16, recurrent weights kept on chip.
    recurrence: str = choice("fast", "c", "xla", "scan", "persistent")
    # Keep only the carry between blocks of so many characters and compute the rest again
    # in the backward pass: less memory for more time, the same result. 0: keep all.
    remat: int = number(0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer, its schedule, and what is done to gradients and weights."""

    name: str = choice("adamw", "adam", "rmsprop", "sgd")
    learning_rate: float = number(2e-3, 0)  # the schedule's peak
    b1: float = number(0.9, 0, 0.999999)  # adam, adamw: decay of the mean; sgd: momentum
    b2: float = number(0.99, 0, 0.999999)  # adam, adamw, rmsprop: decay of the square
    eps: float = number(1e-8, 0)
    # adam, adamw: add eps before the square's bias is corrected, which damps the first steps:
    # the "epsilon hat" of Kingma and Ba (2015), and what Keras and TensorFlow do.
    eps_hat: bool = False
    weight_decay: float = number(0.0, 0)  # adamw, on kernels, not on biases or the embedding
    schedule: str = choice("constant", "cosine", "linear", "onecycle")
    warmup: float = number(0.0, 0, 1)  # fraction of all steps, linear from 0
    final: float = number(0.0, 0, 1)  # last learning rate as a fraction of the peak
    clip_norm: float = number(1.0, 0)  # global norm of the gradient; 0: no clipping
    ema: float = number(0.0, 0, 0.999999)  # decay of the averaged weights; 0: none


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, and what happens on the way. The first limit reached ends the run."""

    max_steps: int = number(0, 0)
    max_epochs: float = number(0.0, 0)
    max_minutes: float = number(0.0, 0)  # of training, over all resumptions
    eval_every: int = number(0, 0)  # steps; 0: once an epoch
    checkpoint_every: int = number(0, 0)  # steps; 0: with every evaluation
    sample_every: int = number(0, 0)  # steps; 0: with every evaluation
    log_every: int = number(50, 0)  # steps; 0: with every evaluation
    steps_per_dispatch: int = number(10, 1)  # at most; divides every interval above
    patience: int = number(0, 0)  # evaluations without a new best; 0: never stop early
    keep: int = number(2, 1)  # newest checkpoints kept, beside the best
    scheduled_sampling: float = number(0.0, 0, 1)  # share of inputs that the model guessed itself
    scheduled_ramp: int = number(1000, 1)  # steps over which that share rises from 0
    max_skipped: int = number(10, 0)  # non-finite updates skipped before the run stops
    tensorboard: bool = False  # also write events for TensorBoard


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """The live samples of a run."""

    prompt: str = ""  # "": the start symbol, see `Vocab.start`
    num_chars: int = number(300, 0, 10**6)
    temperatures: tuple[float, ...] = (0.5, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How one step is spread over devices and time; no choice changes the result."""

    backend: str = choice("jit", "pmap")
    accumulate: int = number(1, 1)  # parts of the batch run one after another, for memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    seed: int = number(0, 0, 2**32 - 1)
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
    config: Config = build(Config, values, "config")
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
    if config.model.dtype == "int8":
        raise InputError(
            "config.model.dtype=int8: whole numbers have no gradient; train in float32, bfloat16 "
            "or auto, and give --weights=int8 to charjax sample and score"
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
    ("data.stateful", lambda c: c.data.batching != "stream", "windows or sliding batches"),
    ("data.encoding", lambda c: c.data.unit == "codepoint", "data.unit=codepoint"),
    ("model.dropout_between", lambda c: c.model.layers > 1, "two layers or more"),
    ("optim.weight_decay", lambda c: c.optim.name == "adamw", "optim.name=adamw"),
    ("optim.b1", lambda c: c.optim.name != "rmsprop", "adam, adamw or sgd"),
    ("optim.b2", lambda c: c.optim.name != "sgd", "adam, adamw or rmsprop"),
    ("optim.eps", lambda c: c.optim.name != "sgd", "adam, adamw or rmsprop"),
    ("optim.eps_hat", lambda c: c.optim.name in ("adam", "adamw"), "adam or adamw"),
    ("optim.warmup", lambda c: c.train.max_steps + c.train.max_epochs > 0, "max_steps"),
    ("optim.final", lambda c: c.optim.schedule != "constant", "a schedule that decays"),
    ("train.scheduled_sampling", lambda c: c.data.seq_len > 1, "data.seq_len of 2 or more"),
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
