"""The blocks of units of the XLA implementation; its values are tested in `test_invariants`."""

from __future__ import annotations

import pytest

from charjax.model.recurrence import xla


@pytest.mark.parametrize(("hidden", "count"), [(255, 1), (256, 8), (257, 8), (1000, 8), (1024, 1)])
def test_blocks_are_all_units_in_order(hidden, count):
    blocks = xla._blocks(hidden)
    units = [unit for block in blocks for unit in range(hidden)[block]]
    assert units == list(range(hidden))
    assert len(blocks) == count
    sizes = [len(range(hidden)[block]) for block in blocks]
    assert max(sizes) - min(sizes) <= 1
