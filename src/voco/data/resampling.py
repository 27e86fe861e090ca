"""Arrays resampled slab by slab, so that no volume ever exists twice as float32.

Convention: the outer edges of the first and last voxels stay where they are, as in
:meth:`voco.geometry.Grid.reshaped` and as in :func:`torch.nn.functional.interpolate` without
aligned corners. The centre of new voxel ``i`` therefore lies at ``(i + 1/2) * old/new - 1/2`` in
old voxels, and nearest beyond the outermost centres.

Interpolation is linear along each axis: between the two neighbouring old voxels. Where an axis of
an image shrinks to less than half, that would skip old voxels; there the result is the mean of
the interpolated line over just enough of the new voxel (its length less two old ones) for every
old voxel to count. Linear functions of the position stay what they are in both cases.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int16, Int64, Integer, Shaped
from torch import Tensor

from voco.shapes import Shape3

_SLAB_VOXELS = 1 << 20
"""Voxels that are float32 at a time (4 MiB), of one channel."""

_NARROW = 1e-3
"""Old voxels; a mean over less is a sample."""

_OPEN = -1
"""In place of a class: not settled yet."""

_MANY = 0.3
"""Share of voxels beyond which interpolating all of them is faster than picking some."""

_EQUAL = 1e-5
"""Shares of classes that differ by less are equal: float32 sums depend on their order."""

Rows = Float[Tensor, "c _ _ _"]
"""Some rows of a volume: consecutive indices of its first axis."""


class Taps(NamedTuple):
    """Which old voxels a new one is made of, along one axis."""

    voxel: Integer[np.ndarray, "new taps"]
    weight: Float32[np.ndarray, "new taps"]
    """Sums to 1 over the taps."""


class Slab(NamedTuple):
    """Some rows of the result, and what they are made of."""

    made: slice
    """Rows of the result."""
    needed: slice
    """Rows of the source that they depend on."""
    taps: tuple[Taps, Taps, Taps]
    """Along each axis; along the first only for the rows made, counted among those needed."""


def resized(
    source: Shaped[np.ndarray, "c x y z"],
    shape: Shape3,
    dtype: type[np.generic] = np.float32,
    before: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> Shaped[np.ndarray, "c _ _ _"]:
    """An image in another number of voxels.

    Args:
        source: The image; a flipped or transposed view will do.
        shape: Voxels of the result.
        dtype: Type of the result; integers are rounded to (and must be able to hold the values).
        before: Applied to each slab of the source before it becomes float32.
    """
    made = np.empty((len(source), *shape), dtype)
    resize_into(made, source, before)
    return made


def resize_into(
    made: Shaped[np.ndarray, "c _ _ _"],
    source: Shaped[np.ndarray, "c x y z"],
    before: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> None:
    """Fill an array with an image in its number of voxels, as :func:`resized` gives it.

    Args:
        made: What is filled.
        source: The image; a flipped or transposed view will do.
        before: Applied to each slab of the source before it becomes float32.
    """
    if _first_axis_is_fastest(source):
        _resize(source.transpose(0, 3, 2, 1), made.transpose(0, 3, 2, 1), before)
    else:
        _resize(source, made, before)


def interpolated(source: Int16[Tensor, "c x y z"], shape: Shape3) -> Int16[Tensor, "c _ _ _"]:
    """An image in another number of voxels, by linear interpolation alone, rounded.

    What ``torch.nn.functional.interpolate`` gives with ``trilinear``, to the last digit before
    rounding, in a third of its time on a processor: axis by axis, and all that a row of the result
    is made of stays in the cache.
    """
    first, second, third = (
        _taps(old, new, widen=False) for old, new in zip(source.shape[1:], shape, strict=True)
    )
    made = source.new_empty(len(source), *shape)
    for old, new in zip(source, made, strict=True):
        rows: dict[int, Tensor] = {}
        for result, voxels, weights in zip(new, first.voxel, first.weight, strict=True):
            needed = voxels.tolist()
            for voxel in needed:
                if voxel not in rows:
                    rows[voxel] = _between(_between(old[voxel].float(), third, 1), second, 0)
            rows = {voxel: rows[voxel] for voxel in needed}
            low, high = rows[needed[0]], rows[needed[-1]]
            result.copy_(torch.lerp(low, high, float(weights[-1])).round_())
    return made


def resized_labels(
    source: Integer[np.ndarray, "x y z"], shape: Shape3
) -> Integer[np.ndarray, "_ _ _"]:
    """A label map (no negative values) in another number of voxels; values and type stay.

    Each new voxel takes the class with the largest share in the linear interpolation of all
    classes' masks; at a tie the smaller value wins. One class at a time is in memory.
    """
    if source.shape == shape:
        return source
    if _first_axis_is_fastest(source[None]):
        return resized_labels(source.T, (shape[2], shape[1], shape[0])).T
    made = np.empty(shape, source.dtype)
    for slab in slabs(_shape(source), shape, widen=False):
        rows = np.ascontiguousarray(source[slab.needed])
        values = np.flatnonzero(np.bincount(rows.ravel())).astype(source.dtype)
        masks = (torch.from_numpy((rows == value)[None].astype(np.float32)) for value in values)
        made[slab.made] = values[strongest(masks, slab, _EQUAL).numpy()]
    return made


def slabs(old: Shape3, new: Shape3, *, widen: bool) -> Iterator[Slab]:
    """Cut a resampling into slabs along the first axis that fit into little memory.

    Args:
        old: Voxels of the source.
        new: Voxels of the result.
        widen: Whether to weigh all old voxels where an axis shrinks to less than half.
    """
    first, *others = (_taps(a, b, widen=widen) for a, b in zip(old, new, strict=True))
    area = max(old[1] * old[2], new[1] * new[2])
    rows = max(1, int(_SLAB_VOXELS / (area * max(1.0, old[0] / new[0]))))
    for start in range(0, new[0], rows):
        made = slice(start, min(start + rows, new[0]))
        low, high = int(first.voxel[made].min()), int(first.voxel[made].max()) + 1
        here = Taps(first.voxel[made] - low, first.weight[made])
        yield Slab(made, slice(low, high), (here, others[0], others[1]))


def stretch(needed: Rows, slab: Slab) -> Rows:
    """The rows of a slab, from the source's rows that they need."""
    size = (len(slab.taps[1].voxel), len(slab.taps[2].voxel))
    rows = _mix(needed, slab.taps[0], axis=1)
    for axis in (2, 3):
        if slab.taps[axis - 1].voxel.shape[1] > 2:
            rows = _mix(rows, slab.taps[axis - 1], axis)
    if tuple(rows.shape[2:]) == size:
        return rows
    return F.interpolate(rows, size=size, mode="bilinear")


