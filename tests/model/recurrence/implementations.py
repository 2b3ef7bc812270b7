"""The implementations that `test_invariants` holds to one suite, and random layers for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from charjax.model.cells import CELLS
from charjax.model.mogrifier import Mogrifier
from charjax.model.recurrence import parallel, scan, xla
from charjax.model.recurrence.base import Inputs, Layer, Operands, Weights
from charjax.model.recurrence.c import ops
from charjax.model.recurrence.c.library import EXTRA_RESIDUALS
from tests.model import reference
from tests.model.small import UNOPTIMIZED, like, normal, tokens_of

VOCAB = 7
DTYPES = ("float32", "bfloat16")
# In bfloat16 a difference in a sum's last bit may fall on either side of a rounding.
ROUNDING = {"float32": 2e-6, "bfloat16": 0.02}


class Size(NamedTuple):
    batch: int
    time: int
    hidden: int


class Implementation(NamedTuple):
    """A row of the suite.

    Attributes:
      run: (cell, dtype, inputs, weights, carry, resets) -> (outputs, last carry).
      supports: as in `charjax.model.recurrence.base`; a layer that it refuses on this machine is
        skipped.
      cells: that it has, on any machine.
      sizes: of the layers that it is tested with; the first is that of most tests.
      batch_invariant: it promises that a sequence's bits do not depend on the others.
      patches: (module, name, value) that a test of it sets.
    """

    run: Callable[..., Any]
    supports: Callable[[Layer], str]
    cells: tuple[str, ...]
    sizes: tuple[Size, ...] = (Size(3, 6, 5), Size(1, 2, 2))
    batch_invariant: bool = False
    patches: tuple[tuple[Any, str, Any], ...] = ()


# Three blocks of units, however few there are, not all of one size.
_IN_BLOCKS = ((xla, "_BLOCKED_SIZES", range(1, 1024)), (xla, "_NUM_BLOCKS", 3))
# The scan of GPUs and TPUs.
_ASSOCIATIVE = ((jax, "default_backend", lambda: "gpu"),)
# Around the sizes of vectors, panels and bf16 pairs; 257 units have the backward panels of wide
# layers, and the last is computed by several threads.
_AROUND_PANELS = (
    *(Size(3, 6, 5), Size(1, 2, 2), Size(16, 2, 24), Size(16, 2, 257)),
    Size(37, 3, 51),
)


def _portable(module: Any, **fields: Any) -> Implementation:
    """An implementation that runs everywhere, so that the cells alone decide what it supports."""
    cells = (cell for cell in CELLS if not module.supports(Layer(cell, 5, "float32", 3)))
    return Implementation(module.run, module.supports, tuple(cells), **fields)


IMPLEMENTATIONS = {
    "scan": _portable(scan),
    "xla": _portable(xla),
    "xla_in_blocks": _portable(xla, patches=_IN_BLOCKS),
    "parallel": _portable(parallel),
    "associative": _portable(parallel, patches=_ASSOCIATIVE),
    "c": Implementation(ops.run, ops.supports, tuple(EXTRA_RESIDUALS), _AROUND_PANELS, True),
}


# Pairwise: every kind of input, dtype and size with each other, and with and without resets.
# (kind, dtype, with resets): indices in the sizes of an implementation.
CASES = {
    ("table", "float32", False): (0, 4),
    ("table", "float32", True): (0, 4),
    ("table", "bfloat16", False): (3, 4),
    ("table", "bfloat16", True): (1, 2),
    ("projected", "float32", False): (0, 2),
    ("projected", "float32", True): (1, 3),
    ("projected", "bfloat16", False): (0,),
    ("projected", "bfloat16", True): (4,),
}


def sizes_of(name: str, kind: str, dtype: str, with_resets: bool) -> list[Size]:
    """The sizes of an implementation that are tested with a kind of input, a dtype and resets."""
    sizes = IMPLEMENTATIONS[name].sizes
    return [sizes[i] for i in CASES[kind, dtype, with_resets] if i < len(sizes)]


def supported(name: str, cell: str, dtype: str, size: Size | None = None) -> Implementation:
    """The implementation of this name; skips the test if it refuses the layer on this machine."""
    implementation = IMPLEMENTATIONS[name]
    batch, _, hidden = size or implementation.sizes[0]
    refusal = implementation.supports(Layer(cell, hidden, dtype, batch))
    if refusal:
        pytest.skip(f"{name} refuses: {refusal}")
    return implementation


def random_layer(cell: str, kind: str, size: Size) -> tuple[Any, Weights, tuple[np.ndarray, ...]]:
    """Inputs of this kind ("projected" or "table"), weights and a carry."""
    batch, time, hidden = size
    gates = CELLS[cell].gates * hidden
    bias = normal(2, hidden) if CELLS[cell].reset_after else None
    columns = gates if CELLS[cell].has_recurrent_kernel else 0
    weights = Weights(normal(1, hidden, columns) / hidden**0.5, bias)
    if CELLS[cell].rounds:
        features, columns = gates, gates  # as many inputs as gates
        sizes = [(hidden, features), (features, hidden)]
        rounds = [normal(30 + i, *sizes[i % 2]) for i in range(CELLS[cell].rounds)]
        kernel = normal(28, features, columns) / features**0.5
        weights = weights._replace(mogrifier=Mogrifier(tuple(rounds), kernel, normal(29, gates)))
    carry = tuple(normal(3, CELLS[cell].states, batch, hidden))
    if kind == "table":
        return Inputs(normal(0, gates, VOCAB), tokens_of(VOCAB, batch, time).T), weights, carry
    return Inputs(normal(0, gates, time, batch)), weights, carry


def random_resets(size: Size) -> np.ndarray:
    """Resets at about a third of the positions, [time, batch], one of them at a first position."""
    resets = np.random.default_rng(13).random((size.time, size.batch)) < 0.3
    resets[0, -1] = True
    return resets


def run(name: str, cell: str, dtype: str, *layer: Any):
    """Outputs and last carry, of inputs, weights and carry."""
    return jax.device_get(_run(name, cell, dtype, layer))


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=UNOPTIMIZED)
def _run(name: str, cell: str, dtype: str, layer: Any):
    return IMPLEMENTATIONS[name].run(cell, dtype, Operands(*layer))


def value_and_gradient(name, cell, dtype, inputs, weights, carry, resets=None, cotangents=None):
    """`value_and_grads` of an implementation, compiled once for each shape."""
    cotangents = cotangents or random_cotangents(inputs, carry)
    layer = inputs, weights, carry, resets, cotangents
    return jax.device_get(_value_and_gradient(name, cell, dtype, layer))


def random_cotangents(inputs: Any, carry: Any) -> Any:
    """Of outputs and last carry."""
    return like((np.empty((carry[0].shape[1], *inputs.time_and_batch)), carry), 4)


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=UNOPTIMIZED)
def _value_and_gradient(name: str, cell: str, dtype: str, layer: Any):
    return value_and_grads(partial(IMPLEMENTATIONS[name].run, cell, dtype), *layer)


def value_and_grads(
    run: Callable[[Operands], Any],
    inputs: Any,
    weights: Any,
    carry: Any,
    resets: Any = None,
    cotangents: Any = None,
):
    """(outputs, last carry), and the gradients of igates, weights and carry.

    `cotangents`, in the structure of the value, are random if they are None.
    """

    def outputs_and_last(igates, weights, carry):
        return run(Operands(inputs._replace(igates=igates), weights, carry, resets))

    value, vjp = jax.vjp(outputs_and_last, inputs.igates, weights, carry)
    return value, vjp(random_cotangents(inputs, carry) if cotangents is None else cotangents)


def float64_layer(cell: str, igates: Any, tokens: Any, weights: Any, carry: Any, resets: Any):
    """Outputs and last carry by the numpy cell; `igates` is a table if there are tokens."""
    igates = igates if tokens is None else igates[:, tokens]
    outputs, last = reference.layer(cell, np.moveaxis(igates, 0, -1), *weights, carry, resets)
    return np.moveaxis(outputs, -1, 0), last


def same_bits(got: Any, want: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, got, want))
