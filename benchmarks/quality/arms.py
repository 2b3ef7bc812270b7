"""Studies: recipes, and arms that change one thing each, on the last tenth of the training part.

They train on the first 81 % of a text and are evaluated on the next 9 %. The last 10 %, the
validation part of every published figure, is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

_DEVELOPMENT = "data.split=(0.81,0.09,0.1) sample.num_chars=0 train.sample_every=100000"


@dataclass(frozen=True)
class Arm:
    """A change of the recipe.

    Attributes:
      name: its name in the table.
      change: what differs, in words.
      expected: a guess about the loss, from before its run ended.
      fields: values of config fields that replace those of the recipe.
    """

    name: str
    change: str
    expected: str
    fields: str = ""


@dataclass(frozen=True)
class Study:
    """Arms of one recipe; the first is the recipe itself.

    Attributes:
      config: the name of a shipped config.
      fields: values of config fields that make it the recipe.
      arms: the recipe's and its changes.
    """

    config: str
    fields: str
    arms: tuple[Arm, ...]

    def flags(self, arm: Arm) -> list[str]:
        """The flags of `launch.py` for an arm."""
        return [f"--config.{value}" for value in f"{self.fields} {arm.fields}".split()]


_ARMS = (
    Arm("lstm", "the recipe", "the reference"),
    Arm("gru", "GRU instead of LSTM", "equal within 0.01", "model.cell=gru"),
    Arm("mingru", "minGRU", "worse: 1.548 is published", "model.cell=mingru"),
    Arm("mingru-3", "minGRU, three layers", "about 1.55", "model.cell=mingru model.layers=3"),
    Arm("minlstm", "minLSTM", "worse: 1.555 is published", "model.cell=minlstm"),
    Arm("mogrifier", "Mogrifier LSTM", "better by step", "model.cell=mogrifier"),
    Arm("muon", "Muon", "better by step, worse by minute", "optim.name=muon"),
    Arm(
        "schedule-free",
        "schedule-free AdamW",
        "equal",
        "optim.name=schedule_free optim.schedule=constant optim.final=0 optim.ema=0",
    ),
    Arm("lr-12e-3", "1.5 times the learning rate", "unknown", "optim.learning_rate=1.2e-2"),
    Arm("weight-drop", "weight-drop 0.3", "worse", "model.dropout_recurrent=0.3"),
    Arm(
        "steps-9000",
        "9,000 steps, dropout 0.4",
        "better: 2.5 times as long",
        "train.max_steps=9000 train.eval_every=900 model.dropout=0.4",
    ),
    Arm(
        "steps-10000",
        "10,000 steps, dropout 0.4, 1.5 times the learning rate",
        "better than steps-9000",
        "train.max_steps=10000 train.eval_every=1000 model.dropout=0.4 optim.learning_rate=1.2e-2",
    ),
    Arm(
        "width-640",
        "hidden 640, 6,600 steps, dropout 0.5",
        "better: as long as steps-9000",
        "model.hidden=640 train.max_steps=6600 train.eval_every=660 model.dropout=0.5",
    ),
    Arm(
        "width-768",
        "hidden 768, 10,000 steps, dropout 0.5, 1.25 times the learning rate",
        "better: 1.325",
        "model.hidden=768 train.max_steps=10000 train.eval_every=1000 model.dropout=0.5 "
        "optim.learning_rate=1e-2",
    ),
)
_PIECES = (
    Arm("whole", "the recipe", "the reference"),
    Arm("no-dropout", "without dropout", "worse by 0.05", "model.dropout=0"),
    Arm("no-decay", "without weight decay", "worse by 0.02", "optim.weight_decay=0"),
    Arm("no-temperature", "softmax temperature 1", "worse by 0.01", "train.softmax_temperature=1"),
    Arm("no-average", "the last step's weights", "worse by 0.008", "optim.ema=0"),
)
STUDIES = {
    # The LSTM of `configs/shakespeare.py` with 3,600 steps of 32 x 64 characters.
    "arms": Study(
        "shakespeare",
        f"{_DEVELOPMENT} model.dtype=bfloat16 optim.learning_rate=8e-3 model.dropout=0.3 "
        "train.max_steps=3600 train.eval_every=600",
        _ARMS,
    ),
    "ablation": Study("shakespeare_record:grimm", _DEVELOPMENT, _PIECES),
}
