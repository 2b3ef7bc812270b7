"""A custom training loop from charjax's public pieces.

python examples/custom_loop.py [STEPS]

`charjax train` adds evaluation, checkpoints, resuming and logs.
"""

import sys
import time

import jax

from charjax import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Sampling,
    TrainConfig,
    init_state,
    load_dataset,
    make_optimizer,
    make_step,
    sample_texts,
    score,
)


def main(steps: int) -> float:
    """Trains on Python's language reference; returns the validation loss in nats per character."""
    config = Config(
        data=DataConfig(corpus="python_docs", batch_size=16, seq_len=32),
        model=ModelConfig(cell="gru", hidden=96, embed=32),
        optim=OptimConfig(learning_rate=5e-3),
        train=TrainConfig(max_steps=steps),
    )
    dataset = load_dataset(config)
    optimizer = make_optimizer(config.optim, steps)
    state = init_state(config, len(dataset.vocab), optimizer)
    train_step = jax.jit(make_step(config, len(dataset.vocab), optimizer), donate_argnums=0)

    started = time.monotonic()
    for step in range(steps):
        state, metrics = train_step(state, dataset.batches(step))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}  loss {metrics.loss:.4f}  {time.monotonic() - started:.1f} s")

    loss = score(config.model, state.params, dataset.splits.val.ids[:20_000]).nats_per_char
    options = {"num_chars": 200, "num_samples": 1, "sampling": Sampling(temperature=0.5)}
    (written,) = sample_texts(config.model, state.params, dataset.vocab, "The ", **options)
    print(f"validation loss {loss:.4f}\nThe {written}")
    return loss


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
