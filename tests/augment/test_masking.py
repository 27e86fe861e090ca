"""Which cells are hidden, and on which finer grid."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.augment.masking import draw_cells, spread
from voco.draws import Draws

grids = st.tuples(*[st.integers(1, 4)] * 3)


@given(grids, st.data())
def test_as_many_cells_are_chosen_in_every_volume_as_asked_for(grid, data):
    number = data.draw(st.integers(0, math.prod(grid)))
    cells = draw_cells(Draws(0, 0), 3, grid, number)
    assert cells.shape == (3, *grid)
    assert cells.sum(dim=(1, 2, 3)).tolist() == [number] * 3


def test_every_cell_is_chosen_as_often_as_the_others_and_volumes_differ():
    cells = draw_cells(Draws(0, 0), 2000, (2, 3, 2), 7).float()
    assert cells.mean(dim=0).flatten().tolist() == pytest.approx([7 / 12] * 12, abs=0.05)
    assert len(cells.flatten(1).unique(dim=0)) > 500


@given(grids, grids)
def test_a_voxel_is_chosen_where_its_cell_is(grid, times):
    cells = draw_cells(Draws(0, 0), 2, grid, math.prod(grid) // 2)
    voxels = spread(cells, times)
    i, j, k = (torch.arange(s * t) // t for s, t in zip(grid, times, strict=True))
    assert torch.equal(voxels, cells[:, i][:, :, j][:, :, :, k])
