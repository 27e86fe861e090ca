"""Unlabelled windows of the stores, a function of the seed and the step alone.

The samples of a run are numbered: step s of a global batch of B volumes has the samples s * B to
s * B + B - 1, and process r of w takes the r-th share of each micro-batch of them. What a sample
is follows from the seed and its number, so neither the number of loader workers nor that of
processes nor an interruption changes anything.

Where a window reaches beyond its volume, it is filled with the volume's least value. The volume
lies at a random place in such a window, as a window lies at a random place in a larger volume.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int16
from pydantic import NonNegativeInt
from torch import Tensor
from torch.utils.data import Dataset

from voco.config import Config
from voco.data.intensity import IntensityConfig, apply
from voco.data.loading import Share, loaded
from voco.data.resampling import interpolated
from voco.data.selection import Entry, Order
from voco.data.store import Case, Store
from voco.draws import mixed_seed
from voco.errors import VocoError
from voco.shapes import Shape3, Volumes

_PLACE = 0x50


class WindowsConfig(Config):
    """How windows are cut out of the volumes of the stores."""

    fit: Literal["crop", "plane", "resize"] = "crop"
    """``crop``: a random box at the store's spacing, padded where the volume is smaller.
    ``plane``: x and y of the whole volume are resampled to the window, z is a random slab whose
    voxels are as long as they become along x. ``resize``: the whole volume is resampled to the
    window, aspect ignored."""
    foreground: bool = True
    """Whether the whole volume means its foreground box; random boxes then lie in it, as far as
    they fit."""
    balance: Literal["case", "store"] = "case"
    """Whether every case is equally likely, or every store and then every case of it."""
    workers: NonNegativeInt = 2
    """Loader processes, at most one per core; 0 loads in the training process. Results do not
    depend on it."""


class Packed(NamedTuple):
    """A micro-batch as it leaves a loader process: stored voxels, and what normalises them."""

    stored: Int16[Tensor, "b c x y z"]
    gain: Float[Tensor, "b c"]
    bias: Float[Tensor, "b c"]
    low: float
    high: float

    def unpack(self, device: torch.device) -> Volumes:
        """Volumes in the network's range, on the device."""
        moved = (part.to(device, non_blocking=True) for part in self[:3])
        return apply(*moved, low=self.low, high=self.high)


class Windows(Dataset["Packed | VocoError"]):
    """Micro-batches of windows by number.

    Args:
        stores: Opened stores.
        entries: The cases to cut from.
        config: How to cut.
        window: Voxels of a window.
        intensity: How stored voxels become the network's input.
        seed: The run's seed.
        share: Which samples this process takes.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        entries: Sequence[Entry],
        config: WindowsConfig,
        window: Shape3,
        intensity: IntensityConfig,
        seed: int,
        share: Share,
    ) -> None:
        self._stores, self._config, self._window = tuple(stores), config, window
        self._intensity, self._seed, self._share = intensity, seed, share
        self._order = Order(entries, config.balance, seed)

    def __getitem__(self, index: int) -> "Packed | VocoError":
        """A micro-batch, or the error that a user should read (it must leave the worker)."""
        try:
            return self._pack(self._share.samples(index))
        except VocoError as error:
            return error

    def cut(self, number: int) -> tuple[Case, Int16[Tensor, "c x y z"]]:
        """The window of a sample, in stored units.

        Raises:
            StoreError: If the case's file is missing or damaged.
        """
        entry = self._order[number]
        draws = torch.Generator().manual_seed(mixed_seed(self._seed, number, _PLACE))
        start, stop = box(entry.case, self._config, self._window, torch.rand(3, generator=draws))
        stored = torch.from_numpy(_read(self._stores[entry.store], entry.case, start, stop))
        if stored.shape[1:] != self._window:
            stored = interpolated(stored, self._window)
        return entry.case, stored

    def _pack(self, numbers: range) -> Packed:
        cases, stored = zip(*(self.cut(number) for number in numbers), strict=True)
        ramps = [self._intensity.ramp(case) for case in cases]
        return Packed(
            stored[0][None] if len(stored) == 1 else torch.stack(stored),
            torch.tensor([ramp.gain for ramp in ramps], dtype=torch.float32),
            torch.tensor([ramp.bias for ramp in ramps], dtype=torch.float32),
            ramps[0].low,
            ramps[0].high,
        )


def window_batches(
    windows: Windows, device: torch.device, workers: int, start: int, stop: int
) -> Iterator[Volumes]:
    """Micro-batches of volumes on a device, in their order.

    Args:
        windows: What is cut.
        device: Where volumes go.
        workers: Loader processes; 0 loads here.
        start: The first micro-batch; nothing before it is read.
        stop: The one after the last.

    Raises:
        StoreError: If a file of the store is missing or damaged.
        DataError: If a loader process was killed.
    """
    pin = device.type == "cuda"
    for packed in loaded(windows, range(start, stop), workers, pin=pin):
        yield packed.unpack(device)


def box(
    case: Case, config: WindowsConfig, window: Shape3, place: Float[Tensor, "3"]
) -> tuple[Shape3, Shape3]:
    """Start and stop voxel of what a window shows; it may reach beyond the volume.

    Args:
        case: The volume.
        config: How to cut.
        window: Voxels of the window.
        place: Numbers from [0, 1).
    """
    whole = ((0, 0, 0), case.shape)
    first, last = case.foreground or whole if config.foreground else whole
    size = _extent(case, config, window, (first, last))
    start = [
        _start(*sides) for sides in zip(first, last, case.shape, size, place.tolist(), strict=True)
    ]
    stop = [a + b for a, b in zip(start, size, strict=True)]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _extent(
    case: Case, config: WindowsConfig, window: Shape3, region: tuple[Shape3, Shape3]
) -> Shape3:
    """Voxels of the store that become a window."""
    x, y, z = (stop - start for start, stop in zip(*region, strict=True))
    if config.fit == "crop":
        return window
    if config.fit == "resize":
        return (x, y, z)
    length_mm = x * case.spacing_mm[0] / window[0]
    return (x, y, max(1, round(window[2] * length_mm / case.spacing_mm[2])))


def _start(first: int, last: int, side: int, size: int, place: float) -> int:
    """A random start, inside the region as far as it fits, and inside the volume likewise."""
    low, high = sorted((first, last - size))
    least, most = sorted((0, side - size))
    low, high = (min(max(value, least), most) for value in (low, high))
    return low + min(int(place * (high - low + 1)), high - low)


def _read(store: Store, case: Case, start: Shape3, stop: Shape3) -> np.ndarray:
    """Stored voxels of a box; the least value of each channel where it leaves the volume."""
    inner = [(max(0, a), min(n, b)) for a, b, n in zip(start, stop, case.shape, strict=True)]
    (x0, x1), (y0, y1), (z0, z1) = inner
    read = store.read(case.id, ((x0, y0, z0), (x1, y1, z1)))
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    if read.shape[1:] == size:
        return np.ascontiguousarray(read, dtype=np.int16)
    filled = np.empty((len(read), *size), np.int16)
    filled[:] = _least(case)[:, None, None, None]
    place = tuple(slice(a - s, b - s) for (a, b), s in zip(inner, start, strict=True))
    filled[(slice(None), *place)] = read
    return filled


def _least(case: Case) -> np.ndarray:
    """The least stored value of each channel."""
    least = [
        (statistics.minimum - offset) / scale
        for statistics, scale, offset in zip(case.statistics, case.scale, case.offset, strict=True)
    ]
    limits = np.iinfo(np.int16)
    return np.clip(np.round(least), limits.min, limits.max).astype(np.int16)
