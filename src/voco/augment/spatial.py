"""Flips, turns and resampling of crops: drawn on the CPU, applied where the crops are.

Drawing and applying are apart: what was drawn can be kept, shown and repeated, and the numbers do
not depend on the device.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.augment.chosen import change
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
    return change(
        crops,
        [
            (chosen, lambda some, _, axis=axis: some.flip(axis))
            for axis, chosen in enumerate(flips.unbind(dim=1), start=2)
        ],
    )


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
    check_turns(turns, crops.shape[first], crops.shape[second])
    square = crops.shape[first] == crops.shape[second]
    return change(
        crops,
        [
            (turns == n, lambda some, _, n=n: torch.rot90(some, n, dims=(first, second)))
            for n in ((1, 2, 3) if square else (2,))
        ],
    )


def check_turns(turns: Int64[Tensor, "*n"], first: int, second: int) -> None:
    """Raise a ValueError if crops are to make turns that would change their shape.

    Args:
        turns: Quarter turns, on the CPU.
        first: Voxels along the first axis of the plane.
        second: Along the second.
    """
    if first != second and bool((turns % 2).any()):
        raise ValueError(f"crops of {first} by {second} voxels take half turns only.")


def resize(crops: Float[Tensor, "b c _ _ _"], size: Shape3) -> Float[Tensor, "b c _ _ _"]:
    """Resample to a size in voxels, trilinearly; the outer edges of the crops stay in place."""
    if crops.shape[2:] == size:
        return crops
    return F.interpolate(crops, size=size, mode="trilinear", align_corners=False)


def draw_affines(
    draws: Draws, count: int, crops: int, *, scale: float, degrees: float
) -> Float[Tensor, "b n 3 3"]:
    """From where a crop that is turned and stretched takes what it shows, for :func:`affine`.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        scale: By how much each axis is stretched or shrunk at most, as a share.
        degrees: By how much it is turned about each axis at most.
    """
    factors = 1 + (draws.uniform(count, crops, 3).double() * 2 - 1) * scale
    angles = torch.deg2rad((draws.uniform(count, crops, 3).double() * 2 - 1) * degrees)
    about_x, about_y, about_z = (_turning(angles[..., axis], axis) for axis in range(3))
    return (about_z @ about_y @ about_x * factors[..., None, :]).float()


def affine(crops: Volumes, matrices: Float[Tensor, "b 3 3"]) -> Volumes:
    """Crops resampled, trilinearly, about their centres; beyond an edge lies their least intensity.

    Args:
        crops: The crops.
        matrices: From where a voxel lies, in voxels from the centre, to where its value lies.
    """
    sides = crops.shape[2:]
    matrices = matrices.to(crops)
    lines = [torch.arange(side, device=crops.device) - (side - 1) / 2 for side in sides]
    x, y, z = torch.meshgrid(*(line.to(crops) for line in lines), indexing="ij")
    # Sums written out: a batched product may round otherwise in another batch.
    places = [
        (row[:, 0] * x + row[:, 1] * y + row[:, 2] * z) * 2 / side
        for row, side in zip(matrices[..., None, None, None].unbind(dim=1), sides, strict=True)
    ]
    least = crops.amin(dim=(2, 3, 4), keepdim=True)
    grid = torch.stack(places[::-1], dim=-1)  # torch names the last axis first
    return F.grid_sample(crops - least, grid, align_corners=False) + least


def _turning(angles: Float[Tensor, "*n"], axis: int) -> Float[Tensor, "*n 3 3"]:
    """Rotations about an axis, counter-clockwise if it points at the viewer."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrices = torch.eye(3, dtype=angles.dtype).repeat(*angles.shape, 1, 1)
    matrices[..., one, one] = matrices[..., other, other] = angles.cos()
    matrices[..., other, one] = angles.sin()
    matrices[..., one, other] = -angles.sin()
    return matrices
