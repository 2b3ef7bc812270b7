"""Where the threads of a CTA meet in the persistent kernels, into which Pallas puts no barriers."""

from __future__ import annotations

import re
from functools import partial

import jax
import pytest
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import launch_context
from jax.experimental.mosaic.gpu import utils as mosaic

from charjax.model.recurrence.pallas_hopper import decode, ops
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig
from tests.model.recurrence.implementations import value_and_grads
from tests.model.recurrence.test_decode_kernel import config_of, operands
from tests.model.recurrence.test_pallas_hopper import layer_inputs

EMITTED = {  # what the code of a kernel emits, and its letter
    "thread barrier": (mosaic, "warpgroup_barrier", "B"),
    "fence of the async proxy": (mosaic.nvvm, "fence_proxy", "F"),
    "signal": (mosaic.SemaphoreRef, "signal", "S"),
    "wait": (mosaic.SemaphoreRef, "wait", "W"),
    "copy": (launch_context.LaunchContext, "async_copy", "C"),
    "matmul of a chunk": (mgpu, "wgmma", "M"),
}
# The weights are copied. Then there are arrivals, what was stored for a copy behind a fence, and
# waits; a tile's operand is copied right after one.
KERNEL = "C+(F?BS|WB(FC+M+)?)*"


def train(cell, batch, launch):
    layer = partial(ops.run_with, launch, cell)
    return partial(value_and_grads, layer), layer_inputs(cell, "table", batch, hidden=1024)


def sample():
    leaves, structure = jax.tree.flatten(operands(config_of("gru", 1024), 3, 32, 65))
    launch = LaunchConfig()
    return lambda *leaves: decode.decode("gru", *structure.unflatten(leaves), launch=launch), leaves


PROGRAMS = {
    "split-K backward": partial(train, "gru", 64, LaunchConfig()),
    "two tiles in turn": partial(train, "lstm", 256, LaunchConfig()),
    "passes": partial(train, "gru", 128, LaunchConfig(batch_tiles=1, batch_groups=1)),
    "sampling": sample,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_threads_meet_before_a_signal_and_after_a_wait(name, monkeypatch):
    """And so between a matmul and the next copy, which overwrites the operand."""
    program, arguments = PROGRAMS[name]()
    emitted = []

    def recorded(emit, letter):
        def record(*args, **kwargs):
            emitted.append(letter)
            return emit(*args, **kwargs)

        return record

    for owner, emit, letter in EMITTED.values():
        monkeypatch.setattr(owner, emit, recorded(getattr(owner, emit), letter))
    jax.jit(program).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert {*emitted} == set("BFSWCM")
    assert re.fullmatch(f"({KERNEL})+", "".join(emitted))
