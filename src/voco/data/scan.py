"""What a reader returns, and the checks that every volume passes however it was stored.

Nothing here knows a file format. A volume passes when it has three axes of at least
:data:`MINIMUM_SIDE` voxels, a spacing on each, and finite numbers only. What is unusual but
readable becomes a warning that a user reads; what would be wrong becomes a
:class:`~voco.errors.DataError`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Integer, Shaped

from voco.errors import DataError
from voco.geometry import Grid
from voco.volume import Volume

UNKNOWN = "unknown"
"""Modality of a scan about which neither its file nor its user says anything."""

MINIMUM_SIDE = 3
"""Fewest voxels along any axis of a volume; less is a picture or a header."""

LOWEST_HU = -1024
"""Smallest value kept in a CT: smaller ones are padding (air is -1000)."""

HIGHEST_FAT_HU = -50
"""A CT in HU holds fat or air, so some value is at most this."""

AIR_HU = -900
"""Values from here down count as air (or padding)."""

_AIR_SHARE, _SOFT_SHARE = 0.002, 0.02
_SOFT_HU = (-200, 300)
_DEEPEST_HU, _DEEP_SHARE = -1300, 0.01
_NAMED_CT = re.compile(r"(?:^|[^a-z])ct(?:[^a-z]|$)", re.IGNORECASE)
_SHEAR = 1e-3


@dataclass(frozen=True)
class Scan:
    """A volume as read, and what is known about it.

    Attributes:
        volume: Voxels ``(c, x, y, z)`` in source units, on the source's own grid.
        modality: ``CT`` (then in HU), ``MR``, ``PT``, ... or ``unknown``.
        channels: Names of the channels.
        warnings: Sentences that a user should read.
    """

    volume: Volume
    modality: str = UNKNOWN
    channels: tuple[str, ...] = ("image",)
    warnings: tuple[str, ...] = ()


def rescaled(
    raw: Shaped[np.ndarray, "*axes"], slope: float, intercept: float
) -> Shaped[np.ndarray, "*axes"]:
    """Stored numbers in source units, ``raw * slope + intercept``.

    Integers stay integers when slope and intercept are whole numbers: int16 where that holds
    them, else int32. Everything else becomes float32.
    """
    integers = raw.dtype.kind in "iu"
    if slope == 1 and intercept == 0 and (integers or raw.dtype == np.float32):
        return native(raw)
    if integers and raw.size and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(value) * int(slope) + int(intercept) for value in (raw.min(), raw.max())]
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                # Integers wrap around, so a result that fits is right whatever came before it.
                values = raw.astype(dtype)
                values *= np.array(int(slope)).astype(dtype)
                values += np.array(int(intercept)).astype(dtype)
                return values
    # Numbers beyond float32 become infinite, and are refused with all others that are.
    with np.errstate(over="ignore", invalid="ignore"):
        values = raw.astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(intercept)
    return values


def native(array: Shaped[np.ndarray, "*axes"]) -> Shaped[np.ndarray, "*axes"]:
    """The same numbers in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def checked_volume(
    array: Shaped[np.ndarray, "c x y z"], affine: Float64[np.ndarray, "4 4"], name: str
) -> tuple[Volume, tuple[str, ...]]:
    """A volume and warnings about it.

    Raises:
        DataError: If it has too few voxels along an axis, no spacing, or numbers that are not
            finite.
    """
    sides = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    if min(sides) < MINIMUM_SIDE:
        raise DataError(
            f"{name}: {' x '.join(map(str, sides))} voxels; a volume needs at least "
            f"{MINIMUM_SIDE} along each axis."
        )
    warnings = _check_affine(affine, name)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{name}: holds {array.dtype} numbers; expected integers or floats.")
    _check_finite(array, name)
    return Volume(array, Grid(sides, affine)), warnings


def hounsfield(volume: Volume, modality: str | None, name: str) -> Scan:
    """Settle whether a volume is a CT in HU.

    A stated modality is believed, except a ``CT`` without a single value of -50 or less: fat and
    air are always near a body, so such numbers are not HU and the modality becomes ``unknown``.
    Without a statement, numbers are taken for CT when all of this holds: they are integers, the
    smallest is -900 or less, at least 0.2 % of the voxels are -900 or less (air or padding),
    at least 2 % are from -200 to 300 (soft tissue), none is above 32767, and at most 1 % are
    below -1300 other than the smallest (padding is one number; phase images go on). In a CT,
    values below -1024 are padding and become -1024. Each of these decisions is a warning.

    Args:
        volume: The voxels; taken over, so padding is set in this array itself.
        modality: What is stated, by a header or by the user; ``None`` for nothing.
        name: The file, for messages.
    """
    array = volume.array
    low, high = float(array.min()), float(array.max())
    warnings: list[str] = []
    if modality is None and (reason := _ct_evidence(array, low, high)):
        modality = "CT"
        warnings.append(f"taken for CT because {reason}")
    elif modality == "CT" and low > HIGHEST_FAT_HU:
        modality = UNKNOWN
        warnings.append(
            f"said to be CT, but its values from {low:g} to {high:g} are not HU (no fat or air); "
            "taken with modality unknown"
        )
    elif modality is None and _NAMED_CT.search(Path(name).name):
        warnings.append(
            f"named like a CT, but its values from {low:g} to {high:g} are not HU; taken with "
            "modality unknown"
        )
    if modality == "CT" and low < LOWEST_HU:
        padding = sum(int(np.count_nonzero(rows < LOWEST_HU)) for rows in _slices(array))
        # In place where that is allowed: a scan need not be in memory twice.
        place = array if array.flags.writeable else None
        array = np.maximum(array, np.asarray(LOWEST_HU, array.dtype), out=place)
        volume = Volume(array, volume.grid)
        warnings.append(
            f"{padding} voxels from {low:g} to below {LOWEST_HU} HU (padding) set to {LOWEST_HU}"
        )
    return Scan(volume, modality or UNKNOWN, warnings=tuple(warnings))


