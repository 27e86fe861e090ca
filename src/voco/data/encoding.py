"""Intensities as int16, and what is known about them: the store's units and statistics.

``value = stored * scale + offset``. Nothing is clipped, and no value is off by more than half a
``scale``:

========================================================== ====================================
whole numbers within int16 (CT in HU, most MR, masks)      1, exact
whole numbers that span at most 65,535 (unsigned 16 bit)   1, exact, shifted
CT with fractions                                          1 HU
all else (float MR, PET, wider integers)                   central 99 % in 4,095 steps (12 bits),
                                                           wider where the whole range needs it
========================================================== ====================================

Resampling makes fractions of whole numbers; they are rounded to the same step.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int16, Int64, Shaped

from voco.data.store import ChannelStatistics

_LOW, _HIGH = -32768, 32767
_SPAN = _HIGH - _LOW
_FINE_STEPS = 4095
_FEW_STEPS = 256
"""Fewer steps than this within the central 99 % are worth a warning."""
_FEWEST_HU = 100
"""A CT whose values span less cannot be in HU: a step of 1 would wipe it out."""
_SAMPLES = 1e6
_PERCENTILES = ("0.5", "1", "5", "50", "95", "99", "99.5")

Histogram = Int64[np.ndarray, "65536"]
"""Voxels of each stored value, from -32768 to 32767."""


class Encoding(NamedTuple):
    """``value = stored * scale + offset``, of one channel."""

    scale: float
    offset: float
    warning: str | None = None
    """What a reader should know about the choice."""

    def stored(self, values: Shaped[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
        """Values in stored units, not yet rounded."""
        if self.scale == 1 and self.offset == 0:
            return values.astype(np.float32)
        # In float64, for the sake of a small range far away from 0.
        return ((values.astype(np.float64) - self.offset) / self.scale).astype(np.float32)


def choose_encoding(channel: Shaped[np.ndarray, "x y z"], modality: str) -> Encoding:
    """The encoding of a channel, see the table above.

    Args:
        channel: Finite intensities, in source units.
        modality: ``CT``, or anything else.
    """
    low, high = float(channel.min()), float(channel.max())
    inside = low >= _LOW and high <= _HIGH
    whole = high - low <= _SPAN and _are_whole(channel)
    if inside and (whole or (modality == "CT" and high - low >= _FEWEST_HU)):
        return Encoding(1.0, 0.0)
    if whole:
        return Encoding(1.0, low - _LOW)
    return _fractional(channel, low, high)


def histogram(stored: Int16[np.ndarray, "x y z"]) -> Histogram:
    """Voxels of each stored value."""
    counts = np.zeros(_SPAN + 1, np.int64)
    for rows in stored:
        places = rows.ravel().astype(np.intp)
        places -= _LOW
        counts += np.bincount(places, minlength=_SPAN + 1)
    return counts


def describe(
    everything: Histogram, body: Histogram, encoding: Encoding, above: float
) -> ChannelStatistics:
    """Statistics in source units.

    Minimum and maximum are of all voxels, the rest of the foreground: the voxels of the body's
    box above a threshold, or all voxels where none is.

    Args:
        everything: All voxels.
        body: Those in the box that holds the body.
        encoding: Of the stored values.
        above: The threshold, as a stored value.
    """
    stored = np.arange(_LOW, _HIGH + 1)
    present = stored[everything > 0]
    counts = np.where(stored > above, body, 0)
    if not counts.any():
        counts = everything
    mean = float((stored * counts).sum() / counts.sum())
    variance = float(((stored - mean) ** 2 * counts).sum() / counts.sum())
    units = {name: percentile(counts, float(name)) for name in _PERCENTILES}
    scale, offset = encoding.scale, encoding.offset
    return ChannelStatistics(
        minimum=float(present[0]) * scale + offset,
        maximum=float(present[-1]) * scale + offset,
        mean=mean * scale + offset,
        std=variance**0.5 * scale,
        percentiles={name: value * scale + offset for name, value in units.items()},
    )


def percentile(counts: Histogram, percent: float) -> float:
    """The smallest stored value that at least this percentage of voxels does not exceed."""
    total = np.cumsum(counts)
    return float(_LOW + np.searchsorted(total, max(1.0, total[-1] * percent / 100)))


def _are_whole(channel: Shaped[np.ndarray, "x y z"]) -> bool:
    if channel.dtype.kind in "iub":
        return True
    return all(bool((rows == np.rint(rows)).all()) for rows in channel)


def _fractional(channel: Shaped[np.ndarray, "x y z"], low: float, high: float) -> Encoding:
    if low == high:
        return Encoding(1.0, low)
    every = max(1, round((channel.size / _SAMPLES) ** (1 / 3)))
    sample = channel[::every, ::every, ::every]
    width = float(np.diff(np.percentile(sample.astype(np.float64), (0.5, 99.5)))[0])
    scale = max(width / _FINE_STEPS, (high - low) / (_SPAN - 1))
    # Where 0 fits as it is, it stays 0: background and padding remain exact.
    fits = low / scale >= _LOW and high / scale <= _HIGH
    offset = 0.0 if fits else low - scale * _LOW
    if width / scale >= _FEW_STEPS:
        return Encoding(scale, offset)
    return Encoding(
        scale,
        offset,
        f"its intensities reach from {low:g} to {high:g}, but 99 % of the voxels lie within "
        f"{width:g} of each other and share {int(width / scale)} stored steps of {scale:g}; "
        "if the extremes are artefacts, clip them before preparing",
    )
