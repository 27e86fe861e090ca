"""Which cells of a grid are hidden: drawn on the CPU, and spread over finer grids."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Shape3


def draw_cells(draws: Draws, count: int, grid: Shape3, number: int) -> Bool[Tensor, "b i j k"]:
    """So many cells of a grid for each volume; every choice is equally likely.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        grid: Cells along each axis.
        number: Cells that are chosen.
    """
    order = draws.permutations(count, math.prod(grid))
    none = torch.zeros(order.shape, dtype=torch.bool)
    return none.scatter(1, order[:, :number], value=True).unflatten(1, grid)


def spread(cells: Bool[Tensor, "b i j k"], times: Shape3) -> Bool[Tensor, "b x y z"]:
    """Cells as the finer cells, or voxels, that they are made of.

    Args:
        cells: On the coarse grid.
        times: Finer cells in a coarse one along each axis.
    """
    for axis, many in enumerate(times, start=1):
        cells = cells.repeat_interleave(many, dim=axis)
    return cells