def strongest(scores: Iterator[Rows], slab: Slab, margin: float = 0.0) -> Integer[Tensor, "_ _ _"]:
    """Number of the highest of several scores after resampling, one at a time in memory.

    Args:
        scores: For each class its scores ``(1, x, y, z)`` in the needed rows; at a tie the
            earlier class wins.
        slab: Which rows to make.
        margin: By how much a later class must be higher.
    """
    best = stretch(next(scores), slab)[0]
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for number, rows in enumerate(scores, start=1):
        score = stretch(rows, slab)[0]
        winner.masked_fill_(score > (best + margin if margin else best), number)
        torch.maximum(best, score, out=best)
    return winner


def winners(scores: Rows, slab: Slab) -> Int16[Tensor, "_ _ _"]:
    """Number of the highest of all classes' scores after resampling, the earlier one at a tie.

    A weighted mean keeps an order that all its parts share: where the same class is highest in
    all old voxels that a new one lies between, it is highest there too. Only the others are
    interpolated, those along the borders of the classes.

    Args:
        scores: Of each class ``(k, x, y, z)`` in the needed rows.
        slab: Which rows to make, of a resampling that is not widened.
    """
    settled = _highest(scores)
    for axis, taps in enumerate(slab.taps):
        if taps.voxel.shape[1] > 1:
            settled = _agreed(settled, axis)
        first = torch.from_numpy(taps.voxel[:, 0]).to(scores.device)
        settled = settled.index_select(axis, first)
    rest = torch.nonzero(settled.view(-1) == _OPEN).squeeze(1)
    if len(rest) > _MANY * settled.numel():
        return strongest((score[None] for score in scores), slab)
    if len(rest):
        table = scores.flatten(1).T.contiguous()
        places, weights = _corners(rest, slab, (scores.shape[1], scores.shape[2], scores.shape[3]))
        mixed = F.embedding_bag(places, table, mode="sum", per_sample_weights=weights)
        settled.view(-1)[rest] = mixed.argmax(dim=1).to(torch.int16)
    return settled


