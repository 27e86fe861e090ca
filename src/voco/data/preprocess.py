"""Scans onto the store's grid, and results back onto the scan's: pure functions of arrays.

Preparing a store and predicting a scan share :func:`prepare_volume`, so a network sees the same
voxels in both. The way back (:func:`restore_rows`, :func:`restore_labels`, :func:`restore_maps`)
needs nothing but the two grids, and works on rows as they come out of a network.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int16, Integer, Shaped
from torch import Tensor

from voco.data.encoding import Encoding, choose_encoding, describe, histogram
from voco.data.foreground import Box, body_box, body_threshold
from voco.data.resampling import (
    Slab,
    resize_into,
    resized,
    resized_labels,
    slabs,
    stretch,
    winners,
)
from voco.data.store import ChannelStatistics, Preprocessing
from voco.geometry import Grid
from voco.shapes import Shape3, Spacing
from voco.volume import Volume


@dataclass(frozen=True)
class Prepared:
    """A scan as a store holds it.

    Attributes:
        image: int16 ``(c, x, y, z)``; ``value = image * scale + offset`` per channel.
        label: Class numbers ``(x, y, z)``, or ``None``.
        grid: Where its voxels are.
        source_grid: Where the scan's voxels were, in the scan's own order.
        modality: ``CT``, ``MR``, ..., ``unknown``.
        scale: Per channel: source units per stored unit.
        offset: Per channel: source units at stored 0.
        statistics: Per channel, in source units.
        foreground: The box that holds the body; ``None`` where none was found.
        class_voxels: Voxels of each label value.
        warnings: What a reader should know.
    """

    image: Int16[np.ndarray, "c x y z"]
    label: Integer[np.ndarray, "x y z"] | None
    grid: Grid
    source_grid: Grid
    modality: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    statistics: tuple[ChannelStatistics, ...]
    foreground: Box | None
    class_voxels: dict[int, int]
    warnings: tuple[str, ...]


def prepare_volume(
    image: Volume,
    preprocessing: Preprocessing,
    *,
    modality: str = "unknown",
    label: Volume | None = None,
) -> Prepared:
    """Bring a scan onto a store's grid and into its units.

    Args:
        image: The scan, on its own grid, in source units.
        preprocessing: How the store wants it.
        modality: Decides where the body begins, and the step of fractional CT.
        label: Class numbers on the grid of the image.

    Raises:
        ValueError: If the label has another shape than the image.
    """
    upright = to_ras(image)
    grid = _target(upright.grid, preprocessing.spacing_mm)
    encodings = [choose_encoding(channel, modality) for channel in upright.array]
    stored = np.empty((len(encodings), *grid.shape), np.int16)
    for place, (channel, encoding) in enumerate(zip(upright.array, encodings, strict=True)):
        resize_into(stored[place : place + 1], channel[None], encoding.stored)
    classes = None if label is None else _prepare_label(label, image.grid, grid.shape)
    counts = [histogram(channel) for channel in stored]
    above = [
        body_threshold(count, encoding, modality)
        for count, encoding in zip(counts, encodings, strict=True)
    ]
    box = body_box(stored, above, classes)
    warnings = [encoding.warning for encoding in encodings if encoding.warning]
    if box is None:
        warnings.append("no body found: all voxels are air, or all are equal")
    elif preprocessing.foreground:
        stored, classes, grid = _cut(stored, classes, grid, box)
        box = ((0, 0, 0), grid.shape)
    return Prepared(
        image=stored,
        label=classes,
        grid=grid,
        source_grid=image.grid,
        modality=modality,
        scale=tuple(encoding.scale for encoding in encodings),
        offset=tuple(encoding.offset for encoding in encodings),
        statistics=_statistics(stored, box, encodings, above),
        foreground=box,
        class_voxels={} if classes is None else count_classes(classes),
        warnings=tuple(warnings),
    )


def to_ras(volume: Volume) -> Volume:
    """The volume with axes towards Right, Anterior, Superior; a view, nothing is copied.

    Axes are permuted and flipped, never interpolated: an oblique scan stays oblique.
    """
    order, flipped = _ras_axes(volume.grid)
    array = volume.array.transpose(0, *(axis + 1 for axis in order))
    return Volume(array[(slice(None), *_steps(flipped))], ras_grid(volume.grid))


def ras_grid(grid: Grid) -> Grid:
    """The grid after :func:`to_ras`."""
    order, flipped = _ras_axes(grid)
    shape = tuple(grid.shape[axis] for axis in order)
    affine = grid.affine.copy()
    affine[:, :3] = grid.affine[:, list(order)]
    for axis in np.flatnonzero(flipped):
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return Grid((shape[0], shape[1], shape[2]), affine + 0.0)  # no -0.0


def from_ras(array: Shaped[np.ndarray, "*c x y z"], grid: Grid) -> Shaped[np.ndarray, "*c _ _ _"]:
    """The inverse of :func:`to_ras`, of an array on :func:`ras_grid` of a grid; a view."""
    order, flipped = _ras_axes(grid)
    lead = array.ndim - 3
    array = array[(..., *_steps(flipped))]
    back = np.argsort(order)
    return array.transpose(*range(lead), *(int(axis) + lead for axis in back))


def resample(volume: Volume, spacing_mm: Spacing, *, label: bool = False) -> Volume:
    """A volume on :meth:`~voco.geometry.Grid.resampled` of its grid.

    Args:
        volume: An image, or a label with one channel.
        spacing_mm: What is wanted; the result's spacing divides the same extent evenly.
        label: Whether the numbers are classes. Then each voxel takes the class with the largest
            interpolated share; else the result is float32, interpolated linearly.
    """
    grid = volume.grid.resampled(spacing_mm)
    if label:
        return Volume(resized_labels(volume.array[0], grid.shape)[None], grid)
    return Volume(resized(volume.array, grid.shape), grid)


def count_classes(label: Integer[np.ndarray, "x y z"]) -> dict[int, int]:
    """Voxels of each value that occurs."""
    counts = np.zeros(0, np.int64)
    for rows in label:
        here = np.bincount(rows.ravel(), minlength=len(counts))
        here[: len(counts)] += counts
        counts = here
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


class Restored(NamedTuple):
    """A prediction on a scan's own grid, in its own order of axes."""

    labels: Integer[np.ndarray, "x y z"]
    """Number of the class with the highest score: uint8, or int16 for more than 256 classes."""
    shares: Float32[np.ndarray, "classes x y z"] | None
    """Probability of each class, where it was asked for."""


