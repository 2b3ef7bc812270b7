"""What the XLA implementation alone has; its values are tested in `test_invariants`, too."""

from __future__ import annotations

import pytest

from charjax.model.recurrence import xla
from tests.model.recurrence.implementations import ROUNDING, Size, random_layer, value_and_gradient
from tests.model.small import distance


@pytest.mark.parametrize(("hidden", "count"), [(255, 1), (256, 8), (257, 8), (1000, 8), (1024, 1)])
def test_blocks_are_all_units_in_order(hidden, count):
    blocks = xla._blocks(hidden)
    units = [unit for block in blocks for unit in range(hidden)[block]]
    assert units == list(range(hidden))
    assert len(blocks) == count
    sizes = [len(range(hidden)[block]) for block in blocks]
    assert max(sizes) - min(sizes) <= 1


def test_one_step_in_bfloat16_has_the_gradient_of_scan():
    """XLA:CPU has no loop then, and would transpose a matmul that it cannot run transposed."""
    layer = random_layer("lstm", "projected", Size(batch=3, time=1, hidden=5))
    got, want = (value_and_gradient(name, "lstm", "bfloat16", *layer) for name in ("xla", "scan"))
    assert distance(got, want) < 5 * ROUNDING["bfloat16"]
