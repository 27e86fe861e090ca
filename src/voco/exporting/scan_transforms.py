"""Scans to what a network was trained on, and its answer back onto the grid of the scan.

This file is written by voco into every MONAI bundle that it exports, and is complete: it needs
MONAI, PyTorch, NumPy and SciPy, not voco. It prepares a scan as voco does, step by step: axes
turned towards Right, Anterior, Superior; resampled with the outer edges kept, to whole stored
units; if asked for, cut to the body; intensities brought to the network's range; padded to at
least one window. Copyright its authors, licence Apache-2.0.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from scipy import ndimage
from torch.utils.data import Dataset

LOWEST, HIGHEST = -32768, 32767
"""Stored units are int16."""

LOWEST_HU, BODY_HU = -1024.0, -500.0
"""Values of a CT below the first are padding; those above the second are body."""


class PrepareScand(MapTransform):
    """From a scan as it was read, channels first, to what the network takes.

    Args:
        keys: Of the scans.
        spacing_mm: Millimetres per voxel along x, y, z; ``None`` keeps the scan's own.
        foreground: Whether to cut to the box that holds the body.
        intensity: ``name`` (``window``, ``percentile``, ``zscore``, ``modality``) and its numbers.
        modality: ``CT``, or anything else.
        window: Voxels of the sliding window; a smaller scan is padded.
        allow_missing_keys: As MONAI has it.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        spacing_mm: Sequence[float] | None,
        foreground: bool,  # noqa: FBT001 (configuration files name all arguments)
        intensity: Mapping[str, Any],
        modality: str,
        window: Sequence[int],
        allow_missing_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__(keys, allow_missing_keys)  # pyright: ignore[reportArgumentType]
        self.spacing_mm = None if spacing_mm is None else np.asarray(spacing_mm, float)
        self.foreground = foreground
        self.intensity = dict(intensity)
        self.modality = modality
        self.window = tuple(window)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same entries, prepared; where the voxels came from stays in the meta data."""
        made = dict(data)
        for key in self.key_iterator(made):  # pyright: ignore[reportArgumentType]
            made[key] = self.prepared(made[key])
        return made

    def prepared(self, scan: MetaTensor) -> MetaTensor:
        """One scan: float32, ``(channels, x, y, z)``."""
        affine = np.asarray(scan.affine, float)
        order, flips = ras_axes(affine)
        image = np.asarray(scan.cpu(), np.float32)
        upright = turned(image, order, flips)
        if self.modality == "CT":
            upright = np.maximum(upright, LOWEST_HU)
        whole = self.target(affine, order, upright.shape[1:])
        codes = [encoding(channel, self.modality) for channel in upright]
        stored = np.stack(
            [quantised(part, *code, whole) for part, code in zip(upright, codes, strict=True)]
        )
        above = [
            body_threshold(counted(part), *code, self.modality)
            for part, code in zip(stored, codes, strict=True)
        ]
        start, stop = body_box(stored, above) or (np.zeros(3, int), np.asarray(whole))
        body = stored[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
        if self.foreground:
            stored = body
        rows = zip(stored, body, codes, above, strict=True)
        image, before = padded(np.stack([self.scaled(*row) for row in rows]), self.window)
        record = {
            "order": order,
            "flips": flips,
            "upright": upright.shape[1:],
            "prepared": whole,
            "start": start.tolist() if self.foreground else [0, 0, 0],
            "shape": stored.shape[1:],
            "before": before,
        }
        meta = {**scan.meta, "scan_affine": affine, "voco": record}
        return MetaTensor(torch.from_numpy(image), meta=meta)

    def target(
        self, affine: np.ndarray, order: Sequence[int], shape: Sequence[int]
    ) -> tuple[int, ...]:
        """Voxels of the prepared scan before it is cut."""
        if self.spacing_mm is None:
            return tuple(shape)
        sides = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
        wanted = np.maximum(1, np.round(sides * np.asarray(shape) / self.spacing_mm))
        return tuple(int(side) for side in wanted)

    def scaled(
        self, part: np.ndarray, body: np.ndarray, code: tuple[float, float], above: float
    ) -> np.ndarray:
        """A channel of stored units in the network's range."""
        scale, offset = code
        zero, one = self.units(part, body, scale, offset, above)
        width = one - zero if one > zero else 1.0
        values = part.astype(np.float32) * np.float32(scale / width)
        limit = float(self.intensity.get("limit", 0.0))
        low, high = (-limit, limit) if self.intensity["name"] == "zscore" else (0.0, 1.0)
        return np.clip(values + np.float32((offset - zero) / width), low, high)

    def units(
        self, part: np.ndarray, body: np.ndarray, scale: float, offset: float, above: float
    ) -> tuple[float, float]:
        """Source units that become 0 and 1."""
        name = self.intensity["name"]
        if name == "window" or (name == "modality" and self.modality == "CT"):
            zero, one = float(self.intensity["low"]), float(self.intensity["high"])
        else:
            values = np.arange(LOWEST, HIGHEST + 1)
            counts = np.where(values > above, counted(body), 0)
            counts = counts if counts.any() else counted(part)
            if name == "zscore":
                mean = float((values * counts).sum() / counts.sum())
                deviation = float(((values - mean) ** 2 * counts).sum() / counts.sum()) ** 0.5
                zero, one = mean * scale + offset, (mean + deviation) * scale + offset
            else:
                zero, one = (percentile(counts, p) * scale + offset for p in (0.5, 99.5))
        if one <= zero:
            zero, one = float(part.min()) * scale + offset, float(part.max()) * scale + offset
        return zero, one


