"""Flips, quarter turns and resampling of crops: drawn on the CPU, applied where the crops are.

Drawing and applying are apart: what was drawn can be kept, shown and repeated, and the numbers do
not depend on the device.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Shape3, Volumes


def draw_flips(
    draws: Draws, count: int, crops: int, probability: float
) -> Bool[Tensor, "b n three"]:
    """Whether each crop is mirrored along x, y and z, each axis on its own.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        probability: Of mirroring along one axis.
    """
    return draws.uniform(count, crops, 3) < probability


def flip(crops: Volumes, flips: Bool[Tensor, "b three"]) -> Volumes:
    """Mirror every crop along the axes chosen for it."""
    for axis, chosen in enumerate(flips.to(crops.device).unbind(dim=1), start=2):
        crops = torch.where(_per_crop(chosen), crops.flip(axis), crops)
    return crops


def draw_turns(
    draws: Draws, count: int, crops: int, probability: float, *, square: bool
) -> Int64[Tensor, "b n"]:
    """How many quarter turns each crop makes in its x-y plane, from 0 to 3.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        probability: Of any turn; one, two and three quarters are then equally likely.
        square: Whether x and y sides are equal. Where they are not, a quarter turn would change
            the crop's shape, so every turn is a half turn.
    """
    turned = draws.uniform(count, crops) < probability
    quarters = draws.integers(count, crops, low=1, high=4)
    return turned * (quarters if square else torch.full_like(quarters, 2))


def turn(crops: Volumes, turns: Int64[Tensor, "b"]) -> Volumes:
    """Turn every crop in its x-y plane by its number of quarter turns, from x towards y.

    Raises:
        ValueError: If a crop that is not square in x and y is to make an odd number of turns.
    """
    if crops.shape[2] != crops.shape[3]:
        if bool((turns % 2).any()):
            raise ValueError(f"crops of {tuple(crops.shape[2:])} voxels take half turns only.")
        return torch.where(_per_crop(turns.to(crops.device) == 2), crops.flip(2, 3), crops)
    placed = turns.to(crops.device)
    turned = crops
    for quarters in (1, 2, 3):
        now = torch.rot90(crops, quarters, dims=(2, 3))
        turned = torch.where(_per_crop(placed == quarters), now, turned)
    return turned


def resize(crops: Float[Tensor, "b c _ _ _"], size: Shape3) -> Float[Tensor, "b c _ _ _"]:
    """Resample to a size in voxels, trilinearly; the outer edges of the crops stay in place."""
    if crops.shape[2:] == size:
        return crops
    return F.interpolate(crops, size=size, mode="trilinear", align_corners=False)


def _per_crop(chosen: Bool[Tensor, "b"]) -> Bool[Tensor, "b 1 1 1 1"]:
    return chosen.view(-1, 1, 1, 1, 1)
