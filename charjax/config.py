"""Configuration of a run: frozen dataclasses whose fields have limits.

A file in `configs/` returns `to_config_dict(Config(...))`, whose fields the command line may
override (`--config.model.hidden=512`). `charjax.conditions.from_config_dict` converts the result
back to the frozen `Config` that all other modules use. "Off" is written 0 or "", never None,
because flags cannot override None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from charjax.errors import InputError
from charjax.schema import check_limits, choice, key_of, leaves, number

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# The fields that each batching mode reads, among those that not all modes read;
# `charjax.data.batches.BATCHINGS` has the modes.
BATCHING_FIELDS: dict[str, frozenset[str]] = {
    "stream": frozenset(),
    "windows": frozenset({"targets", "keep_partial", "stateful", "window_order"}),
    "sliding": frozenset({"targets", "keep_partial", "stateful", "window_order", "stride"}),
}
# The fields that each optimizer reads, among those that not all optimizers read;
# `charjax.train.optimizer` has the optimizers.
OPTIMIZER_FIELDS: dict[str, frozenset[str]] = {
    "adamw": frozenset({"b1", "b2", "eps", "eps_hat", "weight_decay"}),
    "adam": frozenset({"b1", "b2", "eps", "eps_hat"}),
    "rmsprop": frozenset({"b2", "eps"}),
    "sgd": frozenset({"b1"}),
    "muon": frozenset({"b1", "b2", "eps", "weight_decay"}),
    "schedule_free": frozenset({"b1", "b2", "eps", "weight_decay"}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into batches."""

    corpus: str = "shakespeare"  # a named corpus; unused if `path` is given
    # A file, a folder (its *.txt), a glob such as texts/**/*.txt, a zip archive, or several of
    # these with commas between them; files may be compressed (.gz, .bz2, .xz, .zst).
    path: str = ""
    offline: str = ""  # a named corpus to fall back on, with a notice; "": stop with exit 4
    unit: str = choice("codepoint", "byte")  # what a token is
    encoding: str = "utf-8"  # utf-8 also reads UTF-16 and UTF-32 with a byte order mark
    newlines: str = choice("keep", "unix")  # unix: CR LF and CR become LF
    lowercase: bool = False
    start: str = ""  # keep the text from this marker on; "": from the beginning
    end: str = ""  # keep the text up to this marker; "": to the end
    # What a document is. A row is a CSV row; a delimiter is the text in `delimiter`.
    documents: str = choice("none", "lines", "files", "rows", "delimiter")
    delimiter: str = ""  # with documents=delimiter: the text between two documents
    # A boundary token stands before the first document and after each one; the carry is reset at
    # it. False, as in older versions: no such token, and windows never cross documents, so that
    # documents shorter than a window are left out.
    boundary: bool = True
    shuffle_documents: bool = False  # before the split; the order is a function of the seed
    columns: tuple[int | str, ...] = ()  # with rows: columns to join by a space; none: all
    header: bool = False  # with rows: the first row has names; implied by a name in `columns`
    csv_delimiter: str = ""  # with rows: the character between columns; "": detected
    vocabulary: str = choice("sorted", "appearance")  # the order of the tokens
    unk: bool = False  # add a last token [UNK] for unknown characters
    split: tuple[float, ...] = (0.9, 0.1, 0.0)  # train, validation, test
    # What decides the split of a document. position: where it is in the text, so that splits are
    # contiguous. hash: its text, so that it stays in its split when documents are added to the
    # corpus, and equal documents are in one split; see `charjax.data.tokens.document_hash`.
    split_by: str = choice("position", "hash")
    # Validation characters that an evaluation in training reads, in parts spread evenly over the
    # split. 0: all of them, but at most four million; see `charjax.inference.scoring.evaluate`.
    eval_chars: int = number(0, 0)
    batching: str = key_of(BATCHING_FIELDS)
    batch_size: int = number(32, 1)  # sequences in the global batch
    seq_len: int = number(64, 1)  # tokens predicted per sequence and step
    stride: int = number(1, 1)  # with sliding: tokens between window starts
    targets: str = choice("all", "last")  # the loss is on all tokens or the last
    # With windows, sliding: keep an epoch's last, smaller batch. Always kept with a boundary.
    keep_partial: bool = False
    # With windows, sliding: each batch row starts from the carry of the same row of the batch
    # before, though the text does not continue there, as with Keras' stateful layers.
    stateful: bool = False
    # With windows, sliding: the random order of the windows. table: by a table of all of them, as
    # in versions without this field. keyed: by a keyed permutation, for any number of windows.
    # auto: a table up to four million windows; resolved when a run starts.
    window_order: str = choice("auto", "table", "keyed")