class RestoreMaskd(MapTransform):
    """From the network's logits to a mask on the grid of the scan, in its own order of axes.

    Args:
        keys: Of the logits ``(classes, x, y, z)``; a mask ``(1, ...)`` takes their place.
        scan: Key of the prepared scan.
        values: Label value of each class.
        allow_missing_keys: As MONAI has it.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        scan: Hashable,
        values: Sequence[int],
        allow_missing_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__(keys, allow_missing_keys)  # pyright: ignore[reportArgumentType]
        self.scan = scan
        self.values = np.asarray(values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same entries, with masks."""
        made = dict(data)
        scan: Any = made[self.scan]
        for key in self.key_iterator(made):  # pyright: ignore[reportArgumentType]
            made[key] = self.restored(made[key], scan)
        return made

    def restored(self, logits: torch.Tensor, scan: MetaTensor) -> MetaTensor:
        """One mask."""
        place = scan.meta["voco"]
        x, y, z = (
            slice(low, low + side)
            for low, side in zip(place["before"], place["shape"], strict=True)
        )
        scores = np.asarray(logits.detach().cpu().float())[:, x, y, z]
        start, whole, new = (np.asarray(place[key]) for key in ("start", "prepared", "upright"))
        stop = start + scores.shape[1:]
        pads = list(zip(start, whole - stop, strict=True))
        best = winner = None
        for number, score in enumerate(scores):
            back = resized(np.pad(score, pads, mode="edge"), new.tolist(), widen=False)
            if best is None or winner is None:
                best, winner = back, np.zeros(back.shape, np.int64)
            else:
                winner[back > best] = number
                best = np.maximum(best, back)
        assert winner is not None
        for axis in range(3):
            centre = (np.arange(new[axis]) + 0.5) * (whole[axis] / new[axis])
            outside = (centre < start[axis]) | (centre > stop[axis])
            winner[(slice(None),) * axis + (outside,)] = 0
        mask = self.values.astype(np.uint8 if self.values.max() < 256 else np.int16)[winner]
        mask = turned_back(mask[None], place["order"], place["flips"])
        meta = dict(scan.meta)
        affine = torch.as_tensor(meta.pop("scan_affine"))
        for key in ("voco", "affine"):
            meta.pop(key, None)
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(mask)), affine=affine, meta=meta)


class Segmenter:
    """Reads scans, segments them one by one, and writes their masks.

    Args:
        network: With its weights.
        dataset: Prepared scans.
        inferer: Puts windows together.
        postprocessing: Brings logits back and saves them.
        device: Where the network works.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        dataset: Dataset[Any],
        inferer: Inferer,
        postprocessing: Compose,
        device: torch.device,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.device = device

    @torch.no_grad()
    def run(self) -> None:
        """Segment all scans."""
        network = self.network.to(self.device).eval()
        for number in range(len(self.dataset)):  # pyright: ignore[reportArgumentType]
            item = self.dataset[number]
            image = item["image"].as_tensor()[None].to(self.device)
            self.postprocessing({**item, "pred": self.inferer(image, network)[0]})


def ras_axes(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For R, A and S: which axis of a scan it is, and whether that points the other way."""
    directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    order, flips = [0, 0, 0], [False, False, False]
    taken: set[int] = set()
    free = {0, 1, 2}
    for index in np.argsort(-np.abs(directions), axis=None):  # strongest first
        world, axis = (int(number) for number in np.unravel_index(index, (3, 3)))
        if axis not in taken and world in free:
            order[world], flips[world] = axis, bool(directions[world, axis] <= 0)
            taken.add(axis)
            free.discard(world)
    return tuple(order), tuple(flips)