def restore_rows(
    parts: Iterable[tuple[slice, Float[Tensor, "classes _ y z"]]],
    grid: Grid,
    source: Grid,
    *,
    shares: bool = False,
) -> Restored:
    """The winning class of each voxel of a scan, from logits that come row by row.

    The logits are interpolated linearly, then compared, as soon as the rows are there that a slab
    of the result needs. So neither the logits nor what becomes of them is ever held for a whole
    volume; only probabilities, if wanted. Where the prepared volume was cut
    away, class 0 is, for certain.

    Args:
        parts: Rows of the prepared grid (consecutive x, in rising order, without gaps) and the
            scores of each class there. Their order decides, so probabilities will do. Each part
            is used up before the next one is asked for.
        grid: Where they lie: :attr:`Prepared.grid`.
        source: Where the result shall lie: :attr:`Prepared.source_grid`.
        shares: Whether the softmax over the classes is brought back as well: interpolated
            linearly itself, not made of interpolated logits.

    Raises:
        ValueError: If the prepared grid was not made from the source's.
    """
    way = _Way.between(grid, source)
    labels: Integer[np.ndarray, "x y z"] = np.zeros(0, np.uint8)
    maps: Float32[np.ndarray, "classes x y z"] | None = None
    for slab, rows in _gathered(parts, way):
        if not labels.size:
            labels = np.zeros(way.new, np.uint8 if len(rows) <= 256 else np.int16)
            maps = np.empty((len(rows), *way.new), np.float32) if shares else None
        labels[slab.made] = winners(rows, slab).cpu().numpy()
        if maps is not None:
            for share, made in zip(rows.softmax(dim=0), maps, strict=True):
                made[slab.made] = stretch(share[None], slab)[0].cpu().numpy()
    for axis, outside in enumerate(way.outside()):
        cut = (slice(None),) * axis + (outside,)
        labels[cut] = 0
        if maps is not None:
            maps[(slice(None), *cut)] = 0
            maps[(0, *cut)] = 1
    return Restored(from_ras(labels, source), None if maps is None else from_ras(maps, source))


