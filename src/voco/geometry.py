"""Where voxels are. Pure: no pixels are read, nothing is random but what a caller draws.

A :class:`Grid` ties voxels to millimetres. A *box* is a start and a stop voxel, half open. The
bases of VoCo are the boxes of :func:`grid_boxes`; how much of a random crop lies in each of them
is :func:`overlap` (Wu et al., CVPR 2024, section 3).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from voco.shapes import Boxes, Shape3, Spacing


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in the world.

    Attributes:
        shape: Voxels along each axis.
        affine: 4x4, from voxel indices (centres) to world millimetres, RAS+ as in NIfTI.
    """

    shape: Shape3
    affine: Float64[np.ndarray, "4 4"]

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between neighbouring voxel centres along each axis."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def orientation(self) -> str:
        """Anatomical directions towards which the axes point, such as ``RAS``."""
        directions = self.affine[:3, :3] / np.maximum(self.spacing_mm, 1e-12)
        names = ("LR", "PA", "IS")
        letters, free = ["?"] * 3, [0, 1, 2]
        # Strongest component first: oblique grids get three different letters.
        for index in np.argsort(-np.abs(directions), axis=None):
            world, axis = np.unravel_index(index, (3, 3))
            if letters[axis] == "?" and world in free:
                letters[axis] = names[world][int(directions[world, axis] > 0)]
                free.remove(int(world))
        return "".join(letters)

    def crop(self, start: Shape3, shape: Shape3) -> "Grid":
        """The grid of a box that starts at a voxel; the start may be negative (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(start, float)
        return Grid(shape, affine)

    def resampled(self, spacing_mm: Spacing) -> "Grid":
        """The same extent in other voxels.

        The outer *edges* of the grid stay where they are (not the centres of its corner voxels),
        so the centre of voxel 0 moves by half the difference of the two voxel sizes. The number
        of voxels is rounded, at least 1; the spacing of the result is what then fits exactly.
        """
        old = np.asarray(self.spacing_mm)
        extent = old * self.shape
        shape = np.maximum(1, np.round(extent / spacing_mm)).astype(int)
        return self.reshaped((int(shape[0]), int(shape[1]), int(shape[2])))

    def reshaped(self, shape: Shape3) -> "Grid":
        """The same extent in another number of voxels (edges stay, see :meth:`resampled`)."""
        ratio = np.asarray(self.shape, float) / shape
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * ratio
        affine[:3, 3] += self.affine[:3, :3] @ ((ratio - 1) / 2)
        return Grid(shape, affine)


def grid_boxes(cells: Shape3, size: Shape3, origin: Shape3 = (0, 0, 0)) -> Boxes:
    """The non-overlapping base crops of a grid.

    Args:
        cells: Number of base crops along x, y and z (4, 4, 1 in the paper).
        size: Voxels of one base crop.
        origin: Start voxel of the first.

    Returns:
        ``prod(cells)`` boxes, x outermost and z innermost.

    Raises:
        ValueError: If a count or a size is below 1.
    """
    if min(*cells, *size) < 1:
        raise ValueError(f"cells {cells} and size {size} must all be at least 1.")
    index = torch.tensor(list(product(*map(range, cells))), dtype=torch.int64)
    start = index * torch.tensor(size) + torch.tensor(origin)
    return torch.stack([start, start + torch.tensor(size)], dim=1)


def boxes_at(place: Float[Tensor, "n 3"], size: Shape3, within: Shape3) -> Boxes:
    """Boxes of one size from places between 0 and 1, inside ``(0, 0, 0)`` to ``within``.

    Args:
        place: Numbers from [0, 1), one row per box; equal numbers give equally likely starts.
        size: Voxels of a box.
        within: Voxels of the region in which every box must lie.

    Raises:
        ValueError: If a box does not fit.
    """
    room = torch.tensor(within) - torch.tensor(size) + 1
    if int(room.min()) < 1:
        raise ValueError(f"a box of {size} voxels does not fit into {within}.")
    start = (place.double() * room).long().minimum(room - 1)
    return torch.stack([start, start + torch.tensor(size)], dim=1)


def random_boxes(count: int, size: Shape3, within: Shape3, rng: torch.Generator) -> Boxes:
    """``count`` boxes of one size, uniformly placed inside ``(0, 0, 0)`` to ``within``.

    Raises:
        ValueError: If a box does not fit.
    """
    return boxes_at(torch.rand(count, 3, generator=rng), size, within)


def overlap(
    queries: Int64[Tensor, "*n q 2 3"], bases: Int64[Tensor, "*n k 2 3"]
) -> Float[Tensor, "*n q k"]:
    """Share of each query's volume that lies in each base, from 0 to 1; float32.

    Exact for any boxes: the product over the axes of the length of the common interval, over the
    query's volume. Shares of one query sum to 1 when the bases tile a region that contains it. A
    query without volume has a share of 0 everywhere. Leading axes (volumes) are matched.
    """
    start = torch.maximum(queries[..., :, None, 0, :], bases[..., None, :, 0, :])
    stop = torch.minimum(queries[..., :, None, 1, :], bases[..., None, :, 1, :])
    common = (stop - start).clamp(min=0).prod(dim=-1)
    volume = (queries[..., 1, :] - queries[..., 0, :]).clamp(min=0).prod(dim=-1)
    return (common.double() / volume.clamp(min=1)[..., None].double()).float()


def crop(
    volumes: Shaped[Tensor, "b c x y z"], boxes: Int64[Tensor, "b n 2 3"]
) -> Shaped[Tensor, "b n c _ _ _"]:
    """Cut boxes of one size out of each volume; what lies outside is zero.

    Args:
        volumes: The volumes.
        boxes: For each volume the same number of boxes, all of one size.

    Raises:
        ValueError: If the boxes differ in size.
    """
    sizes = (boxes[..., 1, :] - boxes[..., 0, :]).reshape(-1, 3)
    if not bool((sizes == sizes[0]).all()):
        raise ValueError(f"boxes differ in size: {sizes.unique(dim=0).tolist()}.")
    low = (-boxes[..., 0, :]).clamp(min=0).reshape(-1, 3).amax(dim=0)
    high = (boxes[..., 1, :] - torch.tensor(volumes.shape[2:])).clamp(min=0)
    high = high.reshape(-1, 3).amax(dim=0)
    if int(low.max()) or int(high.max()):
        pads = [int(p) for axis in (2, 1, 0) for p in (low[axis], high[axis])]
        volumes = F.pad(volumes, pads)
    parts = [
        volume[(slice(None), *(slice(int(a), int(b)) for a, b in zip(*box, strict=True)))]
        for volume, row in zip(volumes, (boxes + low).tolist(), strict=True)
        for box in row
    ]
    stacked = torch.stack(parts)
    return stacked.reshape(boxes.shape[0], boxes.shape[1], *stacked.shape[1:])