class CellSizes(NamedTuple):
    """What a layer of a cell has, see `charjax.model.cells`.

    Attributes:
      gates: number of gates; the kernels have `gates * hidden` columns.
      states: number of arrays in the carry; the first one is the output.
      reset_after: the reset gate multiplies the candidate's hidden gate, after the matmul
        (cuDNN, Keras). The candidate is then the last gate; its hidden gate has a bias of
        its own, and its input gate another gradient than its hidden gate.
      has_recurrent_kernel: whether the gates read the state before.
      rounds: in how many rounds input and state gate each other before the gates read them, see
        `charjax.model.mogrifier`; 0: in none.
    """

    gates: int
    states: int = 1
    reset_after: bool = False
    has_recurrent_kernel: bool = True
    rounds: int = 0

    @property
    def has_int8(self) -> bool:
        """Whether all that its kernels multiply is in [-1, 1], as int8 weights need it."""
        return self.has_recurrent_kernel and not self.rounds


CELL_SIZES = {
    "gru": CellSizes(gates=3, reset_after=True),
    "lstm": CellSizes(gates=4, states=2),
    "rnn": CellSizes(gates=1),
    "mingru": CellSizes(gates=2, has_recurrent_kernel=False),
    "minlstm": CellSizes(gates=3, has_recurrent_kernel=False),
    "mogrifier": CellSizes(gates=4, states=2, rounds=5),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """embedding -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense."""

    # mingru, minlstm: without a recurrent kernel, see `charjax.model.cells`. mogrifier: an LSTM
    # whose input and state gate each other, see `charjax.model.mogrifier`; recurrence=scan runs it.
    cell: str = key_of(CELL_SIZES)
    hidden: int = number(512, 1, 1 << 16)
    layers: int = number(1, 1, 64)
    embed: int = number(128, 0, 1 << 16)  # 0: one-hot input
    dropout: float = number(0.0, 0, 0.99)  # on the last layer's output
    dropout_in: float = number(0.0, 0, 0.99)  # on the embedding, or the one-hot input
    dropout_between: float = number(0.0, 0, 0.99)  # between layers
    # On parameters, one mask a step: see `charjax.model.weight_dropout`.
    dropout_recurrent: float = number(0.0, 0, 0.99)  # on the recurrent kernels ("weight-drop")
    dropout_embed: float = number(0.0, 0, 0.99)  # on the embedding of whole tokens
    # The initializers of the parameters, or whose defaults: see `charjax.model.initializers`.
    init: str = choice("orthogonal", "keras", "keras_glorot", "torch")
    # Of matmul inputs; the carry is float32. auto: the fastest on these devices, see
    # `charjax.runtime.dtypes.fast_dtype`; chosen when a run starts, and kept when it resumes.
    # int8: quantized weights, see `charjax.model.quantization`; to sample and score, not to train.
    dtype: str = choice("float32", "bfloat16", "auto", "int8")
    # The implementation of the recurrence, see `charjax.model.recurrence.api`. fast: the fastest
    # that this machine has; a resumed run keeps what it was saved with. c: C loops, compiled for
    # this CPU when first needed. xla: jax.lax.scan with a hand-written gradient. scan: nn.scan over
    # the cell, the reference. persistent: kernels for one NVIDIA Hopper GPU in bfloat16, which keep
    # the recurrent weights on chip. parallel: for cells without a recurrent kernel.
    recurrence: str = choice("fast", "c", "xla", "scan", "persistent", "parallel")
    # Rematerialization: keep only the carry at every so many tokens and recompute the rest in
    # the backward pass. Less memory, more time, the same result. 0: keep everything.
    remat: int = number(0, 0)

    @property
    def summary(self) -> str:
        """The cell, the number of layers and their units, such as "gru 1 x 512"."""
        return f"{self.cell} {self.layers} x {self.hidden}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer, the learning-rate schedule, gradient clipping and weight averaging."""

    name: str = key_of(OPTIMIZER_FIELDS)
    learning_rate: float = number(2e-3, 0)  # the schedule's peak
    # adam, adamw: decay of the mean; sgd, muon: momentum; schedule_free: weight of the average
    b1: float = number(0.9, 0, 0.999999)
    b2: float = number(0.99, 0, 0.999999)  # all but sgd: decay of the square
    eps: float = number(1e-8, 0)
    # adam, adamw: add eps before the bias correction of the square, which damps the first steps:
    # the "epsilon hat" of Kingma and Ba (2015), and what Keras and TensorFlow do.
    eps_hat: bool = False
    # adamw, muon, schedule_free: on kernels, not on biases or the embedding
    weight_decay: float = number(0.0, 0)
    schedule: str = choice("constant", "cosine", "linear", "onecycle")
    warmup: float = number(0.0, 0, 1)  # fraction of all steps, linear from 0
    final: float = number(0.0, 0, 1)  # last learning rate as a fraction of the peak
    clip_norm: float = number(1.0, 0)  # global norm of the gradient; 0: no clipping
    # Parts that are not trained, with commas between: embedding, layer_0, layer_1, ..., output.
    freeze: str = ""
    # With train.init_from: a factor on the learning rate of the weights from there. 0: none.
    imported_rate: float = number(0.0, 0, 1000)
    # Decay of the averaged weights; 0: none. It is less in the first 9 / (1 - ema) steps, where the
    # average is one over about the last tenth of the run so far: see `charjax.train.step`.
    ema: float = number(0.0, 0, 0.999999)

    @property
    def averages(self) -> bool:
        """Whether evaluations, samples and exports use averaged weights."""
        return self.ema > 0 or self.name == "schedule_free"

    @property
    def frozen(self) -> list[str]:
        """The parts in `freeze`."""
        return [part for part in self.freeze.split(",") if part]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """When a run ends, and how often it evaluates, saves, samples and logs.

    The first of the limits that is reached ends the run.
    """

    max_steps: int = number(0, 0)
    max_epochs: float = number(0.0, 0)
    max_minutes: float = number(0.0, 0)  # of training, over all resumptions
    eval_every: int = number(0, 0)  # steps; 0: once an epoch
    checkpoint_every: int = number(0, 0)  # steps; 0: with every evaluation
    checkpoint_minutes: float = number(10.0, 0)  # also this long after the last one; 0: never
    sample_every: int = number(0, 0)  # steps; 0: with every evaluation
    log_every: int = number(50, 0)  # steps; 0: with every evaluation
    # Steps that one call runs on the devices, at most; the number divides every interval above.
    # 0: ten, or 50 where the devices slice their own batches, see `charjax.train.device_tokens`.
    steps_per_dispatch: int = number(0, 0)
    patience: int = number(0, 0)  # evaluations without a new best; 0: never stop early
    keep: int = number(2, 1)  # newest checkpoints kept, beside the best
    scheduled_sampling: float = number(0.0, 0, 1)  # final fraction of inputs that the model samples
    scheduled_ramp: int = number(1000, 1)  # steps over which that fraction rises from 0
    # The logits of a training step are divided by it; those of evaluations, samples and exports
    # are not. Below 1, the trained model is less sure of itself: temperature scaling (Guo et al.
    # 2017, arXiv:1706.04599), folded into the weights of the output.
    softmax_temperature: float = number(1.0, 0.1, 10)
    max_skipped: int = number(10, 0)  # non-finite updates skipped before the run stops
    tensorboard: bool = False  # also write events for TensorBoard
    # A run's folder, or one of a model hub, or builtin, whose best weights the first step starts
    # from; "": they are drawn at random. A resumed run does not read it again.
    init_from: str = ""
    init_characters: str = choice("keep", "drop")  # characters of that model that the text lacks


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """The samples that a run writes."""

    prompt: str = ""  # "": the start token, see `Vocab.start`
    num_chars: int = number(300, 0, 10**6)
    temperatures: tuple[float, ...] = (0.5, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How a step is distributed over devices and time; the result is the same for all values."""

    backend: str = choice("jit", "pmap")
    accumulate: int = number(1, 1)  # micro-batches run one after another, to save memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that defines a run.

    Making one checks nothing; `charjax.conditions.from_config_dict`, and with it the commands and
    `charjax.train.loop.train`, check the limits of each field and the conditions between them,
    and models and datasets the limits of their own.
    """

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


def pick_variant(variants: Mapping[str, Config], name: str) -> ConfigDict:
    """The variant of a config file that `--config=FILE:NAME` asks for; "" is the default one.

    Raises:
      InputError: the file has no such variant.
    """
    if name not in variants:
        raise InputError(
            f"--config: there is no variant {name!r}; leave it out, or take one of "
            f"{', '.join(filter(None, variants))}"
        )
    return to_config_dict(variants[name])


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old, new) for every field that differs."""
    before, after = dict(leaves(to_dict(old))), dict(leaves(to_dict(new)))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def check_model_limits(model: ModelConfig) -> None:
    """Raises InputError for a model that Python code has made: its type, or a field's limits.

    Of another version's run, `recurrence` may have another value.
    """
    if not isinstance(model, ModelConfig):
        raise InputError(
            f"config.model of type {type(model).__name__}: must be a ModelConfig, as in what "
            "charjax.conditions.from_config_dict returns"
        )
    for field in dataclasses.fields(model):
        if field.name != "recurrence":
            value, path = getattr(model, field.name), f"config.model.{field.name}"
            check_limits(value, field.metadata, path)
