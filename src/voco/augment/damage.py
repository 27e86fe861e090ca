"""Damages that a network is to restore: voxels shuffled within blocks, boxes turned into noise.

Those of Models Genesis (Zhou et al., MICCAI 2019; code ``MrGiovanni/ModelsGenesis``), which PCRL
uses too: numbers and sizes of blocks and boxes are those of its code.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from voco.augment.blocks import draw_blocks
from voco.draws import Draws
from voco.shapes import Boxes, Shape3, Volumes

_BOX_AGAIN, _MOST_BOXES = 0.95, 5
_BORDER = 3
"""Voxels between a painted box and the border, where there is room."""


def shuffled(volumes: Volumes, draws: Draws, *, probability: float, blocks: int) -> Volumes:
    """Volumes, some of them with voxels shuffled within small blocks.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        probability: Of shuffling a volume.
        blocks: Of each volume, with sides up to a tenth of its own.
    """
    count, size = len(volumes), _size(volumes)
    chosen = draws.uniform(count) < probability
    seeds = draws.integers(count, high=1 << 62)
    longest = torch.tensor([max(1, side // 10) for side in size])
    boxes = draw_blocks(draws, count, blocks, size, shortest=torch.ones(3).long(), longest=longest)
    rows = volumes.flatten(2)
    return torch.stack(
        [
            row[:, origins(box.to(row.device), size, seed)] if yes else row
            for row, box, seed, yes in zip(rows, boxes, seeds.tolist(), chosen, strict=True)
        ]
    ).view_as(volumes)


def origins(boxes: Boxes, size: Shape3, seed: int) -> Int64[Tensor, "v"]:
    """From which voxel each voxel of a volume comes, if voxels are shuffled within boxes.

    All boxes at once: a voxel in several boxes comes from within the last of them.

    Args:
        boxes: Inside the volume.
        size: Voxels of the volume; they are numbered with z innermost.
        seed: Of the orders within the boxes.
    """
    device, edges = boxes.device, boxes[:, 1] - boxes[:, 0]
    counts = edges.prod(dim=1)
    box = torch.arange(len(boxes), device=device).repeat_interleave(counts)
    within = torch.arange(len(box), device=device) - (counts.cumsum(0) - counts)[box]
    _, rows, columns = edges[box].unbind(dim=1)
    x, y, z = boxes[box, 0].unbind(dim=1)
    x, y, z = x + within // (rows * columns), y + within // columns % rows, z + within % columns
    place = (x * size[1] + y) * size[2] + z
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.rand(len(box), generator=generator, device=device, dtype=torch.float64)
    order = (box + noise).argsort()  # sorts within each box alone
    voxels = torch.arange(size[0] * size[1] * size[2], device=device)
    last = torch.full_like(voxels, -1).scatter_reduce(0, place, box, "amax")
    counted = box == last[place]
    voxels[place[counted]] = place[order][counted]
    return voxels


def painted(volumes: Volumes, draws: Draws, *, probability: float, inpaint_share: float) -> Volumes:
    """Volumes, some of them with even noise from 0 to 1 in boxes or around them.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        probability: Of painting a volume.
        inpaint_share: Share of paintings in boxes; the others are around them.
    """
    noise = torch.special.ndtr(draws.noise_like(volumes))  # of normal numbers: uniform ones
    hidden = draw_hidden(
        draws, len(volumes), _size(volumes), probability=probability, inpaint_share=inpaint_share
    )
    return torch.where(hidden.to(volumes.device)[:, None], noise, volumes)


def draw_hidden(
    draws: Draws, count: int, size: Shape3, *, probability: float, inpaint_share: float
) -> Bool[Tensor, "b x y z"]:
    """Which voxels become noise: those in up to five boxes, or all outside of one to five larger.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        size: Voxels of a volume.
        probability: Of any of the two.
        inpaint_share: How often it is the first.
    """
    chosen = draws.uniform(count) < probability
    inner = draws.uniform(count) < inpaint_share
    again = draws.uniform(count, _MOST_BOXES) < _BOX_AGAIN
    again[:, 0] |= ~inner  # without a box, all would be hidden
    sides = torch.tensor(size)
    shortest = torch.stack([sides - 4 * sides // 7, sides // 6])
    longest = torch.stack([sides - 3 * sides // 7, sides // 3])
    large, small = (
        draw_blocks(draws, count, _MOST_BOXES, size, shortest=least, longest=most, border=_BORDER)
        for least, most in zip(shortest, longest, strict=True)
    )
    boxes = torch.where(inner[:, None, None, None], small, large)
    numbers = again.long().cumprod(dim=1).sum(dim=1)
    inside = torch.stack(
        [_union(row[:number], size) for row, number in zip(boxes, numbers.tolist(), strict=True)]
    )
    return (inside == _per_voxel(inner)) & _per_voxel(chosen)


def _union(boxes: Boxes, size: Shape3) -> Bool[Tensor, "x y z"]:
    inside = torch.zeros(size, dtype=torch.bool)
    for start, stop in boxes.tolist():
        inside[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return inside


def _size(volumes: Volumes) -> Shape3:
    x, y, z = volumes.shape[2:]
    return (x, y, z)


def _per_voxel(chosen: Bool[Tensor, "b"]) -> Bool[Tensor, "b 1 1 1"]:
    return chosen.view(-1, 1, 1, 1)
