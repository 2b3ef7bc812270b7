"""The arms: one change each against the same recipe, chosen on the last tenth of the training part.

The recipe is the LSTM of `configs/shakespeare.py` with 3,600 steps of 32 x 64 characters, a
learning rate of 8e-3 and dropout 0.3. It trains on the first 81 % of tiny Shakespeare and is
evaluated on the next 9 %; the last 10 %, the validation part of every published figure, is not
read.
"""

from __future__ import annotations

from dataclasses import dataclass

RECIPE = (
    *("--config.data.split=(0.81,0.09,0.1)", "--config.optim.learning_rate=8e-3"),
    *("--config.sample.num_chars=0", "--config.train.sample_every=100000"),
    *("--config.model.dtype=bfloat16", "--config.model.dropout=0.3"),
    *("--config.train.max_steps=3600", "--config.train.eval_every=600"),
)


@dataclass(frozen=True)
class Arm:
    """A change of the recipe.

    Attributes:
      name: its name in the table.
      change: what differs, in words.
      expected: a guess about the loss, from before its run ended.
      flags: config flags, which come after those of `RECIPE`.
    """

    name: str
    change: str
    expected: str
    flags: tuple[str, ...] = ()


def _config(**fields: object) -> tuple[str, ...]:
    """Flags from names such as `model__dropout`."""
    return tuple(f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items())


ARMS = (
    Arm("lstm", "the recipe", "the reference"),
    Arm("gru", "GRU instead of LSTM", "equal within 0.01", _config(model__cell="gru")),
    Arm("mingru", "minGRU", "worse: 1.548 is published", _config(model__cell="mingru")),
    Arm("minlstm", "minLSTM", "worse: 1.555 is published", _config(model__cell="minlstm")),
    Arm("mogrifier", "Mogrifier LSTM", "better by step", _config(model__cell="mogrifier")),
    Arm("muon", "Muon", "better by step, worse by minute", _config(optim__name="muon")),
    Arm(
        "schedule-free",
        "schedule-free AdamW",
        "equal",
        _config(
            optim__name="schedule_free",
            optim__schedule="constant",
            optim__final=0.0,
            optim__ema=0.0,
        ),
    ),
    Arm("lr-4e-3", "half the learning rate", "worse", _config(optim__learning_rate=4e-3)),
    Arm("lr-12e-3", "1.5 times the learning rate", "unknown", _config(optim__learning_rate=1.2e-2)),
    Arm("input-0.1", "dropout 0.1 on the embedding", "better", _config(model__dropout_in=0.1)),
    Arm("weight-drop", "weight-drop 0.3", "worse", _config(model__dropout_recurrent=0.3)),
    Arm(
        "steps-9000",
        "9,000 steps, dropout 0.4",
        "better: 2.5 times as long",
        _config(train__max_steps=9000, train__eval_every=900, model__dropout=0.4),
    ),
    Arm(
        "steps-10000",
        "10,000 steps, dropout 0.4, 1.5 times the learning rate",
        "better than steps-9000",
        _config(
            train__max_steps=10000,
            train__eval_every=1000,
            model__dropout=0.4,
            optim__learning_rate=1.2e-2,
        ),
    ),
    Arm(
        "width-640",
        "hidden 640, 6,600 steps, dropout 0.5",
        "better: as long as steps-9000",
        _config(
            model__hidden=640, train__max_steps=6600, train__eval_every=660, model__dropout=0.5
        ),
    ),
)
