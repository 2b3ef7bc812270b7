"""Nietzsche with one LSTM, after the text generation chapter of Deep Learning with Python.

    python launch.py --config=configs/tutorials/nietzsche.py
    python launch.py --config=configs/tutorials/nietzsche.py:better

Setup:    lower-cased, 600,893 characters, 57 distinct, one-hot; LSTM 128, 102,585 parameters;
          200,278 windows of 60 with stride 3, of which the loss is on the last target only;
          batch 128, 1,565 steps an epoch, the last one partial; RMSprop 0.01 as in Keras.
          The code runs nine epochs, and so does this config; a commented-out line has 59.
Results:  no loss is printed, but 400 characters from one prompt at four temperatures.
Minutes:  see docs/tutorials.md.

Variants: `held_out` keeps a tenth of the text for validation. `better` also reads
contiguous streams with the carry kept and predicts every character. A sequence has sixty
targets instead of one, so that a third of the steps is enough.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from charjax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    pick_variant,
)

PLAIN = Config(
    data=DataConfig(
        corpus="nietzsche",
        lowercase=True,
        split=(1.0, 0.0, 0.0),
        batching="sliding",
        stride=3,
        targets="last",
        keep_partial=True,
        batch_size=128,
        seq_len=60,
    ),
    model=ModelConfig(cell="lstm", hidden=128, embed=0, init="keras"),
    optim=OptimConfig(name="rmsprop", learning_rate=0.01, b2=0.9, eps=1e-7, clip_norm=0.0),
    train=TrainConfig(max_epochs=9.0, log_every=0),
    sample=SampleConfig(
        prompt="the slowly ascending ranks and classes, in which,\nthrough fo",
        num_chars=400,
        temperatures=(0.2, 0.5, 1.0, 1.2),
    ),
)
HELD_OUT = replace(PLAIN, data=replace(PLAIN.data, split=(0.9, 0.1, 0.0)))
BETTER = replace(
    HELD_OUT,
    data=DataConfig(
        corpus="nietzsche", lowercase=True, split=(0.9, 0.1, 0.0), batch_size=32, seq_len=60
    ),
    model=replace(PLAIN.model, init="orthogonal", dropout=0.1),
    optim=OptimConfig(
        name="adamw", learning_rate=1e-2, schedule="linear", warmup=0.05, final=0.01, ema=0.99
    ),
    train=TrainConfig(max_epochs=16.0, log_every=0),
)


def get_config(variant: str = "") -> ConfigDict:
    return pick_variant({"": PLAIN, "held_out": HELD_OUT, "better": BETTER}, variant)
