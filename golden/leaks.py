"""How surely copies of scans are recognised: the table of ``docs/how-to/leaks.md``.

``python -m golden.leaks FOLDER [FOLDER ...]`` takes the scans below some folders, changes each in
the ways in which copies of scans differ, and asks of every changed scan whether its original is
recognised, and whether any other scan is taken for it. Scans are reduced to 128 voxels along each
axis first. Noise and cuts are drawn from seed 0.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from voco.data.fingerprint import SAME, Fingerprint, fingerprint
from voco.data.leaks import find_overlaps, likeness_of
from voco.data.preprocess import prepare_volume
from voco.data.resampling import resized
from voco.data.scan import Scan
from voco.data.source import Source
from voco.data.sources import discover, read_source
from voco.data.store import Preprocessing
from voco.errors import VocoError
from voco.progress import track
from voco.volume import Volume

_LARGEST = 128
_COARSER = 1.7
_WINDOW_HU, _WIDE_HU, _NARROW_HU = (-160.0, 240.0), (-1000.0, 1000.0), (-57.0, 164.0)
_WORTH_TELLING = 0.85
"""Likeness of two different scans from which on the pair is printed."""

Array = Shaped[np.ndarray, "1 x y z"]


@dataclass(frozen=True)
class Copy:
    """A changed scan.

    Attributes:
        change: What was done, in a word or two.
        volume: The voxels.
        modality: As a file of it would be taken.
        preprocessing: As its store would prepare it.
    """

    change: str
    volume: Volume
    modality: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def mark(self) -> Fingerprint:
        """Its fingerprint."""
        ready = prepare_volume(self.volume, self.preprocessing, modality=self.modality)
        return fingerprint(ready.image, ready.grid.spacing_mm)


def copies(scan: Scan, draws: np.random.Generator) -> Iterator[Copy]:
    """A scan, and changed copies of it."""
    volume, modality = scan.volume, scan.modality
    array, grid = volume.array.astype(np.float32), volume.grid
    spacing = grid.spacing_mm
    side = float(np.prod(spacing)) ** (1 / 3) * _COARSER
    coarse = Preprocessing(spacing_mm=(side, side, side))
    both = Preprocessing(spacing_mm=(side, side, side), foreground=True)
    low, high = (float(value) for value in np.percentile(array, (1, 99)))
    ct = modality == "CT"
    bits = _windowed(array, _WINDOW_HU if ct else (low, high))
    yield Copy("none", volume, modality)
    yield Copy("cut to the body", volume, modality, Preprocessing(foreground=True))
    yield Copy("coarser", volume, modality, coarse)
    thick = Preprocessing(spacing_mm=(spacing[0], spacing[1], 3 * spacing[2]))
    yield Copy("thick slices", volume, modality, thick)
    yield Copy("window", Volume(bits, grid), "unknown")
    yield Copy("window, coarser, cut", Volume(bits, grid), "unknown", both)
    if ct:
        yield Copy("wide window", Volume(_windowed(array, _WIDE_HU), grid), "unknown")
        yield Copy("narrow window", Volume(_windowed(array, _NARROW_HU), grid), "unknown")
    yield Copy("gain", Volume(array * 0.37 + 1100, grid), "unknown")
    least, most = float(array.min()), float(array.max())
    yield Copy("gamma", Volume(((array - least) / (most - least)) ** 0.7 * 1000, grid), "unknown")
    noise = draws.normal(0, 0.05 * (high - low), array.shape).astype(np.float32)
    yield Copy("noise", Volume(array + noise, grid), "unknown")
    ends = [draws.integers(0, round(0.05 * n) + 1, 2) for n in grid.shape]
    sides = [(int(a), n - int(b)) for (a, b), n in zip(ends, grid.shape, strict=True)]
    yield Copy("sides cut", _cut(volume, sides), modality)
    tenth = round(0.1 * grid.shape[2])
    x, y, z = grid.shape
    yield Copy("end cut", _cut(volume, [(0, x), (0, y), (tenth, z)]), modality)
    yield Copy("mirrored", Volume(volume.array[:, ::-1], grid), modality)


def _windowed(array: Array, window: tuple[float, float]) -> Array:
    low, high = window
    return (((array - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)


def _cut(volume: Volume, sides: Sequence[tuple[int, int]]) -> Volume:
    (x0, x1), (y0, y1), (z0, z1) = sides
    return Volume(
        volume.array[:, x0:x1, y0:y1, z0:z1],
        volume.grid.crop((x0, y0, z0), (x1 - x0, y1 - y0, z1 - z0)),
    )


def reduced(source: Source) -> Scan:
    """The first channel of a scan, on at most 128 voxels along each axis."""
    scan, _ = read_source(replace(source, label=None))
    array, grid = scan.volume.array[:1], scan.volume.grid
    x, y, z = (min(side, _LARGEST) for side in grid.shape)
    if (x, y, z) == grid.shape:
        return replace(scan, volume=Volume(array, grid))
    whole = array.dtype.kind in "iu" and np.abs(array.astype(np.float32)).max() < 2**15
    small = resized(array, (x, y, z), np.int16 if whole else np.float32)
    return replace(scan, volume=Volume(small, grid.reshaped((x, y, z))))


def measured(folders: Sequence[Path]) -> Iterator[str]:
    """What came out, in lines."""
    names: list[str] = []
    marks: list[dict[str, Fingerprint]] = []
    draws = np.random.default_rng(0)
    sources = [source for folder in folders for source in discover(folder)[0]]
    for source in track(sources, "change scans", total=len(sources)):
        try:
            marks.append({copy.change: copy.mark() for copy in copies(reduced(source), draws)})
        except VocoError as error:
            yield f"left out: {source.id}: {error}"
            continue
        names.append(source.id)
    yield from _told(names, marks)


def _told(names: Sequence[str], marks: Sequence[dict[str, Fingerprint]]) -> Iterator[str]:
    originals = [every["none"] for every in marks]
    twice = {
        (item.seen, item.tested)
        for item in find_overlaps(originals, originals)
        if item.seen != item.tested
    }
    for one, other in sorted(twice):
        if one < other:
            yield f"the same scan twice: {names[one]}, {names[other]}"
    found: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    compared, wrong = 0, 0
    near: dict[tuple[int, int], float] = {}
    for change in dict.fromkeys(change for every in marks for change in every):
        numbers = [number for number, every in enumerate(marks) if change in every]
        changed = [marks[number][change] for number in numbers]
        tried[change] = len(numbers)
        for number, mark in zip(numbers, changed, strict=True):
            same = mark.voxels == originals[number].voxels
            found[change] += same or likeness_of(originals[number].looks, mark.looks) >= SAME
        compared += len(numbers) * (len(marks) - 1) - sum(pair[1] in numbers for pair in twice)
        for item in find_overlaps(originals, changed, _WORTH_TELLING):
            pair = (item.seen, numbers[item.tested])
            if pair[0] != pair[1] and pair not in twice:
                wrong += item.likeness >= SAME
                near[pair] = max(near.get(pair, 0.0), item.likeness)
    yield f"{len(marks)} scans; {compared} comparisons of different scans, {wrong} taken for one"
    for (one, other), likeness in sorted(near.items(), key=lambda item: -item[1])[:6]:
        yield f"  {likeness:.3f}: {names[one]}, {names[other]}"
    yield "\n| what was done | found |\n|---|---|"
    for change, count in tried.items():
        yield f"| {change} | {found[change]} of {count} |"


if __name__ == "__main__":
    for line in measured([Path(word) for word in sys.argv[1:]]):
        print(line, flush=True)  # noqa: T201 (its output)