def restore_labels(
    logits: Float[Tensor, "classes x y z"], grid: Grid, source: Grid
) -> Integer[np.ndarray, "_ _ _"]:
    """The winning class of each voxel of a scan: :func:`restore_rows` of all rows at once."""
    return restore_rows([(slice(0, logits.shape[1]), logits)], grid, source).labels


def restore_maps(
    maps: Float[Tensor, "c x y z"], grid: Grid, source: Grid, outside: float = 0.0
) -> Float[np.ndarray, "c _ _ _"]:
    """Numbers at each voxel of a scan, from those on the prepared grid.

    Args:
        maps: What to bring back; interpolated linearly.
        grid: Where they lie.
        source: Where the result shall lie.
        outside: Value where the prepared volume was cut away.

    Raises:
        ValueError: If the prepared grid was not made from the source's.
    """
    way = _Way.between(grid, source)
    made = np.empty((len(maps), *way.new), np.float32)
    for slab, rows in _gathered([(slice(0, maps.shape[1]), maps)], way):
        for values, result in zip(rows, made, strict=True):
            result[slab.made] = stretch(values[None], slab)[0].numpy()
    for axis, beyond in enumerate(way.outside()):
        made[(slice(None),) * (axis + 1) + (beyond,)] = outside
    return from_ras(made, source)


@dataclass(frozen=True)
class _Way:
    """From a prepared grid back to the (RAS) grid of its source."""

    old: Shape3
    """Voxels of the prepared grid before it was cut."""
    new: Shape3
    """Voxels of the source, in RAS order."""
    start: Shape3
    stop: Shape3
    """What of the prepared grid was kept."""

    @staticmethod
    def between(grid: Grid, source: Grid) -> "_Way":
        upright = ras_grid(source)
        sides = np.asarray(upright.spacing_mm) * upright.shape / np.asarray(grid.spacing_mm)
        old = tuple(int(side) for side in np.round(sides))
        whole = upright.reshaped((old[0], old[1], old[2]))
        exact = np.linalg.solve(whole.affine, grid.affine)
        start = np.round(exact[:3, 3]).astype(int)
        stop = start + grid.shape
        fits = np.allclose(exact[:3, :3], np.eye(3), atol=1e-3)
        fits = fits and np.allclose(exact[:3, 3], start, atol=0.05)
        if not fits or start.min() < 0 or (stop > old).any():
            raise ValueError(f"{grid} was not made from {source}.")
        low, high = start.tolist(), stop.tolist()
        return _Way(whole.shape, upright.shape, tuple(low), tuple(high))

    def kept(self, slab: Slab) -> tuple[int, int]:
        """The first row that a slab needs of those kept, and the one after the last."""
        last = self.stop[0] - self.start[0] - 1
        low, high = slab.needed.start - self.start[0], slab.needed.stop - 1 - self.start[0]
        return min(max(low, 0), last), min(max(high, 0), last) + 1

    def widened(self, rows: Float[Tensor, "c _ y z"], slab: Slab) -> Float[Tensor, "c _ _ _"]:
        """All that a slab needs, what was cut away filled with its nearest neighbour."""
        index = np.arange(slab.needed.start, slab.needed.stop) - self.start[0] - self.kept(slab)[0]
        inside = index.clip(0, rows.shape[1] - 1)
        if len(index) > rows.shape[1]:
            rows = rows[:, torch.from_numpy(inside).to(rows.device)]
        (_, y0, z0), (_, y1, z1) = self.start, self.stop
        pads = (z0, self.old[2] - z1, y0, self.old[1] - y1)
        return F.pad(rows, pads, mode="replicate") if any(pads) else rows

    def outside(self) -> Iterator[Shaped[np.ndarray, "_"]]:
        """For each axis, which voxels of the source have their centre in what was cut away."""
        for old, new, start, stop in zip(self.old, self.new, self.start, self.stop, strict=True):
            centre = (np.arange(new) + 0.5) * (old / new)
            yield (centre < start) | (centre > stop)