def turned(array: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """A scan, channels first, with its axes towards R, A and S."""
    moved = array.transpose(0, *(axis + 1 for axis in order))
    return moved[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]


def turned_back(array: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """The inverse of :func:`turned`."""
    moved = array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]
    return moved.transpose(0, *(int(axis) + 1 for axis in np.argsort(order)))


def encoding(channel: np.ndarray, modality: str) -> tuple[float, float]:
    """Scale and offset of a channel's stored units: ``value = stored * scale + offset``."""
    low, high = float(channel.min()), float(channel.max())
    inside = low >= LOWEST and high <= HIGHEST
    whole = high - low <= HIGHEST - LOWEST and bool((channel == np.rint(channel)).all())
    if inside and (whole or (modality == "CT" and high - low >= 100)):
        return 1.0, 0.0
    if whole:
        return 1.0, low - LOWEST
    if low == high:
        return 1.0, low
    every = max(1, round((channel.size / 1e6) ** (1 / 3)))
    sample = channel[::every, ::every, ::every].astype(np.float64)
    middle = float(np.diff(np.percentile(sample, (0.5, 99.5)))[0])
    scale = max(middle / 4095, (high - low) / (HIGHEST - LOWEST - 1))
    fits = low / scale >= LOWEST and high / scale <= HIGHEST
    return scale, 0.0 if fits else low - scale * LOWEST


def quantised(channel: np.ndarray, scale: float, offset: float, shape: Sequence[int]) -> np.ndarray:
    """A channel in whole stored units, in another number of voxels."""
    units = (channel.astype(np.float64) - offset) / scale
    return np.rint(resized(units, shape, widen=True)).astype(np.int32)


def counted(stored: np.ndarray) -> np.ndarray:
    """Voxels of each stored value."""
    return np.bincount(stored.ravel() - LOWEST, minlength=HIGHEST - LOWEST + 1)


def resized(array: np.ndarray, shape: Sequence[int], *, widen: bool) -> np.ndarray:
    """A volume in another number of voxels, outer edges kept, linear; float32.

    Where an axis shrinks to less than half, ``widen`` averages so that every old voxel counts.
    """
    made = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    for axis, new in enumerate(shape):
        if made.shape[axis] != new:
            mix = torch.from_numpy(mixing(made.shape[axis], int(new), widen=widen))
            made = (made.movedim(axis, -1) @ mix.T).movedim(-1, axis)
    return made.numpy()


def mixing(old: int, new: int, *, widen: bool) -> np.ndarray:
    """How much of each old voxel (columns) is in each new one (rows), along an axis."""
    ratio = old / new
    width = max(0.0, ratio - 2) if widen else 0.0
    centre = ((np.arange(new) + 0.5) * ratio - 0.5)[:, None]
    first = np.floor(centre - width / 2).astype(int)
    voxel = first + np.arange(int(np.ceil(width)) + 2)
    distance = centre - voxel
    if width < 1e-3:
        weight = np.clip(1 - np.abs(distance), 0, None)
    else:
        weight = (below(distance + width / 2) - below(distance - width / 2)) / width
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], voxel.clip(0, old - 1)), weight)
    return matrix.astype(np.float32)


def below(stop: np.ndarray) -> np.ndarray:
    """Integral of ``max(0, 1 - |t|)`` up to a number."""
    stop = np.clip(stop, -1, 1)
    return np.where(stop < 0, (stop + 1) ** 2 / 2, 1 - (1 - stop) ** 2 / 2)


def percentile(counts: np.ndarray, percent: float) -> float:
    """The smallest stored value that at least this percentage of voxels does not exceed."""
    total = np.cumsum(counts)
    return float(LOWEST + np.searchsorted(total, max(1.0, total[-1] * percent / 100)))


def body_threshold(counts: np.ndarray, scale: float, offset: float, modality: str) -> float:
    """Stored value above which a voxel is body rather than air."""
    if modality == "CT":
        return (BODY_HU - offset) / scale
    low, high = percentile(counts, 1.0), percentile(counts, 99.0)
    return low + 0.1 * (high - low)


def body_box(stored: np.ndarray, above: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """Start and stop of the box round the large connected parts above a threshold."""
    every = np.asarray([max(1, -(-side // 96)) for side in stored.shape[1:]])
    x, y, z = every
    coarse = stored[:, ::x, ::y, ::z]
    over = (coarse > np.asarray(above)[:, None, None, None]).any(axis=0)
    parts: Any = ndimage.label(over)
    if not parts[0].any():
        return None
    sizes = np.bincount(parts[0].ravel())
    sizes[0] = 0
    large = (sizes >= 0.1 * sizes.max())[parts[0]]
    lines = [np.flatnonzero(large.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    first = np.asarray([line[0] for line in lines])
    last = np.asarray([line[-1] + 1 for line in lines])
    start = np.maximum(0, (first - 1) * every + 1)
    return start, np.minimum(stored.shape[1:], last * every)


def padded(image: np.ndarray, window: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The volume in the middle of one at least as large as a window; where it begins."""
    missing = [max(0, a - b) for a, b in zip(window, image.shape[1:], strict=True)]
    before = [(gap + 1) // 2 for gap in missing]
    pads = [(low, gap - low) for low, gap in zip(before, missing, strict=True)]
    channels = [np.pad(part, pads, constant_values=part.min()) for part in image]
    return np.stack(channels), before
