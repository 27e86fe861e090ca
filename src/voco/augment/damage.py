"""What volumes suffer before a network restores them: shuffled voxels, bent intensities, noise.

After Models Genesis (Zhou et al., MICCAI 2019), whose damages other methods took over with other
numbers. Intensities are meant to be in [0, 1].
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.augment.blocks import covered, draw_blocks, numbered_voxels
from voco.augment.chosen import change
from voco.draws import Draws
from voco.shapes import Boxes, Shape3, Volumes

Order = Literal["own", "shared"]
"""Whether each block has an order of its voxels of its ``own``, or all ``shared`` one."""

_SAMPLES = 100_000
"""Points of a curve."""
_BOX_AGAIN, _MOST_BOXES = 0.95, 5
"""How often one more box is painted, and up to how many."""
_BORDER = 3
"""Voxels between a painted box and the edge of a volume, as far as there is room."""


# ---- shuffling --------------------------------------------------------------------------------


def shuffled(
    volumes: Volumes,
    draws: Draws,
    *,
    probability: float,
    blocks: int,
    shortest: Int64[Tensor, "three"],
    longest: Int64[Tensor, "three"],
    order: Order = "own",
) -> Volumes:
    """Volumes, some of them with voxels shuffled within small blocks; all channels alike.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        probability: Of shuffling a volume.
        blocks: Of a volume. They may overlap: every voxel comes from the last block it lies in,
            and from the volume as it was.
        shortest: Voxels of a block's shortest side along each axis.
        longest: Voxels of its longest side.
        order: Of the voxels within blocks.
    """
    count, size = len(volumes), size_of(volumes)
    chosen = draws.uniform(count) < probability
    seeds = draws.integers(count, high=1 << 62)
    boxes = draw_blocks(draws, count, blocks, size, shortest=shortest, longest=longest)
    rows = volumes.flatten(2)
    return torch.stack(
        [
            row[:, origins(box, size, seed, order, row.device)] if yes else row
            for row, box, seed, yes in zip(rows, boxes, seeds.tolist(), chosen, strict=True)
        ]
    ).view_as(volumes)


def origins(
    boxes: Boxes,
    size: Shape3,
    seed: int,
    order: Order = "own",
    device: torch.device | None = None,
) -> Int64[Tensor, "v"]:
    """From which voxel each voxel of a volume comes, if voxels are shuffled within boxes.

    All boxes at once: a voxel in several boxes comes from within the last of them.

    Args:
        boxes: Inside the volume; on the CPU.
        size: Voxels of the volume; they are numbered with z innermost.
        seed: Of the orders within the boxes.
        order: Whether boxes of one size have the same order.
        device: Where they are shuffled; ``None`` is the CPU.
    """
    box, place = numbered_voxels(boxes, size, device)
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    if order == "own":
        noise = torch.rand(len(box), generator=generator, device=device, dtype=torch.float64)
    else:
        within = torch.arange(len(box), device=device) - torch.searchsorted(box, box)
        longest = int((boxes[:, 1] - boxes[:, 0]).prod(dim=1).max())
        noise = torch.rand(longest, generator=generator, device=device, dtype=torch.float64)[within]
    sources = (box + noise).argsort()  # sorts within each box alone
    count = size[0] * size[1] * size[2]
    voxels = torch.arange(count + 1, device=device)
    last = torch.full_like(voxels, -1).scatter_reduce(0, place, box, "amax")
    # Voxels of an earlier box go beyond the end: to leave them out would mean to count them.
    voxels[torch.where(box == last[place], place, count)] = place[sources]
    return voxels[:count]


def block_sides(size: Shape3) -> Int64[Tensor, "2 three"]:
    """Voxels of the shortest and of the longest sides of the blocks that are shuffled."""
    longest = torch.tensor(size) // 10
    return torch.stack([torch.ones_like(longest), longest.clamp(min=1)])


# ---- curves -----------------------------------------------------------------------------------


def curved(
    volumes: Volumes, draws: Draws, *, probability: float, inverted_probability: float
) -> Volumes:
    """Volumes, some of them with intensities sent through a random curve.

    Args:
        volumes: In [0, 1]; where a curve is applied, what lies outside is cut.
        draws: Random numbers.
        probability: Of a curve.
        inverted_probability: Share of the curves that fall.
    """
    count = len(volumes)
    chosen = draws.uniform(count) < probability
    inverted = draws.uniform(count) < inverted_probability
    points = draws.uniform(count, 2, 2)

    def bent(some: Volumes, rows: Int64[Tensor, "_"]) -> Volumes:
        x, y = (side.to(some) for side in curve(points[rows], inverted[rows]))
        return interpolated(some, x, y)

    return change(volumes, [(chosen, bent)])


def curve(
    points: Float[Tensor, "b two 2"], inverted: Bool[Tensor, "b"], samples: int = _SAMPLES
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Cubic Bezier curves from (0, 0) to (1, 1), or mirrored: from (0, 1) to (1, 0).

    Args:
        points: The two inner control points, in [0, 1]; so both coordinates rise throughout.
        inverted: Which curves fall.
        samples: Points of a curve.

    Returns:
        Inputs, rising, and outputs.
    """
    t = torch.linspace(0, 1, samples)
    weights = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    x, y = (points.mT @ weights + t**3).sort(dim=-1).values.unbind(dim=1)
    return x, torch.where(inverted[:, None], y.flip(1), y)


def interpolated(volumes: Volumes, x: Float[Tensor, "b n"], y: Float[Tensor, "b n"]) -> Volumes:
    """Intensities sent through curves, linearly between their points.

    Args:
        volumes: The volumes.
        x: Inputs, rising; intensities beyond the first and the last are cut to them.
        y: Outputs.
    """
    values = volumes.flatten(1).minimum(x[:, -1:]).maximum(x[:, :1])
    above = torch.searchsorted(x.contiguous(), values).clamp(1, x.shape[1] - 1)
    left, right = x.gather(1, above - 1), x.gather(1, above)
    low, high = y.gather(1, above - 1), y.gather(1, above)
    # Points may coincide where a curve is steep.
    part = ((values - left) / (right - left).clamp(min=1e-12)).clamp(0, 1)
    return (low + part * (high - low)).view_as(volumes)


# ---- boxes ------------------------------------------------------------------------------------


def covered_by(
    boxes: Int64[Tensor, "b n 2 3"], numbers: Int64[Tensor, "b"], size: Shape3
) -> Bool[Tensor, "b x y z"]:
    """Which voxels of each volume lie in any of its first so many boxes."""
    firsts = zip(boxes, numbers.tolist(), strict=True)
    return torch.stack([covered(row[:number], size) for row, number in firsts])


def painted(volumes: Volumes, draws: Draws, *, probability: float, inpaint_share: float) -> Volumes:
    """Volumes, some of them with even noise from 0 to 1 in boxes or around them.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        probability: Of painting a volume.
        inpaint_share: Share of the paintings that are in boxes; the others are around them.
    """
    noise = draws.uniform_like(volumes)
    hidden = draw_hidden(
        draws, len(volumes), size_of(volumes), probability=probability, inpaint_share=inpaint_share
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
    inside = covered_by(boxes, again.long().cumprod(dim=1).sum(dim=1), size)
    return (inside == _per_voxel(inner)) & _per_voxel(chosen)


def size_of(volumes: Volumes) -> Shape3:
    """Voxels of a volume."""
    x, y, z = volumes.shape[2:]
    return (x, y, z)


def _per_voxel(chosen: Bool[Tensor, "b"]) -> Bool[Tensor, "b 1 1 1"]:
    return chosen.view(-1, 1, 1, 1)
