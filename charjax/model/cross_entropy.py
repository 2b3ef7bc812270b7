"""The cross entropy of the network's outputs, projected to logits, with the targets."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import ModelConfig
from charjax.model.matmul import dense
from charjax.model.recurrence import api as recurrence


def cross_entropy(
    config: ModelConfig,
    kernel: Float[Array, "features vocab"],
    bias: Float[Array, " vocab"],
    x: Float[Array, "features time batch"],
    targets: Int[Array, "time batch"],
) -> Float[Array, "time batch"]:
    """The cross entropy of the logits `dense(kernel, bias, x)` with the targets, in nats.

    Where the recurrence runs in C, this does too: the softmax and its gradient are then computed
    while the logits are in cache, and the logits of all positions are never stored.

    Args:
      config: the model: the dtype of the matmul operands, and the choice of the recurrence.
      kernel: of the projection.
      bias: of the projection.
      x: outputs of the last layer, float32.
      targets: token ids; one outside the vocabulary has a cross entropy of NaN.
    """
    dtype, targets = jnp.dtype(config.dtype), targets.astype(jnp.int32)
    if x.size and recurrence.resolve(config, x.shape[2]).implementation == "c":
        # Imported on use: it needs the compiled library.
        from charjax.model.recurrence.c import build
        from charjax.model.recurrence.c.cross_entropy import cross_entropy as in_c
        from charjax.model.recurrence.c.library import Library

        library = build.load()
        assert isinstance(library, Library)  # see `recurrence.c.ops.supports`
        return in_c(library, dtype, kernel, bias, x, targets)
    logits = dense(kernel, bias, x, dtype)
    targets = jnp.where(targets < 0, len(bias), targets)  # optax counts them from the last token
    # Over the first axis: the logits are feature-major in memory, see `CharRNN`.
    return softmax_cross_entropy_with_integer_labels(logits, targets, axis=0)
