"""What a training step and a written character are made of: python -m benchmarks.parts.

The pieces of the recurrence at the reference shape, each alone in its own program, and the
products that they rest on. Writes `results/parts.json`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from benchmarks import machine
from benchmarks.common import progress
from benchmarks.shape import Shape
from charjax.model.cells import CELLS
from charjax.model.matmul import dot, dot_trailing
from charjax.model.recurrence import xla
from charjax.model.recurrence.base import Table, Weights

ROUNDS = 7
_LANES = (1, 5, 8, 64)  # of the product that writes a character
_CHARS = 100


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The median time of a compiled function, once it is warm."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        found.append(time.perf_counter() - began)
    return 1e3 * statistics.median(found)


def normal(*shape: int) -> Array:
    """Small random numbers, float32."""
    return 0.03 * jax.random.normal(jax.random.key(len(shape)), shape)


def row(part: str, cell: str, dtype: str, ms: float, flops: float = 0) -> dict[str, Any]:
    """One line of the table; a part that is not a product alone has no rate."""
    rate = {"gflops_per_second": round(flops / ms / 1e6)} if flops else {}
    progress(f"{part}, {cell} {dtype}: {ms:.1f} ms")
    return {"part": part, "cell": cell, "dtype": dtype, "ms": round(ms, 2)} | rate


def of_recurrence(cell: str, dtype: str) -> list[dict[str, Any]]:
    """The recurrence of a step, forwards and backwards."""
    shape = Shape(cell=cell)
    gates = CELLS[cell].gates * shape.hidden
    bias = jnp.zeros(shape.hidden) if CELLS[cell].reset_after else None
    weights = Weights(normal(shape.hidden, gates), bias)
    tokens = jax.random.randint(jax.random.key(0), (shape.length, shape.batch), 0, shape.vocab)
    carry = tuple(jnp.zeros((shape.batch, shape.hidden)) for _ in range(CELLS[cell].states))

    def forward(table: Array, weights: Weights) -> Any:
        return xla._forward(cell, dtype, Table(table, tokens), weights, carry)

    table = normal(gates, shape.vocab)
    out, kept = jax.jit(forward)(table, weights)

    def backward(kept: Any, out: Any) -> Any:
        return xla._backward(cell, dtype, kept, out)

    def loop_alone(kept: Any, out: Any) -> Any:
        return backward(kept, out)[2]  # the rest of it is then left out

    timed = {
        "forward, keeping what backward reads": milliseconds(forward, table, weights),
        "backward": milliseconds(backward, kept, out),
        "backward, its loop alone": milliseconds(loop_alone, kept, out),
    }
    return [row(part, cell, dtype, ms) for part, ms in timed.items()]


def of_products(cell: str, dtype: str) -> list[dict[str, Any]]:
    """The products of the recurrence alone, with lanes in columns, as it has them, and in rows."""
    shape = Shape(cell=cell)
    positions, gates = shape.batch * shape.length, CELLS[cell].gates * shape.hidden

    # One product a character, each of which waits for the one before.
    def by_columns(kernel: Array, x: Array) -> Array:
        def step(x: Array, _: None) -> tuple[Array, None]:
            return x + 1e-6 * dot(kernel, x, dtype)[:1], None

        return jax.lax.scan(step, x, None, length=shape.length)[0]

    def by_rows(x: Array, kernel: Array) -> Array:
        def step(x: Array, _: None) -> tuple[Array, None]:
            return x + 1e-6 * dot(x, kernel, dtype)[:, :1], None

        return jax.lax.scan(step, x, None, length=shape.length)[0]

    def over_rows(a: Array, b: Array) -> Array:
        return dot(a.T, b, dtype)

    def over_columns(a: Array, b: Array) -> Array:
        return dot_trailing(a, b, dtype)

    kernel = normal(shape.hidden, gates).astype(dtype)
    turned = jnp.array(kernel.T)
    states, grads = normal(shape.hidden, shape.batch), normal(gates, shape.batch)
    stacks = [normal(n, positions).astype(dtype) for n in (shape.hidden, gates)]
    every = "every character, alone"
    timed = {
        f"kernel times states in columns, {every}": (by_columns, turned, states),
        f"states in rows times kernel, {every}": (by_rows, jnp.array(states.T), kernel),
        f"kernel times gradients in columns, {every}": (by_columns, kernel, grads),
        f"gradients in rows times kernel, {every}": (by_rows, jnp.array(grads.T), turned),
        "weight gradient of columns": (over_columns, *stacks),
        "weight gradient of rows": (over_rows, *(jnp.array(stack.T) for stack in stacks)),
    }
    flops = 2.0 * positions * shape.hidden * gates
    return [row(part, cell, dtype, milliseconds(*work), flops) for part, work in timed.items()]


def of_writing(lanes: int, dtype: DTypeLike) -> dict[str, Any]:
    """The product of a written character: the state of some lanes times all of a GRU's weights."""
    hidden, outputs = 1024, 3 * 1024 + 65

    def write(h: Array, kernel: Array) -> Array:
        def step(h: Array, _: None) -> tuple[Array, None]:
            return jnp.tanh(dot(h, kernel, dtype)[:, :hidden]), None

        return jax.lax.scan(step, h, None, length=_CHARS)[0]

    kernel = normal(hidden, outputs).astype(dtype)
    ms = milliseconds(write, normal(lanes, hidden), kernel)
    name = f"{_CHARS} characters of {lanes} lanes, their product alone"
    return row(name, "gru", str(dtype), ms, 2.0 * _CHARS * lanes * hidden * outputs)


def main() -> None:
    """Writes the table."""
    square = normal(2048, 2048)
    ms = milliseconds(lambda a: a @ a, square)
    rows = [row("a square product of 2048", "", "float32", ms, 2.0 * 2048**3)]
    for cell in ("gru", "lstm"):
        for dtype in ("float32", "bfloat16"):
            rows += of_recurrence(cell, dtype) + of_products(cell, dtype)
    rows += [of_writing(lanes, dtype) for dtype in ("float32", "bfloat16") for lanes in _LANES]
    print(machine.write("parts", {"rows": rows}))


if __name__ == "__main__":
    main()
