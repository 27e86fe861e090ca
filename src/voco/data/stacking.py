"""Which slices form a volume: geometry alone, no files are read.

At least three slices of one size, orientation and pixel spacing, at different positions, equally
far apart along their normal (within 1 %, or 0.02 mm for headers that round), none shifted
sideways. A tilted gantry shifts each slice a little further: beyond 0.5 degrees the series is
refused, below it the grid keeps the small shear exactly. Where positions repeat, the slices are
split by the first of :data:`SPLIT_BY` that gives complete volumes.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from voco.data.scan import MINIMUM_SIDE
from voco.errors import DataError

SPLIT_BY = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "DiffusionBValue",
    "ImageType",
    "FrameType",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
)
"""What may tell the slices at one position apart, in the order in which it is tried."""

SPACING_TOLERANCE = 0.01
"""Allowed deviation of a distance between slices, as a share of their usual distance."""

ROUNDING_MM = 0.02
"""Allowed deviation of a position whatever the distance: headers round."""

TILT_DEGREES = 0.5
"""Largest angle between the normal of the slices and the direction in which they are stacked."""


class Slice(NamedTuple):
    """One slice: a file, or a frame of one. Positions in DICOM's LPS millimetres."""

    file: Path
    frame: int
    size: tuple[int, int]
    """Rows and columns."""
    position: tuple[float, float, float]
    """Centre of the first pixel."""
    orientation: tuple[float, float, float, float, float, float]
    """Directions in which the column index and the row index grow."""
    spacing_mm: tuple[float, float]
    """Between rows, and between columns."""
    slope: float
    intercept: float
    keys: tuple[str, ...]
    """Values of :data:`SPLIT_BY`."""


@dataclass(frozen=True)
class Stack:
    """Slices that form one volume, in order along their normal.

    Attributes:
        slices: The slices.
        name: What tells it from the other stacks of its folder, such as ``series 3``.
        modality: As the header says; '' where it says nothing.
        group: Hash that is equal for scans of one patient; ``None`` where nothing tells.
        warnings: What a user should know.
    """

    slices: tuple[Slice, ...]
    name: str
    modality: str
    group: str | None
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it, each once."""
        return tuple(dict.fromkeys(s.file for s in self.slices))

    @property
    def affine(self) -> Float64[np.ndarray, "4 4"]:
        """From (column, row, slice) indices to RAS+ millimetres."""
        first, last = self.slices[0], self.slices[-1]
        affine = np.eye(4)
        affine[:3, 0] = np.asarray(first.orientation[:3]) * first.spacing_mm[1]
        affine[:3, 1] = np.asarray(first.orientation[3:]) * first.spacing_mm[0]
        affine[:3, 2] = np.subtract(last.position, first.position) / (len(self.slices) - 1)
        affine[:3, 3] = first.position
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def split(slices: Sequence[Slice]) -> dict[str, tuple[Slice, ...]]:
    """The volumes in a series, each in order along its normal, by what tells them apart.

    One volume has the name ''.

    Raises:
        DataError: If the slices do not form volumes, with the reason.
    """
    _check_alike(slices)
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    volumes = {}
    for name, parts in _volumes(slices, normal).items():
        ordered = tuple(sorted(parts, key=lambda part: float(normal @ part.position)))
        _check_regular(ordered, normal)
        volumes[name] = ordered
    return volumes


def _check_alike(slices: Sequence[Slice]) -> None:
    sizes = Counter(part.size for part in slices)
    if len(sizes) > 1:
        kinds = ", ".join(f"{n} of {rows} x {columns}" for (rows, columns), n in sizes.items())
        raise DataError(f"slices of different sizes in one series: {kinds}")
    for field, limit in (("orientation", 1e-3), ("spacing_mm", 1e-3)):
        values = np.asarray([getattr(part, field) for part in slices])
        if np.abs(values - values[0]).max() > limit:
            word = "orientations" if field == "orientation" else "pixel spacings"
            raise DataError(f"slices of different {word} in one series ({len(slices)} slices)")


def _volumes(
    slices: Sequence[Slice], normal: Float64[np.ndarray, "3"]
) -> dict[str, Sequence[Slice]]:
    """The slices, or where positions repeat, each complete set of them by its name."""
    places = [round(float(normal @ part.position) / ROUNDING_MM) for part in slices]
    count = len(set(places))
    if count < MINIMUM_SIDE:
        at = f" at {count} position{'s' * (count != 1)}" if count < len(slices) else ""
        raise DataError(
            f"{len(slices)} slice{'s' * (len(slices) != 1)}{at}; a volume needs at least "
            f"{MINIMUM_SIDE} positions"
        )
    if count == len(slices):
        return {"": slices}
    for index, keyword in enumerate(SPLIT_BY):
        groups: dict[str, dict[int, Slice]] = defaultdict(dict)
        for place, part in zip(places, slices, strict=True):
            groups[part.keys[index]][place] = part
        complete = all(set(group) == set(places) for group in groups.values())
        if complete and len(groups) * count == len(slices):
            return {f"{keyword} {key}": list(group.values()) for key, group in groups.items()}
    share = len(slices) / count
    found = f"{share:.0f} volumes" if share.is_integer() else "copies of some slices"
    raise DataError(
        f"{len(slices)} slices at {count} positions: {found} in one series (a time series, or "
        "duplicates) that nothing in the headers separates. Keep one slice per position, or "
        "convert it to NIfTI (dcm2niix does)"
    )


def _check_regular(slices: Sequence[Slice], normal: Float64[np.ndarray, "3"]) -> None:
    positions = np.asarray([part.position for part in slices])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > max(SPACING_TOLERANCE * usual, ROUNDING_MM):
        raise DataError(
            f"slices {usual:.4g} mm apart, but {steps[worst]:.4g} mm between "
            f"{slices[worst].file.name} and {slices[worst + 1].file.name}: slices are missing "
            "or were taken at unequal distances"
        )
    across = positions - positions[0]
    way = across[-1] / np.linalg.norm(across[-1])
    angle = float(np.degrees(np.arccos(min(1.0, abs(way @ normal)))))
    if angle > TILT_DEGREES:
        raise DataError(
            f"gantry tilt: the slices are stacked at {angle:.1f} degrees to their normal. "
            "Resample it onto an upright grid first (dcm2niix does)"
        )
    sideways = float(np.linalg.norm(across - np.outer(across @ way, way), axis=1).max())
    if sideways > max(0.5 * min(slices[0].spacing_mm), ROUNDING_MM):
        raise DataError(f"slices shifted sideways by up to {sideways:.3g} mm")
