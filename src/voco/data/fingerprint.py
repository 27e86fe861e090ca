"""Whether two prepared volumes were made from the same scan: a fingerprint of about a kilobyte.

A fingerprint holds three things, from the strictest to the most forgiving:

- eight bytes of the hash of the image's files: equal for copies under any name;
- eight bytes of the hash of the prepared voxels: equal whatever the file was packed in, if both
  were prepared alike;
- up to three *looks* of each channel. A look is what is brighter than a threshold, within its box,
  on 16 x 16 x 16 cells. The cells are replaced by their ranks, so that gain, offset and windows of
  intensity hardly count, and the ranks are described by their 679 slowest cosine waves, four bits
  each. Perceptual hashes that find copies of photographs (such as pHash) describe grey values by
  their slowest waves, too; ranks, boxes and alignment are what volumes need in addition.

The three thresholds are Otsu's for two and for three classes and a tenth of the range: one of them
finds the body whatever the spacing, the margin and the window are. A volume without air, such as a
crop of the brain, has one box and one look.

Two looks are alike as far as their waves point in one direction. The slowest waves are left out,
since all bodies agree in them, and fast ones are raised, since anatomy has little in them. Where
that leaves it open, one box is shifted to where both agree best, at their true sizes in
millimetres: the boxes of one scan differ by what was cut off, those of two people in size as well.

How well this tells scans apart is measured in ``docs/how-to/leaks.md``, from which :data:`SAME` is
chosen. Two limits follow from what is compared: a part of a scan does not look like the whole, and
another scan of the same patient is another scan.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int16, Integer

from voco.data.foreground import Box, body_box
from voco.data.resampling import resized
from voco.shapes import Spacing

SAME = 0.9
"""Two looks that are at least this much alike (1: equal) are of one scan."""

WORTH_ALIGNING = 0.5
"""Looks that are less alike before they are aligned are of different scans."""

_VERSION = "1"
_COARSE = 48
"""The volume is looked at on this many voxels along each axis: more than a small one has, so that
the faces of its boxes lie between voxels."""
_CELLS = 16
_WAVES = 15
"""Along each axis, the constant one included."""
_SLOWEST, _FASTEST = 3, 14
"""Sums of a wave's three orders between which it is compared; slower ones serve to align."""
_WHITEN = 1.5
"""Each wave is raised by its order to this power."""
_STEPS_PER_RMS, _MOST_STEPS = 2.5, 7
_GREY, _BINS = 30000, 64
_ANEW = 0.97
"""A look that is more like one of the others tells nothing new."""
_HASH_BYTES = 8
_SHIFTS = (0.05, 0.025, 0.0125)
"""By how much of its side a box is shifted at a time, to align two looks."""
_ROUNDS = 4
_LARGEST_RATIO = 2.0
"""Boxes whose sides differ by more are not of one scan."""

Waves = Float32[np.ndarray, "*n waves"]
"""Raised amplitudes, in steps."""


class Looks(NamedTuple):
    """What a volume looks like, a row for each look; none if it is the same everywhere.

    Attributes:
        sides_mm: Of the box.
        waves: Of what is in it.
    """

    sides_mm: Float32[np.ndarray, "looks 3"]
    waves: Float32[np.ndarray, "looks waves"]


class Fingerprint(NamedTuple):
    """What is kept of a case to recognise its scan by.

    Attributes:
        files: Of the hash of its files; zeros where that is not known.
        voxels: Of the hash of its prepared voxels.
        looks: Of all channels.
    """

    files: bytes
    voxels: bytes
    looks: Looks

    def encode(self) -> str:
        """As text, for a store's list of cases and for ``handover.json``."""
        halves = (self.looks.waves + _MOST_STEPS + 1).astype(np.uint8)
        halves = np.pad(halves, ((0, 0), (0, halves.shape[1] % 2)))
        packed = (halves[:, ::2] << 4) | halves[:, 1::2]
        sides = self.looks.sides_mm.astype("<f4").view(np.uint8).reshape(len(packed), 12)
        rows = np.concatenate([sides, packed], axis=1)
        content = self.files + self.voxels + rows.tobytes()
        return f"{_VERSION}:{base64.b64encode(content).decode()}"


def fingerprint(
    image: Int16[np.ndarray, "c x y z"], spacing_mm: Spacing, files_sha256: str = ""
) -> Fingerprint:
    """The fingerprint of a prepared volume.

    Args:
        image: As a store holds it.
        spacing_mm: Of its voxels.
        files_sha256: Of the files that it was made from; empty where that is not known.
    """
    files = hashlib.sha256(files_sha256.encode()).digest() if files_sha256 else bytes(_HASH_BYTES)
    voxels = hashlib.sha256(str(image.shape).encode())
    voxels.update(np.ascontiguousarray(image).data)
    looks = [look for channel in image for look in _looks(channel, spacing_mm)]
    return Fingerprint(files[:_HASH_BYTES], voxels.digest()[:_HASH_BYTES], _stacked(looks))