def _highest(scores: Rows) -> Int16[Tensor, "_ _ _"]:
    """Number of the highest score of each old voxel. Many times faster than torch's argmax."""
    best = scores[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for number, score in enumerate(scores[1:], start=1):
        winner.masked_fill_(score > best, number)
        torch.maximum(best, score, out=best)
    return winner


def _agreed(winner: Int16[Tensor, "_ _ _"], axis: int) -> Int16[Tensor, "_ _ _"]:
    """What a voxel and the next one along an axis both say; the last one has no next."""
    here = winner.narrow(axis, 0, winner.shape[axis] - 1)
    after = winner.narrow(axis, 1, winner.shape[axis] - 1)
    same = torch.where(here == after, here, _OPEN)
    return torch.cat([same, winner.narrow(axis, winner.shape[axis] - 1, 1)], dim=axis)


def _corners(
    voxels: Int64[Tensor, "n"], slab: Slab, old: Shape3
) -> tuple[Int64[Tensor, "n c"], Float[Tensor, "n c"]]:
    """The old voxels (flat) that new ones (flat) are made of, and their weights."""
    new = [len(taps.voxel) for taps in slab.taps]
    x = torch.div(voxels, new[1] * new[2], rounding_mode="floor")
    y = torch.div(voxels, new[2], rounding_mode="floor") % new[1]
    places = torch.zeros(len(voxels), 1, dtype=torch.int64, device=voxels.device)
    weights = torch.ones(len(voxels), 1, device=voxels.device)
    for taps, index, side in zip(slab.taps, (x, y, voxels % new[2]), old, strict=True):
        voxel = torch.from_numpy(taps.voxel).to(voxels.device)[index]
        weight = torch.from_numpy(taps.weight).to(voxels.device)[index]
        places = (places[:, :, None] * side + voxel[:, None]).flatten(1)
        weights = (weights[:, :, None] * weight[:, None]).flatten(1)
    return places, weights


def _resize(
    source: Shaped[np.ndarray, "c _ _ _"],
    made: Shaped[np.ndarray, "c _ _ _"],
    before: Callable[[np.ndarray], np.ndarray],
) -> None:
    for slab in slabs(_shape(source), _shape(made), widen=True):
        for old, new in zip(source, made, strict=True):
            rows = np.ascontiguousarray(before(old[slab.needed]), dtype=np.float32)
            result = stretch(torch.from_numpy(rows[None]), slab)[0]
            new[slab.made] = (result if made.dtype.kind == "f" else result.round()).numpy()


def _mix(rows: Rows, taps: Taps, axis: int) -> Rows:
    """Weighted sums along one axis."""
    if taps.voxel.shape[1] == 1 and len(taps.voxel) == rows.shape[axis]:
        return rows
    if axis == 1 and taps.voxel.shape[1] == 2:
        # Row by row nothing is gathered first: of all that preparing does, this is read most.
        return torch.stack(
            [
                torch.lerp(rows[:, low], rows[:, high], float(share))
                for (low, high), (_, share) in zip(taps.voxel.tolist(), taps.weight, strict=True)
            ],
            dim=1,
        )
    width = [1, 1, 1, 1]
    width[axis] = len(taps.voxel)
    index = torch.from_numpy(taps.voxel).to(rows.device)
    weight = torch.from_numpy(taps.weight).to(rows.device)
    mixed = rows.index_select(axis, index[:, 0]) * weight[:, 0].view(width)
    for place in range(1, index.shape[1]):
        mixed.addcmul_(rows.index_select(axis, index[:, place]), weight[:, place].view(width))
    return mixed


def _between(plane: Float[Tensor, "_ _"], taps: Taps, axis: int) -> Float[Tensor, "_ _"]:
    """Linear interpolation along one axis."""
    low, high = (torch.from_numpy(taps.voxel[:, place]) for place in (0, -1))
    share = torch.from_numpy(taps.weight[:, -1])
    return torch.lerp(
        plane.index_select(axis, low),
        plane.index_select(axis, high),
        share if axis else share[:, None],
    )


def _taps(old: int, new: int, *, widen: bool) -> Taps:
    ratio = old / new
    width = max(0.0, ratio - 2) if widen else 0.0
    centre = ((np.arange(new) + 0.5) * ratio - 0.5)[:, None]
    first = np.floor(centre - width / 2).astype(np.int64)
    voxel = first + np.arange(int(np.ceil(width)) + 2)
    weight = _mean_of_hat(centre - voxel, width)
    used = weight.any(axis=0)
    return Taps(voxel[:, used].clip(0, old - 1), weight[:, used].astype(np.float32))


def _mean_of_hat(distance: Float64[np.ndarray, "*n"], width: float) -> Float64[np.ndarray, "*n"]:
    """Mean over an interval round each distance of ``max(0, 1 - |t|)``, linear interpolation."""
    if width < _NARROW:
        return np.clip(1 - np.abs(distance), 0, None)
    return (_integral_of_hat(distance + width / 2) - _integral_of_hat(distance - width / 2)) / width


def _integral_of_hat(stop: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    stop = np.clip(stop, -1, 1)
    return np.where(stop < 0, (stop + 1) ** 2 / 2, 1 - (1 - stop) ** 2 / 2)


def _shape(array: Shaped[np.ndarray, "..."]) -> Shape3:
    x, y, z = array.shape[-3:]
    return (x, y, z)


def _first_axis_is_fastest(array: Shaped[np.ndarray, "c x y z"]) -> bool:
    """Whether slabs along the last axis are contiguous, as in arrays read from NIfTI."""
    return abs(array.strides[1]) < abs(array.strides[3])
