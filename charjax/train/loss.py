"""What a batch costs: the nats of the characters that count, in one pass or block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import Config
from charjax.data.batches import Batch
from charjax.model.network import CharRNN, RowKeys
from charjax.types import Carry, PyTree, Scalar

TotalNats: TypeAlias = Callable[[PyTree, Carry, Batch, RowKeys], tuple[Scalar, Carry]]


def make_total_nats(config: Config, vocab_size: int) -> TotalNats:
    """The sum of nats over a batch as a function to differentiate.

    Returns:
      (parameters, carry, batch, a dropout key a lane) -> (nats of all characters that the
      mask counts, the carry after the last one). With `model.remat`, the backward pass
      keeps the carry between blocks of so many characters and nothing else.
    """
    network = CharRNN(config.model, vocab_size)
    block_len = config.model.remat
    last_only = config.data.targets == "last" and not block_len

    def total(params: PyTree, carry: Carry, batch: Batch, keys: RowKeys) -> tuple[Scalar, Carry]:
        logits, carry = network.run(
            params, jnp.asarray(batch.inputs), carry, keys, last_only=last_only
        )
        predicted = slice(-logits.shape[1], None)
        targets, mask = (jnp.asarray(x)[:, predicted] for x in (batch.targets, batch.mask))
        nats = softmax_cross_entropy_with_integer_labels(logits, targets)
        nats = jnp.where(mask, nats, 0.0)
        # Lane by lane first: one long sum rounds differently on other numbers of devices, to
        # 1e-6. As a product, since XLA would make one sum of two.
        lanes = jnp.dot(nats, jnp.ones(nats.shape[1]), precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(lanes), carry

    def blockwise(
        params: PyTree, carry: Carry, batch: Batch, keys: RowKeys
    ) -> tuple[Scalar, Carry]:
        def block(carry: Carry, texts: Any) -> tuple[Carry, Scalar]:
            inputs, targets, mask = texts
            nats, carry = total(params, carry, Batch(inputs, targets, mask, batch.reset), keys)
            return carry, nats

        texts = [_blocks(x, block_len) for x in (batch.inputs, batch.targets, batch.mask)]
        # In a scan nothing is there to merge the recomputation with, so no barrier is needed.
        carry, nats = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), carry, tuple(texts))
        return jnp.sum(nats), carry

    return blockwise if block_len else total


def _blocks(x: Any, length: int) -> Array:
    """[batch, time] as [blocks, batch, length]."""
    return jnp.asarray(x).reshape(x.shape[0], -1, length).swapaxes(0, 1)
