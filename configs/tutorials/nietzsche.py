"""Nietzsche with one LSTM, after the text generation chapter of Deep Learning with Python.

    python launch.py --config=configs/tutorials/nietzsche.py
    python launch.py --config=configs/tutorials/nietzsche.py:better

System:   lower-cased, 600,893 characters, 57 symbols, one-hot; LSTM 128, 102,585 parameters;
          200,278 windows of 60 with stride 3, whose next character alone is predicted;
          batch 128, 1,565 steps an epoch, the last one partial; RMSprop 0.01 as in Keras.
          Up to 60 epochs in the text, nine in the code shown: nine here.
Figure:   none is printed; 400 characters from one seed text at four temperatures are.
Minutes:  docs/tutorials.md has those on two CPU cores and on a GPU, as far as measured.

Variants: `held_out` is the same with a tenth of the text kept for validation. `better`
reads contiguous streams with the carry kept and predicts every character: a step is as
large, and has sixty times the targets. It needs a third of the steps.
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
