"""Boxes of many sizes within a volume, for what is mixed in, shuffled or hidden."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Boxes, Shape3


def draw_blocks(
    draws: Draws,
    count: int,
    number: int,
    size: Shape3,
    *,
    shortest: Int64[Tensor, "three"],
    longest: Int64[Tensor, "three"],
    border: int = 0,
) -> Int64[Tensor, "b n 2 3"]:
    """Boxes of which each side, and then the place, is drawn evenly.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        number: Boxes of each volume.
        size: Voxels of a volume.
        shortest: Voxels of the shortest side along each axis; at least 1 in any case.
        longest: Voxels of the longest side; at least the shortest in any case.
        border: Voxels between a box and the edge of the volume, as far as there is room.
    """
    least = shortest.clamp(min=1)
    sides = between(draws.uniform(count, number, 3), least, longest.maximum(least))
    room = torch.tensor(size) - sides
    margin = (room // 2).clamp(max=border)
    starts = between(draws.uniform(count, number, 3), margin, room - margin)
    return torch.stack([starts, starts + sides], dim=2)


def between(places: Tensor, low: Tensor, high: Tensor) -> Int64[Tensor, "..."]:
    """Whole numbers from ``low`` to ``high``, both included, from numbers in [0, 1)."""
    room = high - low + 1
    return low + (places.double() * room).long().minimum(room - 1)


def numbered_voxels(
    boxes: Boxes, size: Shape3, device: torch.device | None = None
) -> tuple[Int64[Tensor, "v"], Int64[Tensor, "v"]]:
    """All voxels of boxes, box by box, so that boxes need no loop.

    Args:
        boxes: Inside the volume; on the CPU, so that no device is waited for to count them.
        size: Voxels of the volume; they are numbered with z innermost.
        device: Where the numbers are to be; ``None`` is the CPU.

    Returns:
        The number of each voxel's box, rising, and the voxel's own number.
    """
    total = int((boxes[:, 1] - boxes[:, 0]).prod(dim=1).sum())
    boxes = boxes.to(device, non_blocking=True)
    edges = boxes[:, 1] - boxes[:, 0]
    counts = edges.prod(dim=1)
    box = torch.arange(len(boxes), device=device).repeat_interleave(counts, output_size=total)
    within = torch.arange(len(box), device=boxes.device) - (counts.cumsum(0) - counts)[box]
    _, rows, columns = edges[box].unbind(dim=1)
    x, y, z = boxes[box, 0].unbind(dim=1)
    x, y, z = x + within // (rows * columns), y + within // columns % rows, z + within % columns
    return box, (x * size[1] + y) * size[2] + z


def covered(boxes: Boxes, size: Shape3) -> Bool[Tensor, "x y z"]:
    """Which voxels lie in a box; on the CPU.

    Args:
        boxes: Inside the volume.
        size: Voxels of the volume.
    """
    inside = torch.zeros(size, dtype=torch.bool)
    for start, stop in boxes.tolist():
        inside[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return inside
