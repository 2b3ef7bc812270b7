"""The names of cells, in the config and in the table of cells."""

from __future__ import annotations

from charjax.config import CELLS_WITHOUT_INT8, CELLS_WITHOUT_RECURRENT_KERNEL
from charjax.model.cells import CELLS


def test_the_config_knows_which_cells_have_no_recurrent_kernel():
    without = {name for name, cell in CELLS.items() if cell.coefficients is not None}
    assert without == set(CELLS_WITHOUT_RECURRENT_KERNEL)


def test_the_config_knows_which_cells_multiply_numbers_that_int8_cannot_hold():
    without = {name for name, cell in CELLS.items() if cell.coefficients or cell.rounds}
    assert without == set(CELLS_WITHOUT_INT8)
