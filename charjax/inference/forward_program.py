"""The compiled program that runs a network over a chunk of a text, on all devices or on one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax

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


class ForwardProgram(NamedTuple):
    """The program, and how its arguments get to the devices.

    Attributes:
      devices: how many take part.
      process_rows: rows of all devices -> which of them this process reads.
      replicate: parameters -> a copy on each device.
      shard: host arrays [rows of this process, ...] -> arrays [rows, ...], sharded by rows.
      measure_chunk: (params, carry, reset, inputs, targets, resets) -> (carry, what the measure
        gives, on every device).
    """

    devices: int
    process_rows: Callable[[int], slice]
    replicate: Callable[[PyTree], PyTree]
    shard: Callable[[PyTree], PyTree]
    measure_chunk: Callable[..., tuple[Carry, PyTree]]


@functools.cache
def forward_program(
    config: ModelConfig, measure: Measure, *, on_all_devices: bool
) -> ForwardProgram:
    """The program on all devices of all processes, or, for a short text, on one of this process.

    Args:
      config: the architecture.
      measure: what it computes from the logits.
      on_all_devices: whether all take part.
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

    mesh = sharding.data_mesh(sharding.all_devices() if on_all_devices else jax.local_devices()[:1])
    everywhere, by_row = sharding.replicated(mesh), sharding.batch_sharding(mesh, axis=0)
    implementation = for_inference(config, MAX_SEQUENCES).recurrence
    return ForwardProgram(
        mesh.size,
        sharding.process_rows if on_all_devices else slice,  # slice(rows) is all of them
        lambda params: jax.device_put(
            params if on_all_devices else sharding.local_copy(params), everywhere
        ),
        lambda tree: sharding.shard_local(tree, by_row),
        jax.jit(
            measure_chunk,
            out_shardings=(by_row, everywhere),
            donate_argnums=1,
            compiler_options=network_compiler_options(implementation),
        ),
    )


def network_logits(
    config: ModelConfig, params: PyTree, tokens: Tokens, carry: Carry, *, resets: Resets | None
) -> tuple[Logits, Carry]:
    """The logits of a trained network, and its carry after the tokens."""
    network = CharRNN(for_inference(config, tokens.shape[0]), params["output_bias"].shape[0])
    return network.run(params, tokens, carry, resets=resets)
