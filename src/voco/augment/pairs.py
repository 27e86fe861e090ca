"""Pairs of crops that overlap: two looks at nearly the same place, for contrastive methods."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.augment.appearance import AppearanceConfig, changed
from voco.augment.blocks import between
from voco.augment.spatial import (
    affine,
    draw_affines,
    draw_flips,
    draw_turns,
    flip,
    turn,
)
from voco.draws import Draws
from voco.geometry import boxes_at, crop
from voco.shapes import Crops, Shape3, Volumes

_TRIES = 256
"""Pairs of boxes that are drawn to find one that overlaps enough."""


class Pairs(NamedTuple):
    """Pairs of crops of each volume; the firsts of all pairs stand before the seconds.

    Attributes:
        crops: Mirrored, turned and changed in their intensities.
        boxes: Where each crop was cut out of its volume.
        flips: Along which axes it was mirrored.
        turns: How many quarter turns it then made.
    """

    crops: Crops
    boxes: Int64[Tensor, "b n 2 3"]
    flips: Bool[Tensor, "b n three"]
    turns: Int64[Tensor, "b n"]


def cut_pairs(
    volumes: Volumes,
    draws: Draws,
    *,
    size: Shape3,
    pairs: int = 1,
    largest_offset: float,
    appearance: AppearanceConfig,
    blur_probabilities: tuple[float, float],
) -> Pairs:
    """Pairs of crops, each mirrored, turned and changed on its own.

    Args:
        volumes: The volumes.
        draws: The random numbers of the views.
        size: Voxels of a crop.
        pairs: Pairs of each volume.
        largest_offset: See :func:`pair_boxes`.
        appearance: What is done to crops.
        blur_probabilities: Of the first and of the second crop of a pair.

    Raises:
        ValueError: If a crop does not fit into the volumes.
    """
    count, (x, y, z) = len(volumes), volumes.shape[2:]
    places = draws.uniform(count, 2 * pairs, 3)
    boxes = pair_boxes(places, size, (x, y, z), largest_offset)
    flips = draw_flips(draws, count, 2 * pairs, appearance.flip_probability)
    square = size[0] == size[1]
    turns = draw_turns(draws, count, 2 * pairs, appearance.turn_probability, square=square)
    blurred = [share for share in blur_probabilities for _ in range(pairs)]
    crops = moved(crop(volumes, boxes), flips, turns)
    return Pairs(changed(crops, draws, appearance, blurred), boxes, flips, turns)


def moved(crops: Crops, flips: Bool[Tensor, "b n three"], turns: Int64[Tensor, "b n"]) -> Crops:
    """Crops mirrored and then turned; so too whatever lies on a grid of their shape."""
    flat = flip(crops.flatten(0, 1), flips.flatten(0, 1))
    return turn(flat, turns.flatten()).unflatten(0, tuple(turns.shape))


def pair_boxes(
    places: Float[Tensor, "b n 3"], size: Shape3, within: Shape3, largest_offset: float
) -> Int64[Tensor, "b n 2 3"]:
    """Where pairs of crops lie: the firsts of all pairs, then the seconds.

    The first of a pair lies anywhere; the second anywhere around it, as far as it stays within.

    Args:
        places: Numbers from [0, 1), one row per crop.
        size: Voxels of a crop.
        within: Voxels of the region that holds all crops.
        largest_offset: How far apart the two of a pair may start, along each axis, as a share of
            their size: they have at least ``(1 - largest_offset) ** 3`` of their voxels in common.

    Raises:
        ValueError: If a crop does not fit.
    """
    pairs = places.shape[1] // 2
    boxes = boxes_at(places[:, :pairs].flatten(0, 1), size, within)
    first = boxes[:, 0].unflatten(0, (len(places), pairs))
    reach = (torch.tensor(size) * largest_offset).floor().long()
    low = (first - reach).clamp(min=0)
    high = (first + reach).minimum(torch.tensor(within) - torch.tensor(size))
    second = low + (places[:, pairs:].double() * (high - low + 1)).long().minimum(high - low)
    start = torch.cat([first, second], dim=1)
    return torch.stack([start, start + torch.tensor(size)], dim=2)


def overlapping_boxes(
    draws: Draws, count: int, sizes: Sequence[Shape3], within: Shape3, least_overlap: float
) -> Int64[Tensor, "b 2 two 3"]:
    """Pairs of boxes of many sizes, placed anywhere, that overlap enough.

    Sizes and places of both are drawn together until they do, so that all pairs that overlap
    enough are equally likely. Where none of 256 does, it is the one that overlaps most.

    Args:
        draws: The random numbers of the views.
        count: Volumes of this process.
        sizes: Voxels that a box may have; each is drawn as often as the others.
        within: Voxels of the region that holds both; every size fits into it.
        least_overlap: What they share, as a share of what they cover together, must be more.
    """
    size = torch.tensor(sizes)[draws.integers(count, _TRIES, 2, high=len(sizes))]
    room = torch.tensor(within) - size
    start = between(draws.uniform(count, _TRIES, 2, 3), torch.zeros_like(room), room)
    boxes = torch.stack([start, start + size], dim=3)
    shared = union_share(boxes[:, :, 0], boxes[:, :, 1])
    # The first that overlaps enough stands above all others.
    rank = torch.where(shared > least_overlap, 2 - torch.arange(_TRIES) / _TRIES, shared)
    best = rank.argsort(dim=1, descending=True, stable=True)[:, 0]
    return boxes[torch.arange(count), best]


def union_share(
    first: Int64[Tensor, "*n 2 3"], second: Int64[Tensor, "*n 2 3"]
) -> Float[Tensor, "*n"]:
    """What two boxes share, as a share of what they cover together."""
    start = first[..., 0, :].maximum(second[..., 0, :])
    stop = first[..., 1, :].minimum(second[..., 1, :])
    common = (stop - start).clamp(min=0).prod(dim=-1)
    one, other = ((box[..., 1, :] - box[..., 0, :]).prod(dim=-1) for box in (first, second))
    return common / (one + other - common)


def swayed(
    crops: Crops, draws: Draws, *, flip_probability: float, scale: float, degrees: float
) -> Crops:
    """Crops mirrored along x, then turned and stretched by a little, each on its own.

    Args:
        crops: Crops of this process's volumes.
        draws: The random numbers of the views.
        flip_probability: Of mirroring a crop.
        scale: See :func:`~voco.augment.spatial.draw_affines`.
        degrees: Likewise.
    """
    count, each = crops.shape[:2]
    flips = draw_flips(draws, count, each, flip_probability) & torch.tensor([True, False, False])
    matrices = draw_affines(draws, count, each, scale=scale, degrees=degrees)
    flat = flip(crops.flatten(0, 1), flips.flatten(0, 1))
    return affine(flat, matrices.flatten(0, 1)).unflatten(0, (count, each))