def decode(text: str) -> Fingerprint | None:
    """The fingerprint in a text; ``None`` where there is none that this version can compare."""
    version, _, content = text.partition(":")
    if version != _VERSION:
        return None
    try:
        raw = base64.b64decode(content, validate=True)
    except binascii.Error:
        return None
    count, start = len(_raise()), 2 * _HASH_BYTES
    width = 12 + (count + 1) // 2
    if len(raw) < start or (len(raw) - start) % width:
        return None
    rows = np.frombuffer(raw, np.uint8, offset=start).reshape(-1, width)
    sides, packed = np.ascontiguousarray(rows[:, :12]), rows[:, 12:]
    halves = np.stack([packed >> 4, packed & 15], axis=2).reshape(len(rows), 2 * (width - 12))
    waves = halves[:, :count].astype(np.float32) - (_MOST_STEPS + 1)
    looks = Looks(sides.view("<f4").astype(np.float32).reshape(-1, 3), waves)
    return Fingerprint(raw[:_HASH_BYTES], raw[_HASH_BYTES:start], looks)


def decoded(texts: Iterable[str]) -> list[Fingerprint]:
    """Those that this version can compare."""
    return [mark for text in texts if (mark := decode(text)) is not None]


def directions(waves: Float32[np.ndarray, "n waves"]) -> Float32[np.ndarray, "n _"]:
    """What of looks is compared, as rows of length 1: their products say how alike they are."""
    rows = waves[:, _compared()]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-9))


def aligned_likeness(first: Looks, second: Looks) -> float:
    """How alike two looks are, once the first is cut to the second's box where both agree best.

    Args:
        first: One row.
        second: One row.
    """
    ratio = second.sides_mm[0].astype(float) / np.maximum(first.sides_mm[0], 1e-6)
    if ratio.max() > _LARGEST_RATIO or ratio.min() < 1 / _LARGEST_RATIO:
        return 0.0
    target, volume = directions(second.waves)[0], _cube(first.waves[0])
    box = np.stack([(1 - ratio) / 2, (1 + ratio) / 2], axis=1)
    best = float(_alike(volume, box[None], target)[0])
    moves = _moves()
    for step in _SHIFTS:
        for _ in range(_ROUNDS):
            tried = box + step * moves
            found = _alike(volume, tried, target)
            # The better way along each axis, and all of these together.
            picked = found.reshape(3, 2).argmax(axis=1) + np.array([0, 2, 4])
            together = box + step * moves[picked[found[picked] > best]].sum(axis=0)
            tried = np.concatenate([tried, together[None]])
            found = np.append(found, _alike(volume, together[None], target))
            if found.max() <= best:
                break
            best, box = float(found.max()), tried[found.argmax()]
    return best


# --- from voxels to looks -------------------------------------------------------------------------


def _stacked(looks: list[Looks]) -> Looks:
    empty = Looks(np.zeros((0, 3), np.float32), np.zeros((0, len(_raise())), np.float32))
    sides, waves = zip(empty, *looks, strict=True)
    return Looks(np.concatenate(sides), np.concatenate(waves))


def _looks(channel: Int16[np.ndarray, "x y z"], spacing_mm: Spacing) -> list[Looks]:
    coarse = resized(channel[None], (_COARSE, _COARSE, _COARSE))[0]
    low, high = (float(value) for value in np.percentile(coarse, (0.5, 99.5)))
    if not low < high:
        low, high = float(coarse.min()), float(coarse.max())
    if not low < high:
        return []
    grey = ((coarse.clip(low, high) - low) / (high - low) * _GREY).round().astype(np.int16)
    cell_mm = np.asarray(spacing_mm) * channel.shape / grey.shape
    found: list[Looks] = []
    for level in _levels(grey):
        box = body_box(grey[None], [level])
        if box is None:
            continue
        start, stop = box
        sides_mm = (np.subtract(stop, start) * cell_mm).astype(np.float32)
        look = Looks(sides_mm[None], _waves(grey, level, box)[None])
        if all(
            (directions(look.waves) @ directions(other.waves).T).item() < _ANEW for other in found
        ):
            found.append(look)
    return found


