"""The rows of the goal tables in docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
      title: what is compared.
      device: cpu or gpu.
      benchmark: the benchmark whose result file has the figures.
      group: the group of figures in that file.
      ours: names of peers; the fastest counts.
      theirs: names of peers; the fastest counts. Empty: the goal is absolute.
      at_least: ratio of characters per second; with nothing in `theirs`, characters
        per second.
      at_most_s: instead of `at_least`, seconds that a training step may take, or a whole command.
    """

    title: str
    device: str
    benchmark: str
    group: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...] = ()
    at_least: float = 0.0
    at_most_s: float = 0.0

    @property
    def command(self) -> str:
        """The command that measures it."""
        return f"python -m benchmarks.performance.{self.benchmark} --device={self.device}"


TRAINING, BARE = "launch.py, training alone", "bare step"  # as in end_to_end
F32, BF16, INT8 = "charjax float32", "charjax bfloat16", "charjax int8"
TORCH = "torch float32"
# Cell and hidden size of `sweep --over_torch` -> what float32 and bfloat16 are to reach over torch.
SMALL_GOALS = {
    **{"gru 64": (4.7, 6.2), "gru 128": (3.2, 4.7), "gru 256": (2.7, 4.3), "gru 512": (2.0, 3.5)},
    **{f"lstm {hidden}": (1.7, 2.6) for hidden in (64, 128, 256)},
    "lstm 512": (1.6, 2.6),
}
KERAS = ("keras jax", "keras torch", "keras tensorflow")
KERAS_MIXED = tuple(f"{name} bfloat16" for name in KERAS)


def _train(
    device: str, cell: str, title: str, ours: str, theirs: tuple[str, ...], at: float
) -> Goal:
    return Goal(title, device, "train_step", cell, (ours,), theirs, at)


def _run(title: str, ours: str, theirs: str, at: float, device: str = "cpu") -> Goal:
    return Goal(title, device, "end_to_end", "shakespeare", (ours,), (theirs,), at)


def _sample(device: str, streams: int, theirs: tuple[str, ...], at: float, ours: str = F32) -> Goal:
    over = f" over {theirs[0]} in float32" if theirs else ", characters per second"
    title = f"sampling, GRU {ours.split()[1]}, {streams} stream{'s' * (streams > 1)}{over}"
    return Goal(title, device, "sample", f"gru {streams}", (ours,), theirs, at)


_MIXED = "bf16 over keras (best backend, float32 or mixed_bfloat16)"
_WHOLE = "`configs/shakespeare_gru.py`"
_WHOLE_RUN = f"{_WHOLE}, whole run over a plain flax `nn.RNN` loop in float32"
_SAME_IN_FLOAT32 = "the same run with `--config.model.dtype=float32` over that loop"

CPU = (
    _train("cpu", "gru", "GRU float32 over torch float32", F32, (TORCH,), 1.8),
    _train("cpu", "gru", "GRU float32 over flax `nn.RNN(GRUCell)`", F32, ("flax gru",), 1.5),
    _train("cpu", "lstm", "LSTM float32 over torch float32", F32, (TORCH,), 1.15),
    _train("cpu", "lstm", "LSTM float32 over flax `nn.RNN(LSTMCell)`", F32, ("flax lstm",), 1.5),
    _train("cpu", "lstm", "LSTM bf16 over torch bf16 autocast", BF16, ("torch bfloat16",), 1.1),
    _train("cpu", "gru", "GRU bf16 over torch float32", BF16, (TORCH,), 3.0),
    _train("cpu", "gru", "GRU float32 over keras (best backend)", F32, KERAS, 1.8),
    _train("cpu", "lstm", "LSTM float32 over keras (best backend)", F32, KERAS, 1.8),
    _train("cpu", "gru", f"GRU {_MIXED}", BF16, (*KERAS, *KERAS_MIXED), 1.8),
    _train("cpu", "lstm", f"LSTM {_MIXED}", BF16, (*KERAS, *KERAS_MIXED), 1.8),
    _run(_WHOLE_RUN, "launch.py", "plain flax loop", 2.0),
    _run(_SAME_IN_FLOAT32, "launch.py, float32", "plain flax loop", 2.0),
    _run("`launch.py`'s characters per second over the bare step's", TRAINING, BARE, 0.97),
    *(_sample("cpu", 1, ("torch eager",), 5.0, ours) for ours in (F32, INT8)),
    *(_sample("cpu", 1, ("plain scan",), 2.0, ours) for ours in (F32, INT8)),
    *(_sample("cpu", 64, ("plain scan",), 2.0, ours) for ours in (F32, BF16, INT8)),
)

_TORCH = ("torch float32", "torch bfloat16", "torch float16")
GPU = (
    _train("gpu", "gru", "GRU over torch's best dtype", BF16, _TORCH, 5.5),
    _train("gpu", "lstm", "LSTM over torch's best dtype", BF16, _TORCH, 2.8),
    _train("gpu", "gru batch 256", "GRU, batch 256, over torch's best dtype", BF16, _TORCH, 2.0),
    _train("gpu", "gru layers 2", "GRU, 2 layers, over torch's best dtype", BF16, _TORCH, 3.0),
    _train("gpu", "gru", "GRU over flax `nn.RNN` in float32", BF16, ("flax gru",), 5.0),
    _train("gpu", "lstm", "LSTM over flax `nn.RNN` in float32", BF16, ("flax lstm",), 5.0),
    Goal("a training step, GRU", "gpu", "train_step", "gru", (BF16,), at_most_s=1.2e-3),
    _run("`launch.py`'s characters per second over the bare step's", TRAINING, BARE, 0.97, "gpu"),
    Goal(f"{_WHOLE}, whole command, cold cache", "gpu", "runs", "shakespeare", (), at_most_s=14),
    _sample("gpu", 1, (), 100_000, BF16),
    _sample("gpu", 64, (), 5_000_000, BF16),
    _sample("gpu", 1, ("plain scan",), 3.0, BF16),
    _sample("gpu", 64, ("plain scan",), 1.8, BF16),
)
