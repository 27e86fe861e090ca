"""Flips, quarter turns and resampling of crops: drawn on the CPU, applied where the crops are.

Drawing and applying are apart: what was drawn can be kept, shown and repeated, and the numbers do
not depend on the device.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Shape3, Volumes

Plane = Literal["xy", "xz", "yz"]
"""A plane of a volume: axial, coronal or sagittal."""


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
    made = crops.clone()
    for axis, chosen in enumerate(flips.unbind(dim=1), start=2):
        _change(made, chosen, lambda some, axis=axis: some.flip(axis))
    return made


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


def turn(crops: Volumes, turns: Int64[Tensor, "b"], plane: Plane = "xy") -> Volumes:
    """Turn every crop in a plane by its number of quarter turns.

    Args:
        crops: The crops.
        turns: Quarter turns of each, from 0 to 3.
        plane: From its first axis towards its second.

    Raises:
        ValueError: If a crop that is not square in the plane is to make an odd number of turns.
    """
    first, second = (2 + "xyz".index(axis) for axis in plane)
    if crops.shape[first] != crops.shape[second] and bool((turns % 2).any()):
        raise ValueError(f"crops of {tuple(crops.shape[2:])} voxels take half turns only.")
    made = crops.clone()
    for quarters in (1, 2, 3):
        _change(
            made,
            turns == quarters,
            lambda some, quarters=quarters: torch.rot90(some, quarters, dims=(first, second)),
        )
    return made


def resize(crops: Float[Tensor, "b c _ _ _"], size: Shape3) -> Float[Tensor, "b c _ _ _"]:
    """Resample to a size in voxels, trilinearly; the outer edges of the crops stay in place."""
    if crops.shape[2:] == size:
        return crops
    return F.interpolate(crops, size=size, mode="trilinear", align_corners=False)


def _change(
    crops: Volumes, chosen: Bool[Tensor, "b"], change: Callable[[Volumes], Volumes]
) -> None:
    """Change the chosen ones of some crops in place; the others, mostly more, stay untouched."""
    # Drawn on the CPU: a GPU need not be waited for to know which they are.
    rows = chosen.cpu().nonzero().flatten().to(crops.device, non_blocking=True)
    if len(rows):
        crops.index_copy_(0, rows, change(crops.index_select(0, rows)))