def class_numbers(array: Shaped[np.ndarray, "*axes"], name: str) -> Integer[np.ndarray, "*axes"]:
    """The class numbers in a label array, as the narrowest integers that hold them.

    Floats are taken when each is a whole number (within 0.001: stored scale factors round).

    Raises:
        DataError: If a value is not a whole number, is negative, or is above 32767.
    """
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}: a label with NaN or infinite values; expected class numbers.")
    if low < -0.001 or high > np.iinfo(np.int16).max + 0.001:
        raise DataError(
            f"{name}: class numbers from {low:g} to {high:g}; allowed are 0 to 32767. "
            "Renumber the classes."
        )
    dtype = np.uint8 if high < 255.5 else np.int16
    if array.dtype.kind in "iu":
        return array.astype(dtype, copy=False)
    numbers = np.rint(array).astype(dtype)
    if (wrong := int(np.count_nonzero(np.abs(array - numbers) > 0.001))) > 0:
        raise DataError(
            f"{name}: {wrong} values are not whole numbers, so this is not a label (an image, a "
            "probability map, or a label resampled with interpolation)."
        )
    return numbers


def refuse_placeholder(path: Path) -> None:
    """Notice files that only stand for a file: empty ones, and pointers of Git LFS and git-annex.

    Raises:
        DataError: With what to do about it.
    """
    with path.open("rb") as stream:
        start = stream.read(200)
    if not start:
        raise DataError(f"{path}: an empty file.")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a Git LFS pointer, not the file itself: run 'git lfs pull'.")
    if b"/annex/objects/" in start:
        raise DataError(f"{path}: a git-annex pointer, not the file itself: run 'git annex get'.")


def grid_difference(image: Grid, label: Grid, tolerance: float = 0.1) -> str | None:
    """Why two grids are not the same one; ``None`` when they are.

    They are the same when the shapes are equal and no corner voxel lies elsewhere by more than
    ``tolerance`` of the smallest voxel side (headers round).
    """
    if image.shape != label.shape:
        return f"{_times(label.shape)} voxels against {_times(image.shape)}"
    unit = np.indices((2, 2, 2)).reshape(3, -1)
    corners = np.concatenate([unit * (np.asarray(image.shape)[:, None] - 1), np.ones((1, 8))])
    apart = np.linalg.norm(((image.affine - label.affine) @ corners)[:3], axis=0).max()
    if apart <= tolerance * min(image.spacing_mm):
        return None
    return f"equal shapes, but corner voxels up to {apart:.3g} mm apart in the world"


def same_grid(first: Grid, second: Grid, tolerance: float = 0.1) -> bool:
    """Whether two grids are the same within ``tolerance`` of a voxel."""
    return grid_difference(first, second, tolerance) is None


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _check_affine(affine: Float64[np.ndarray, "4 4"], name: str) -> tuple[str, ...]:
    if not np.isfinite(affine).all():
        raise DataError(f"{name}: its header places voxels at NaN or infinity.")
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if spacing.min() <= 0:
        raise DataError(
            f"{name}: a spacing of 0 mm (x, y, z: {', '.join(f'{s:g}' for s in spacing)}). "
            "Write the true voxel size into the header."
        )
    cosines = (axes / spacing).T @ (axes / spacing)
    worst = float(np.abs(cosines - np.eye(3)).max())
    if abs(np.linalg.det(axes / spacing)) < 1e-3:
        raise DataError(f"{name}: two axes of its header point in the same direction.")
    if worst > _SHEAR:
        angle = 90 - np.degrees(np.arccos(min(1.0, worst)))
        return (f"sheared grid: two axes are {angle:.1f} degrees off a right angle",)
    return ()


def _check_finite(array: Shaped[np.ndarray, "c x y z"], name: str) -> None:
    if array.dtype.kind != "f":
        return
    # A sum is finite only if all parts are (or it overflows): no mask for the usual case.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
    if wrong:
        raise DataError(
            f"{name}: {wrong} voxels ({100 * wrong / array.size:.2g} %) are NaN or infinite. "
            "Give them a number (such as the background's) first."
        )


def _slices(array: Shaped[np.ndarray, "c x y z"]) -> Iterator[Shaped[np.ndarray, "_ _ _"]]:
    """Slices across the axis along which memory runs slowest: few enough voxels for a cache."""
    axis = int(np.argmax(np.abs(array.strides[1:]))) + 1
    yield from np.moveaxis(array, axis, 0)


def _ct_evidence(array: Shaped[np.ndarray, "c x y z"], low: float, high: float) -> str | None:
    if array.dtype.kind not in "iu" or low > AIR_HU or high > np.iinfo(np.int16).max:
        return None
    found = [
        (
            np.count_nonzero(rows <= AIR_HU),
            np.count_nonzero(rows >= _SOFT_HU[0]) - np.count_nonzero(rows > _SOFT_HU[1]),
            np.count_nonzero((rows < _DEEPEST_HU) & (rows != low)),
        )
        for rows in _slices(array)
    ]
    air, soft, deep = (sum(map(int, counts)) / array.size for counts in zip(*found, strict=True))
    if air < _AIR_SHARE or soft < _SOFT_SHARE or deep > _DEEP_SHARE:
        return None
    return (
        f"its whole numbers reach from {low:g} to {high:g}, {100 * air:.2g} % of them at or "
        f"below {AIR_HU} (air) and {100 * soft:.2g} % between {_SOFT_HU[0]} and {_SOFT_HU[1]}"
    )
