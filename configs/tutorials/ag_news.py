"""Headlines with a small LSTM, after the generative networks lesson of AI for Beginners.

    python launch.py --config=configs/tutorials/ag_news.py
    python launch.py --config=configs/tutorials/ag_news.py:better

Setup:    AG News, title and description of each row a document; characters in order of first
          appearance (82 in the train file), one-hot; LSTM 64; every overlapping window of
          100 inside a document; Adam 0.01 as in torch; one epoch. The lesson stops after 9,999
          documents, a batch each: --config.train.max_steps=9999 does as many steps.
          If the train file can be neither found nor downloaded, the test file takes its
          place, and the run says so.
Results:  the lesson prints no mean loss; single documents' losses fall from 4.40 to about 1.8.
Minutes:  see docs/tutorials.md.

The lesson makes one batch of each document. Its author suggests equal, shuffled batches
over all documents instead. charjax has only such batches; those of the plain variant have
about as many windows as one of the lesson's.

Variants: `held_out` keeps a tenth of the documents for validation. `better` also reads
contiguous streams with the carry kept, so that an epoch predicts every character once
instead of a hundred times. `deep` is `better` with what the author suggests next: two
layers, GRU and another size.
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
        corpus="ag_news",
        documents="rows",
        columns=(1, 2),
        # As in the lesson: no start and end, and windows within a document.
        boundary=False,
        csv_delimiter=",",
        vocabulary="appearance",
        split=(1.0, 0.0, 0.0),
        batching="sliding",
        batch_size=128,
        seq_len=100,
    ),
    model=ModelConfig(cell="lstm", hidden=64, embed=0, init="torch"),
    optim=OptimConfig(name="adam", learning_rate=0.01, b2=0.999, clip_norm=0.0),
    train=TrainConfig(max_epochs=1.0, eval_every=500, log_every=0),
    sample=SampleConfig(
        prompt="Today ", num_chars=300, temperatures=(0.0, 0.3, 0.8, 1.0, 1.3, 1.8)
    ),
)
HELD_OUT = replace(PLAIN, data=replace(PLAIN.data, split=(0.9, 0.1, 0.0)))
BETTER = replace(
    HELD_OUT,
    data=replace(HELD_OUT.data, batching="stream", batch_size=32),
    model=replace(PLAIN.model, init="orthogonal"),
    optim=OptimConfig(
        name="adamw", learning_rate=0.02, schedule="linear", warmup=0.05, final=0.01, ema=0.99
    ),
    train=TrainConfig(max_epochs=12.0, log_every=0),
)
DEEP = replace(BETTER, model=ModelConfig(cell="gru", layers=2, hidden=192, embed=0))


def get_config(variant: str = "") -> ConfigDict:
    variants = {"": PLAIN, "held_out": HELD_OUT, "better": BETTER, "deep": DEEP}
    return pick_variant(variants, variant)
