"""The order in which a CTA works: its passes, their time steps, and its batch tiles in turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from jax import lax
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.cta import Cta

T = TypeVar("T")
# Work on a batch tile. It yields where it has arrived at a barrier and is about to wait for it:
# the CTA goes on with other tiles, which may overwrite the operand in shared memory.
TileWork: TypeAlias = Generator[None, None, T]


def in_passes(passes: int, body: Callable[..., None], tiles: list[Cta], *refs: Any) -> None:
    """Runs the kernel's body for the tiles of each pass."""
    if passes == 1:  # without a loop, offsets of rows are constants
        body(tiles, *refs)
    else:

        def run_pass(batch_pass: Array, _: None) -> None:
            body([replace(cta, batch_pass=batch_pass) for cta in tiles], *refs)

        lax.fori_loop(0, passes, run_pass, None)


def loop_over_time(
    time: int, step: Callable[[Cta, Array, T], TileWork[T]], tiles: list[Cta], initial: Iterable[T]
) -> list[T]:
    """The carry of each tile after so many steps, at each of which the tiles take turns."""

    def step_all(t: Array, carries: list[T]) -> list[T]:
        steps = [step(cta, t, carry) for cta, carry in zip(tiles, carries, strict=True)]
        results: list[T] = []
        while len(results) < len(steps):
            for work in steps:  # all yield equally often, so that they end in this order
                try:
                    next(work)
                except StopIteration as end:
                    results.append(end.value)
        return results

    return lax.fori_loop(0, time, step_all, list(initial))
