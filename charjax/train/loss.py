"""The loss of a batch and its gradient, over the whole sequence or in blocks and microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from charjax.config import Config
from charjax.data.batches import Batch
from charjax.model.carry import document_resets
from charjax.model.cross_entropy import cross_entropy
from charjax.model.network import CharRNN, Head, RowKeys
from charjax.model.weight_dropout import drop_weights
from charjax.types import Carry, Count, PRNGKey, PyTree, Scalar


class DropoutKeys(NamedTuple):
    """The keys of one step's dropout.

    Attributes:
      rows: one key per sequence, for its activations.
      weights: for the parameters; the same on every device.
    """

    rows: RowKeys
    weights: PRNGKey


# (params, carry, batch, dropout keys) -> (summed cross entropy in nats, final carry)
TotalNats: TypeAlias = Callable[[PyTree, Carry, Batch, DropoutKeys], tuple[Scalar, Carry]]
# (params, carry, batch, dropout keys, number of targets in the global batch) ->
# ((loss in nats per character, final carry), gradient of the loss)
LossAndGrad: TypeAlias = Callable[
    [PyTree, Carry, Batch, DropoutKeys, Count], tuple[tuple[Scalar, Carry], PyTree]
]


def make_total_nats(config: Config, vocab_size: int, boundary_id: int | None = None) -> TotalNats:
    """The cross entropy of a batch, summed over its targets, in nats.

    With `model.remat` the sequence is cut into blocks of that many characters. Only the carries
    between blocks are stored; the backward pass recomputes the rest (`jax.checkpoint`).

    Args:
      config: the run.
      vocab_size: number of tokens.
      boundary_id: the token at which the carry resets, see `document_resets`; None for no resets.
    """
    network = CharRNN(config.model, vocab_size)
    block_len = config.model.remat
    last_only = config.data.targets == "last" and not block_len

    def total_nats(
        params: PyTree, carry: Carry, batch: Batch, keys: DropoutKeys
    ) -> tuple[Scalar, Carry]:
        inputs = jnp.asarray(batch.inputs)
        resets = document_resets(inputs, boundary_id)
        params = drop_weights(config.model, params, keys.weights)
        predicted = slice(-1 if last_only else None, None)
        targets, mask = (jnp.asarray(x)[:, predicted] for x in (batch.targets, batch.mask))
        nats, carry = network.run(
            params,
            inputs,
            carry,
            keys.rows,
            resets=resets,
            last_only=last_only,
            head=_make_head(config, targets),
        )
        return _sum(jnp.where(mask, nats, 0.0)), carry

    def total_nats_in_blocks(
        params: PyTree, carry: Carry, batch: Batch, keys: DropoutKeys
    ) -> tuple[Scalar, Carry]:
        def block_nats(carry: Carry, block: Any) -> tuple[Carry, Scalar]:
            inputs, targets, mask = block
            nats, carry = total_nats(params, carry, Batch(inputs, targets, mask, batch.reset), keys)
            return carry, nats

        blocks = [_blocks(x, block_len) for x in (batch.inputs, batch.targets, batch.mask)]
        # In a scan, XLA cannot merge the recomputation with the forward pass anyway.
        carry, nats = jax.lax.scan(
            jax.checkpoint(block_nats, prevent_cse=False), carry, tuple(blocks)
        )
        return jnp.sum(nats), carry

    return total_nats_in_blocks if block_len else total_nats


def _make_head(config: Config, targets: Int[Array, "batch predicted"]) -> Head:
    """What computes the cross entropy with the targets from the outputs of the last layer."""
    temperature = config.train.softmax_temperature

    def head(kernel: Array, bias: Array, outputs: Array, _: DTypeLike) -> Array:
        kernel, bias = kernel / temperature, bias / temperature
        return cross_entropy(config.model, kernel, bias, outputs, targets.T)

    return head


def _sum(nats: Float[Array, "batch predicted"]) -> Scalar:
    """The sum over each sequence, then over sequences.

    One sum over all would differ by 1e-6 with the number of devices.
    """
    # By a matmul, since XLA would merge two `jnp.sum` into one.
    rows = jnp.dot(nats, jnp.ones(nats.shape[1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(rows)


def _blocks(x: Any, length: int) -> Array:
    """[batch, time] -> [blocks, batch, length]."""
    return jnp.asarray(x).reshape(x.shape[0], -1, length).swapaxes(0, 1)


def make_loss_and_grad(total_nats: TotalNats) -> LossAndGrad:
    """The mean cross entropy over the targets of the global batch, and its gradient."""

    def loss(
        params: PyTree, carry: Carry, batch: Batch, keys: DropoutKeys, num_targets: Count
    ) -> tuple[Scalar, Carry]:
        nats, carry = total_nats(params, carry, batch, keys)
        return nats / num_targets, carry

    return jax.value_and_grad(loss, has_aux=True)


def accumulate(loss_and_grad: LossAndGrad, num_microbatches: int) -> LossAndGrad:
    """Gradient accumulation: the same loss and gradient, summed over microbatches.

    A microbatch has every `num_microbatches`-th sequence, so that the carry of a sequence stays on
    the same device.
    """

    def split(x: Array) -> Array:
        return x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def accumulated(
        params: PyTree, carry: Carry, batch: Batch, keys: DropoutKeys, num_targets: Count
    ) -> tuple[tuple[Scalar, Carry], PyTree]:
        def add(sums: PyTree, microbatch: Any) -> tuple[PyTree, Carry]:
            carry, part, row_keys = microbatch
            part_keys = keys._replace(rows=row_keys)
            (loss, carry), grads = loss_and_grad(params, carry, part, part_keys, num_targets)
            return jax.tree.map(jnp.add, sums, (loss, grads)), carry

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (loss, grads), carries = jax.lax.scan(
            add, zeros, jax.tree.map(split, (carry, batch, keys.rows))
        )
        return (loss, jax.tree.map(join, carries)), grads

    return accumulated
