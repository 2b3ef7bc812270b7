"""The brothers Grimm with one LSTM, after a chapter of Python Machine Learning, third edition.

    python launch.py --config=configs/tutorials/grimm.py
    python launch.py --config=configs/tutorials/grimm.py:better

Setup:    the text between two markers, 266,073 characters, 70 distinct; embedding 256,
          LSTM 512, 1,628,742 parameters; 5,217 shuffled windows of 50, batch 64, 82 steps
          an epoch, the last one of 33 windows; Adam as in Keras; 20 epochs.
Results:  training loss 2.968 after the first epoch, 1.1505 after the last.
Minutes:  see docs/tutorials.md.

The tutorial multiplies the logits by a scale factor, the inverse of the temperature: its
factors 1, 2 and 0.5 are the temperatures 1, 0.5 and 2. To write a character, the tutorial
reads all the text before it again: a misspelt name keeps its maximum length from having an
effect. charjax keeps the carry, which gives the same in constant time and memory.

Variants: `held_out` keeps a tenth of the text for validation. `better` also keeps the
carry over a contiguous stream, regularizes, averages the weights and takes the best
checkpoint, in no more steps. `scheduled` is `better` with scheduled sampling of up to a
quarter of the inputs, as the tutorials suggest.
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
        corpus="grimm",
        newlines="unix",
        start="THE GOOSE-GIRL",
        end="END OF THE PROJECT GUTENBERG",
        split=(1.0, 0.0, 0.0),
        batching="windows",
        keep_partial=True,
        batch_size=64,
        seq_len=50,
    ),
    model=ModelConfig(cell="lstm", hidden=512, embed=256, init="keras"),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, b2=0.999, eps=1e-7, eps_hat=True, clip_norm=0.0
    ),
    train=TrainConfig(max_epochs=20.0, log_every=0),
    sample=SampleConfig(prompt="THE GOOSE-GIRL", num_chars=500, temperatures=(1.0, 0.5, 2.0)),
)
HELD_OUT = replace(PLAIN, data=replace(PLAIN.data, split=(0.9, 0.1, 0.0)))
BETTER = replace(
    HELD_OUT,
    data=replace(HELD_OUT.data, batching="stream", keep_partial=False),
    model=replace(PLAIN.model, init="orthogonal", dropout=0.5, dropout_in=0.2),
    optim=OptimConfig(
        name="adamw", learning_rate=4e-3, schedule="linear", warmup=0.05, final=0.01, ema=0.99
    ),
)
SCHEDULED = replace(
    BETTER, train=replace(BETTER.train, scheduled_sampling=0.25, scheduled_ramp=1480)
)


def get_config(variant: str = "") -> ConfigDict:
    variants = {"": PLAIN, "held_out": HELD_OUT, "better": BETTER, "scheduled": SCHEDULED}
    return pick_variant(variants, variant)
