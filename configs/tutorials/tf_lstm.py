"""Text generation with an RNN, the TensorFlow tutorial in its LSTM form.

    python launch.py --config=configs/tutorials/tf_lstm.py
    python launch.py --config=configs/tutorials/tf_lstm.py:better

Setup:    embedding 256, LSTM 1024, 65 characters, 5,330,241 parameters; 11,043 shuffled
          windows of 100, batch 64, 172 steps an epoch; Adam as in Keras; 10 epochs.
Results:  training loss 2.579 after the first epoch, 1.2095 after the tenth.
Minutes:  see docs/tutorials.md.

Variants: `held_out` keeps a tenth of the text for validation. `better` also keeps the
carry over a contiguous stream, regularizes, averages the weights and takes the best
checkpoint, in no more steps.
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
        corpus="shakespeare",
        split=(1.0, 0.0, 0.0),
        batching="windows",
        batch_size=64,
        seq_len=100,
        stateful=True,
    ),
    model=ModelConfig(cell="lstm", hidden=1024, embed=256, init="keras_glorot"),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, b2=0.999, eps=1e-7, eps_hat=True, clip_norm=0.0
    ),
    train=TrainConfig(max_epochs=10.0, log_every=0),
    sample=SampleConfig(prompt="ROMEO: ", num_chars=1000, temperatures=(1.0,)),
)
HELD_OUT = replace(PLAIN, data=replace(PLAIN.data, split=(0.9, 0.1, 0.0)))
BETTER = replace(
    HELD_OUT,
    data=replace(HELD_OUT.data, batching="stream", stateful=False),
    model=replace(PLAIN.model, init="orthogonal", dropout=0.4, dropout_in=0.1),
    optim=OptimConfig(
        name="adamw", learning_rate=3e-3, schedule="linear", warmup=0.05, final=0.01, ema=0.99
    ),
)


def get_config(variant: str = "") -> ConfigDict:
    return pick_variant({"": PLAIN, "held_out": HELD_OUT, "better": BETTER}, variant)
