"""The compiled program that runs a network over a chunk of a text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.sharding import Mesh

from charjax.config import ModelConfig
from charjax.model.carry import reset_carry
from charjax.model.decode import decode_sequence
from charjax.model.network import CharRNN
from charjax.model.recurrence.api import for_inference
from charjax.runtime import sharding
from charjax.runtime.compiler_options import network_compiler_options
from charjax.types import Carry, Logits, PyTree, Reset, Resets, Tokens

MAX_SEQUENCES = 64  # rows of a chunk

# (logits, targets) -> a tree of arrays [batch, time, ...].
Measure: TypeAlias = Callable[[Logits, Tokens], PyTree]


@functools.cache
def forward_program(
    config: ModelConfig, measure: Measure, mesh: Mesh
) -> Callable[..., tuple[Carry, PyTree]]:
    """(params, carry, reset, inputs, targets, resets) -> (carry, what the measure gives), jitted.

    Parameters are replicated and arrays [rows, ...] sharded by rows; every device has all results.

    Args:
      config: the architecture.
      measure: what it computes from the logits.
      mesh: the devices that take part.
    """

    def measure_chunk(
        params: PyTree,
        carry: Carry,
        reset: Reset,
        inputs: Tokens,
        targets: Tokens,
        resets: Resets | None,
    ) -> tuple[Carry, PyTree]:
        # The network has no int8 weights; decoding has, one character at a time.
        forward = decode_sequence if config.dtype == "int8" else network_logits
        logits, carry = forward(config, params, inputs, reset_carry(carry, reset), resets=resets)
        return carry, measure(logits, targets)

    implementation = for_inference(config, MAX_SEQUENCES).recurrence
    return jax.jit(
        measure_chunk,
        out_shardings=(sharding.batch_sharding(mesh, axis=0), sharding.replicated(mesh)),
        donate_argnums=1,
        compiler_options=network_compiler_options(implementation),
    )


def network_logits(
    config: ModelConfig, params: PyTree, tokens: Tokens, carry: Carry, *, resets: Resets | None
) -> tuple[Logits, Carry]:
    """The logits of a trained network, and its carry after the tokens."""
    network = CharRNN(for_inference(config, tokens.shape[0]), params["output_bias"].shape[0])
    return network.run(params, tokens, carry, resets=resets)
