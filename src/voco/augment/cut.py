"""Boxes of volumes as crops of one size, mirrored and turned.

On a CPU step by step, which is fastest there. On a GPU by one resampling of all crops: where each
voxel of a crop comes from is worked out first, through turn, mirror, size and box, so that the
window is read once, and all shapes are the same in every step. Both give the same crops, but for
rounding.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from voco.augment.spatial import check_turns, flip, resize, turn
from voco.shapes import Crops, Shape3, Volumes


def cut_to(
    volumes: Volumes,
    boxes: Int64[Tensor, "b n 2 3"],
    size: Shape3,
    flips: Bool[Tensor, "b n three"] | None = None,
    turns: Int64[Tensor, "b n"] | None = None,
) -> Crops:
    """Cut boxes of any sizes out of volumes, resample them to one size, mirror and turn them.

    Args:
        volumes: The volumes.
        boxes: Inside them, on the CPU; for each volume the same number.
        size: Voxels of a crop. Resampling is trilinear; the outer edges of a box stay in place.
        flips: Along which axes each crop is mirrored; ``None`` is none.
        turns: How many quarter turns each crop then makes in its x-y plane, from 0 to 3; ``None``
            is none.

    Raises:
        ValueError: If a crop that is not square in the x-y plane is to make an odd number of turns.
    """
    count, each = boxes.shape[:2]
    if flips is None:
        flips = torch.zeros(count, each, 3, dtype=torch.bool)
    if turns is None:
        turns = torch.zeros(count, each, dtype=torch.int64)
    way = in_steps if volumes.device.type == "cpu" else in_one
    return way(volumes, boxes, size, flips, turns)


def in_steps(
    volumes: Volumes,
    boxes: Int64[Tensor, "b n 2 3"],
    size: Shape3,
    flips: Bool[Tensor, "b n three"],
    turns: Int64[Tensor, "b n"],
) -> Crops:
    """:func:`cut_to`, one thing after the other. A box of the size asked for keeps its bits."""
    crops = [
        resize(volume[None, :, x:x_stop, y:y_stop, z:z_stop], size)
        for volume, row in zip(volumes, boxes.tolist(), strict=True)
        for (x, y, z), (x_stop, y_stop, z_stop) in row
    ]
    moved = turn(flip(torch.cat(crops), flips.flatten(0, 1)), turns.flatten())
    return moved.unflatten(0, tuple(turns.shape))


def in_one(
    volumes: Volumes,
    boxes: Int64[Tensor, "b n 2 3"],
    size: Shape3,
    flips: Bool[Tensor, "b n three"],
    turns: Int64[Tensor, "b n"],
) -> Crops:
    """:func:`cut_to` by one resampling.

    Places are exact to some 1e-7 of a volume's side, so a value may be off by that share of the
    difference of its neighbours.
    """
    check_turns(turns, size[0], size[1])
    # Two quarters mirror both axes; one or three exchange them and mirror one.
    turned = torch.stack([turns >= 2, (turns == 1) | (turns == 2), turns < 0], dim=2)
    x, y, z = (
        _places(boxes[..., axis], whole, size[axis], (flips ^ turned)[..., axis]).to(
            volumes, non_blocking=True
        )
        for axis, whole in enumerate(volumes.shape[2:])
    )
    x, other_x = x[:, :, :, None], x[:, :, None, :]
    y, other_y = y[:, :, None, :], y[:, :, :, None]
    if size[0] == size[1]:
        exchanged = (turns % 2 == 1).to(volumes.device, non_blocking=True)[:, :, None, None]
        x, y = torch.where(exchanged, other_x, x), torch.where(exchanged, other_y, y)
    lines = (z[:, :, None, None, :], y[..., None], x[..., None])  # torch names the last axis first
    grid = torch.stack(torch.broadcast_tensors(*lines), dim=-1).flatten(1, 2)
    cut = F.grid_sample(volumes, grid, padding_mode="border", align_corners=False)
    return cut.unflatten(2, (turns.shape[1], size[0])).transpose(1, 2)


def _places(
    ends: Int64[Tensor, "b n 2"], whole: int, voxels: int, mirrored: Bool[Tensor, "b n"]
) -> Float64[Tensor, "b n v"]:
    """Where the voxels of crops come from along one axis; the volume is from -1 to 1, edge to edge.

    Args:
        ends: Start and stop of the boxes.
        whole: Voxels of the volume.
        voxels: Voxels of a crop.
        mirrored: Which crops are mirrored.
    """
    start, stop = ends.double()[..., None].unbind(dim=2)
    length = stop - start
    within = (torch.arange(voxels) + 0.5) * length / voxels - 0.5
    # No voxel beyond the box takes part, as if it had been cut out.
    place = start + within.clamp(min=0).minimum(length - 1)
    place = torch.where(mirrored[..., None], place.flip(-1), place)
    return (2 * place + 1) / whole - 1
