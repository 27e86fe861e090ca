"""Dropping parts of volumes: boxes that become noise, or show something else.

As in the pre-training of Swin UNETR (MONAI's ``research-contributions``): boxes of many sizes are
added until their volumes sum up to a random share of the whole. They may overlap, so that less
than that share is covered: about 13 % on average where the share is up to 30 %.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from voco.augment.blocks import between, numbered_voxels
from voco.draws import Draws
from voco.shapes import Boxes, Shape3

_AT_ONCE = 64
"""Boxes drawn at a time; those beyond the share are not used."""


def draw_drops(
    draws: Draws,
    count: int,
    size: Shape3,
    *,
    most: float,
    edges: tuple[float, float],
) -> list[Boxes]:
    """Boxes of each volume, until their volumes sum up to a share of the whole.

    A box starts anywhere up to the shortest edge from the far side, and is cut at that side.

    Args:
        draws: Random numbers, for this alone.
        count: Volumes of this process.
        size: Voxels of a volume.
        most: Largest share; the share is drawn evenly from 0 to it.
        edges: Shortest edge of a box, and the one that none reaches, as shares of the volume's
            sides; at least one voxel in any case.
    """
    whole = torch.tensor(size)
    shortest, longest = (torch.tensor([int(side * share) for side in size]) for share in edges)
    least = shortest.clamp(min=1)
    longest = (longest - 1).maximum(least)
    budget = draws.uniform(count, 1).double() * most * math.prod(size)
    boxes = torch.empty(count, 0, 2, 3, dtype=torch.int64)
    volumes = torch.empty(count, 0, dtype=torch.int64)
    while (volumes.sum(dim=1, keepdim=True) < budget).any():
        # Draws of their own for each lot: how many lots one volume needs is nothing to the others.
        lot = draws.child(boxes.shape[1])
        sides = between(lot.uniform(count, _AT_ONCE, 3), least, longest)
        last = (whole - shortest - 1).clamp(min=0)
        starts = between(lot.uniform(count, _AT_ONCE, 3), torch.zeros_like(last), last)
        boxes = torch.cat([boxes, torch.stack([starts, (starts + sides).minimum(whole)], 2)], 1)
        volumes = (boxes[:, :, 1] - boxes[:, :, 0]).prod(dim=2)
    used = volumes.cumsum(dim=1) - volumes < budget
    return [row[chosen] for row, chosen in zip(boxes, used, strict=True)]


def filled_with_noise(
    volume: Float[Tensor, "c x y z"], boxes: Boxes, seed: int, ends: tuple[float, float]
) -> Float[Tensor, "c x y z"]:
    """A volume with noise in boxes, later ones on top.

    The noise of a box is normal, stretched so that its least and largest values are the ends.

    Args:
        volume: The volume.
        boxes: Inside it.
        seed: Of the noise.
        ends: The least and the largest value of every box.
    """
    channels, *size = volume.shape
    box, place = numbered_voxels(boxes, (size[0], size[1], size[2]), volume.device)
    generator = torch.Generator(volume.device).manual_seed(seed)
    noise = torch.empty(channels, len(box), dtype=volume.dtype, device=volume.device)
    noise.normal_(generator=generator)
    far = noise.new_full((len(boxes),), torch.inf)
    low = far.scatter_reduce(0, box, noise.amin(dim=0), "amin")
    high = (-far).scatter_reduce(0, box, noise.amax(dim=0), "amax")
    # A box of one voxel has no range.
    shares = (noise - low[box]) / (high - low).clamp(min=1e-6)[box]
    count = math.prod(size)
    top = torch.full((count,), -1, device=volume.device)
    seen = box == top.scatter_reduce(0, place, box, "amax")[place]
    # What lies under a later box goes beyond the end: to leave it out would mean to count it.
    out = F.pad(volume.flatten(1), (0, 1))
    out[:, torch.where(seen, place, count)] = ends[0] + shares * (ends[1] - ends[0])
    return out[:, :count].reshape(volume.shape)