def _levels(grey: Int16[np.ndarray, "x y z"]) -> tuple[float, float, float]:
    """Values above which the body may begin."""
    counts, edges = np.histogram(grey, _BINS, (0, _GREY))
    sums = counts * (edges[1:] + edges[:-1]) / 2
    count, total = (np.concatenate([[0.0], np.cumsum(part)]) for part in (counts, sums))

    def spread(
        start: Integer[np.ndarray, "*n"], stop: Integer[np.ndarray, "*n"]
    ) -> Float64[np.ndarray, "*n"]:
        # What a class adds to the variance between classes, up to a constant.
        return (total[stop] - total[start]) ** 2 / np.maximum(count[stop] - count[start], 1.0)

    first, second = np.indices((_BINS - 1, _BINS - 1)) + 1
    zero, end = np.zeros_like(first), np.full_like(first, _BINS)
    three = spread(zero, first) + spread(first, second) + spread(second, end)
    three = np.where(first < second, three, -np.inf)
    two = (spread(zero, first) + spread(first, end))[:, 0]
    lower = int(three.argmax()) // (_BINS - 1)
    return float(edges[1 + lower]), float(edges[1 + two.argmax()]), 0.1 * _GREY


def _waves(
    grey: Int16[np.ndarray, "x y z"], level: float, box: Box
) -> Float32[np.ndarray, "waves"]:
    x, y, z = (slice(low, high) for low, high in zip(*box, strict=True))
    # Darker is not body: whether air and lungs differ depends on the window.
    body = grey[None, x, y, z].clip(int(level))
    cells = resized(body, (_CELLS, _CELLS, _CELLS))[0].round()
    _, place, times = np.unique(cells, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - times / 2)[place.reshape(cells.shape)] / cells.size - 0.5
    cosines = _cosines(_centres())
    amplitudes = np.einsum("ax,by,cz,xyz->abc", cosines, cosines, cosines, ranks, optimize=True)
    waves = amplitudes[_kept()] * _raise()
    size = max(float(np.sqrt((waves**2).mean())), 1e-12)
    steps = np.rint(waves / size * _STEPS_PER_RMS).clip(-_MOST_STEPS, _MOST_STEPS)
    return steps.astype(np.float32)


# --- cosine waves ---------------------------------------------------------------------------------


@cache
def _orders() -> Float64[np.ndarray, "3 _ _ _"]:
    return np.indices((_WAVES,) * 3).astype(float)


@cache
def _kept() -> Bool[np.ndarray, "_ _ _"]:
    """Which waves a look holds: all up to a sum of orders, but the constant one."""
    total = _orders().sum(axis=0)
    return (total > 0) & (total <= _FASTEST)


@cache
def _raise() -> Float64[np.ndarray, "waves"]:
    """By how much each kept wave is raised."""
    return np.linalg.norm(_orders(), axis=0)[_kept()] ** _WHITEN


@cache
def _compared() -> Bool[np.ndarray, "waves"]:
    return _orders().sum(axis=0)[_kept()] >= _SLOWEST


@cache
def _moves() -> Float64[np.ndarray, "6 3 2"]:
    """A box to either side along each axis in turn."""
    moves = np.zeros((3, 2, 3, 2))
    for axis in range(3):
        moves[axis, :, axis] = [[1.0], [-1.0]]
    return moves.reshape(6, 3, 2)


def _centres() -> Float64[np.ndarray, "cells"]:
    return (np.arange(_CELLS) + 0.5) / _CELLS


def _cosines(places: Float64[np.ndarray, "*n cells"]) -> Float64[np.ndarray, "*n _ cells"]:
    """The waves at places in a box from 0 to 1; orthonormal on the centres of its cells."""
    order = np.arange(_WAVES)[:, None]
    size = np.sqrt(np.where(order == 0, 1, 2) / _CELLS)
    return size * np.cos(np.pi * order * places[..., None, :])


def _cube(waves: Float32[np.ndarray, "waves"]) -> Float64[np.ndarray, "_ _ _"]:
    """Amplitudes of all waves, from those that a look holds."""
    cube = np.zeros((_WAVES,) * 3)
    cube[_kept()] = waves / _raise()
    return cube


def _alike(
    cube: Float64[np.ndarray, "w w w"],
    boxes: Float64[np.ndarray, "n 3 2"],
    target: Float[np.ndarray, "_"],
) -> Float64[np.ndarray, "n"]:
    """How alike a volume is to a target, once each of some boxes is cut out of it."""
    places = boxes[..., :1] + (boxes[..., 1:] - boxes[..., :1]) * _centres()
    # Beyond its faces a volume goes on as it ends.
    moved = _cosines(_centres()) @ _cosines(places.clip(0, 1)).swapaxes(-1, -2)
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
    made = (x @ cube.reshape(_WAVES, -1)).reshape(-1, *cube.shape)
    made = y[:, None] @ made @ z.swapaxes(-1, -2)[:, None]
    rows = (made[:, _kept()] * _raise())[:, _compared()]
    return rows @ target / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