def _gathered(
    parts: Iterable[tuple[slice, Float[Tensor, "c _ y z"]]], way: _Way
) -> Iterator[tuple[Slab, Float[Tensor, "c _ _ _"]]]:
    """The slabs of the way back, each with what it needs as soon as that has come."""
    waiting = slabs(way.old, way.new, widen=False)
    slab = next(waiting, None)
    held: list[tuple[int, Float[Tensor, "c _ y z"]]] = []
    for where, rows in parts:
        held.append((where.start, rows.float()))
        while slab is not None and way.kept(slab)[1] <= where.stop:
            yield slab, way.widened(_between(held, *way.kept(slab)), slab)
            slab = next(waiting, None)
        if slab is not None:
            first = min(way.kept(slab)[0], where.stop)
            held = [(first, _between(held, first, where.stop).clone())]
    if slab is not None:
        raise ValueError(f"rows are missing: {slab.made} needs {slab.needed}.")


def _between(
    held: Sequence[tuple[int, Float[Tensor, "c _ y z"]]], low: int, high: int
) -> Float[Tensor, "c _ y z"]:
    """Rows ``low`` to ``high`` of consecutive parts, each with the number of its first row."""
    pieces = [rows[:, max(0, low - first) : max(0, high - first)] for first, rows in held]
    some = [piece for piece in pieces if piece.shape[1]]
    return torch.cat(some, dim=1) if len(some) > 1 else (some or pieces)[0]


def _target(upright: Grid, spacing_mm: Spacing | None) -> Grid:
    return upright if spacing_mm is None else upright.resampled(spacing_mm)


def _prepare_label(label: Volume, grid: Grid, shape: Shape3) -> Integer[np.ndarray, "x y z"]:
    if label.grid.shape != grid.shape:
        raise ValueError(f"label {label.grid.shape} and image {grid.shape} differ in shape.")
    # The image's grid, so that both are turned in the same way even where headers round.
    upright = to_ras(Volume(label.array, grid))
    return resized_labels(upright.array[0], shape)


def _statistics(
    stored: Int16[np.ndarray, "c x y z"],
    box: Box | None,
    encodings: Sequence[Encoding],
    above: Sequence[float],
) -> tuple[ChannelStatistics, ...]:
    (x0, y0, z0), (x1, y1, z1) = box or ((0, 0, 0), stored.shape[1:])
    body = stored[:, x0:x1, y0:y1, z0:z1]
    whole = [histogram(channel) for channel in stored]
    part = whole if body.shape == stored.shape else [histogram(channel) for channel in body]
    return tuple(map(describe, whole, part, encodings, above))


def _cut(
    stored: Int16[np.ndarray, "c x y z"],
    label: Integer[np.ndarray, "x y z"] | None,
    grid: Grid,
    box: Box,
) -> tuple[Int16[np.ndarray, "c _ _ _"], Integer[np.ndarray, "_ _ _"] | None, Grid]:
    start, stop = box
    x, y, z = (slice(low, high) for low, high in zip(start, stop, strict=True))
    shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    cut_label = None if label is None else label[x, y, z]
    return stored[:, x, y, z], cut_label, grid.crop(start, shape)


def _ras_axes(grid: Grid) -> tuple[Shape3, tuple[bool, bool, bool]]:
    """For R, A and S: which axis of the grid it is, and whether that points the other way."""
    letters = grid.orientation
    x, y, z = (
        next(axis for axis, letter in enumerate(letters) if letter in pair)
        for pair in ("RL", "AP", "SI")
    )
    flips = (letters[x] == "L", letters[y] == "P", letters[z] == "I")
    return (x, y, z), flips


def _steps(flipped: tuple[bool, bool, bool]) -> tuple[slice, slice, slice]:
    x, y, z = (slice(None, None, -1 if flip else 1) for flip in flipped)
    return x, y, z
