"""Boxes of many sizes, randomly placed: crops of one size come of them by ``cut_to``."""

import torch
from jaxtyping import Int64
from torch import Tensor

from voco.augment.blocks import between
from voco.draws import Draws
from voco.shapes import Shape3


def draw_zoomed(
    draws: Draws,
    count: int,
    crops: int,
    *,
    size: Shape3,
    within: Shape3,
    scales: tuple[float, float],
) -> Int64[Tensor, "b n 2 3"]:
    """Boxes of random size and place, of which crops are made.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        size: Voxels of a crop.
        within: Voxels of the region in which every box lies.
        scales: Sides of a box relative to those of a crop, from least to largest; one number for
            all three sides, all between are equally likely. Boxes are at least 1 voxel, and no
            larger than the region.
    """
    low, high = scales
    factors = low + draws.uniform(count, crops, 1) * (high - low)
    room = torch.tensor(within)
    sides = (factors.double() * torch.tensor(size)).round().long().clamp(min=1).minimum(room)
    starts = between(draws.uniform(count, crops, 3), torch.zeros_like(sides), room - sides)
    return torch.stack([starts, starts + sides], dim=2)
