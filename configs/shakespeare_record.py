"""Tiny Shakespeare: a larger model, trained for longer than `configs/shakespeare.py`.

    python launch.py --config=configs/shakespeare_record.py

docs/quality.md has the losses of three seeds, and how the recipe was chosen. Variants: `nietzsche`
and `grimm` are the same recipe on the texts of those tutorials, prepared and split as there, in
fewer steps, as the texts are shorter.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, pick_variant

SHAKESPEARE = Config(
    data=DataConfig(corpus="shakespeare", batch_size=32, seq_len=64),
    model=ModelConfig(cell="lstm", hidden=768, embed=128, dropout=0.5, dtype="auto"),
    optim=OptimConfig(
        name="adamw",
        learning_rate=1e-2,
        b2=0.99,
        weight_decay=0.3,
        schedule="linear",
        warmup=0.1,
        final=0.01,
        clip_norm=1.0,
        ema=0.999,
    ),
    train=TrainConfig(max_steps=10000, eval_every=1000, log_every=50, softmax_temperature=0.9),
)
# 10,000 steps are 20.4 epochs of tiny Shakespeare.
NIETZSCHE = replace(
    SHAKESPEARE,
    data=replace(SHAKESPEARE.data, corpus="nietzsche", lowercase=True),
    train=replace(SHAKESPEARE.train, max_steps=0, max_epochs=20.4),
)
GRIMM = replace(
    SHAKESPEARE,
    data=replace(
        SHAKESPEARE.data,
        corpus="grimm",
        newlines="unix",
        start="THE GOOSE-GIRL",
        end="END OF THE PROJECT GUTENBERG",
    ),
    train=replace(SHAKESPEARE.train, max_steps=0, max_epochs=10.0, eval_every=200),
)


def get_config(variant: str = "") -> ConfigDict:
    variants = {"": SHAKESPEARE, "nietzsche": NIETZSCHE, "grimm": GRIMM}
    return pick_variant(variants, variant)
