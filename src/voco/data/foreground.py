"""Where the body is: a threshold and a box, quick and generous, never a segmentation."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int16, Integer
from scipy import ndimage

from voco.data.encoding import Encoding, Histogram, percentile
from voco.shapes import Shape3

Box = tuple[Shape3, Shape3]
"""Start and stop voxel."""

_BODY_HU = -500.0
"""CT values above are body (tissue, bone), those below air."""

_BODY_SHARE = 0.1
"""In other scans, the body begins this far from the 1st to the 99th percentile."""

_LOOK = 96
"""The body is looked for on at most this many voxels along each axis."""

_PART = 0.1
"""Connected parts smaller than this share of the largest are not body: tubes, tables, noise."""


def body_threshold(counts: Histogram, encoding: Encoding, modality: str) -> float:
    """Stored value above which a voxel is body rather than air.

    -500 HU for CT; elsewhere a tenth of the way from the 1st to the 99th percentile.

    Args:
        counts: Of all stored voxels of a channel.
        encoding: Of the channel.
        modality: ``CT``, or anything else.
    """
    if modality == "CT":
        return (_BODY_HU - encoding.offset) / encoding.scale
    low, high = percentile(counts, 1.0), percentile(counts, 99.0)
    return low + _BODY_SHARE * (high - low)


def body_box(
    stored: Int16[np.ndarray, "c x y z"],
    above: Sequence[float],
    label: Integer[np.ndarray, "x y z"] | None = None,
) -> Box | None:
    """The box round the body: the large connected parts above a threshold, and every label.

    Looked for on every n-th voxel and widened by n, so nothing of a part is cut off.

    Args:
        stored: The volume.
        above: For each channel the value above which a voxel may be body.
        label: Class numbers; what is not 0 lies in the box.

    Returns:
        The box, or ``None`` where nothing is above.
    """
    x, y, z = (max(1, -(-side // _LOOK)) for side in stored.shape[1:])
    coarse = stored[:, ::x, ::y, ::z]
    limits = np.asarray(above)[:, None, None, None]
    parts = np.asarray(ndimage.label((coarse > limits).any(axis=0))[0])  # pyright: ignore[reportIndexIssue]
    if not parts.any():
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    start, stop = _bounds((sizes >= _PART * sizes.max())[parts])
    every = np.array([x, y, z])
    start = np.maximum(0, (start - 1) * every + 1)
    stop = np.minimum(stored.shape[1:], stop * every)
    if label is not None and label.any():
        first, last = _bounds(label != 0)
        start, stop = np.minimum(start, first), np.maximum(stop, last)
    return _triple(start), _triple(stop)


def _bounds(mask: Bool[np.ndarray, "x y z"]) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of what is set."""
    lines = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([line[0] for line in lines]), np.array([line[-1] + 1 for line in lines])


def _triple(numbers: np.ndarray) -> Shape3:
    x, y, z = numbers.tolist()
    return (x, y, z)
