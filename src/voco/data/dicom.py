"""DICOM to volumes: which files form a stack of slices, and the voxels of a stack.

**Which files belong together.** Slices of one folder with the same SeriesInstanceUID and
modality. Frames of a multi-frame file count as slices; each brings its own position. Where
positions repeat, the series is split by the first of :data:`SPLIT_BY` that gives complete
volumes: each then is a stack of its own.

**What is a volume.** At least three slices of one size, orientation and pixel spacing, at
different positions, equally far apart along their normal (within 1 %, or 0.02 mm for headers
that round), none shifted sideways. A tilted gantry shifts each slice a little further: beyond
0.5 degrees the series is refused, below it the grid keeps the small shear exactly.

**Numbers.** RescaleSlope and RescaleIntercept of each slice are applied: CT is in HU. Pixels that
are stored plainly or as RLE are read by pydicom, which notices missing bytes; compressed ones are
decoded by the GDCM in SimpleITK.

Names of patients are never read; PatientID only as a hash that tells which cases are of one
patient.
"""

import hashlib
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Float64, Shaped
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from voco.data.scan import (
    MINIMUM_SIDE,
    Scan,
    checked_volume,
    hounsfield,
    refuse_placeholder,
    rescaled,
)
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

NOT_IMAGES = {
    "RTSTRUCT": "an RT structure set",
    "RTPLAN": "an RT plan",
    "RTDOSE": "an RT dose",
    "RTRECORD": "an RT treatment record",
    "SEG": "a segmentation",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a selection of key objects",
    "REG": "a spatial registration",
    "FID": "a set of fiducials",
    "DOC": "a document",
    "PLAN": "a plan",
    "ECG": "an electrocardiogram",
}
"""Modality of DICOM objects that are not images, and what they are."""

_GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_NEEDED = (*_GEOMETRY, "Rows", "Columns", "RescaleSlope", "RescaleIntercept", *SPLIT_BY)

_UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)
"""What pydicom raises for damaged files, seen by feeding it some."""


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
        modality: As the header says.
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


class NotTaken(NamedTuple):
    """Files that form no volume, and why."""

    files: tuple[Path, ...]
    reason: str


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its marker, or by its name where the marker is missing."""
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"}:
        return True
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def find_stacks(files: Iterable[Path]) -> tuple[list[Stack], list[NotTaken]]:
    """Sort the DICOM files of one folder into volumes; reads headers only."""
    series: dict[tuple[str, str], list[_Header]] = defaultdict(list)
    refused: list[NotTaken] = []
    for file in sorted(files):
        try:
            header = _read_header(file)
        except DataError as error:
            refused.append(NotTaken((file,), str(error).removeprefix(f"{file}: ")))
        else:
            series[header.uid, header.modality].append(header)
    stacks: list[Stack] = []
    for headers in series.values():
        try:
            stacks += _stacks(headers)
        except DataError as error:
            refused.append(NotTaken(tuple(header.file for header in headers), str(error)))
    return stacks, refused


def read_stack(stack: Stack, *, modality: str | None = None) -> Scan:
    """Read the voxels of a stack.

    Args:
        stack: From :func:`find_stacks`.
        modality: What the user says it is; overrides the header.

    Raises:
        DataError: If pixels are missing, damaged, or stored in a way that cannot be decoded.
    """
    rows, columns = stack.slices[0].size
    result = np.empty((len(stack.slices), rows, columns), dtype=np.int16)
    kept: tuple[Path, Any] = (Path(), None)
    for index, part in enumerate(stack.slices):
        if part.file != kept[0]:
            kept = (part.file, _pixels(part.file))
        frame = kept[1][part.frame]
        if frame.shape != part.size:
            raise DataError(f"{part.file}: pixels {frame.shape}, its header says {part.size}.")
        values = rescaled(frame, part.slope, part.intercept)
        # Each slice has its own scale, so its own type; the volume takes the widest.
        dtype = np.result_type(result.dtype, values.dtype) if index else values.dtype
        dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
        result = result.astype(dtype, copy=False)
        result[index] = values
    name = str(stack.files[0].parent if len(stack.files) > 1 else stack.files[0])
    volume, notes = checked_volume(result.transpose(2, 1, 0)[None], stack.affine, name)
    scan = hounsfield(volume, modality or stack.modality, name)
    return Scan(
        scan.volume, scan.modality, scan.channels, (*stack.warnings, *notes, *scan.warnings)
    )


def read_folder(path: Path, *, modality: str | None = None) -> Scan:
    """Read the one volume in a folder of slices, or in one multi-frame file.

    Raises:
        DataError: If there is none, or more than one; with the reasons.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and is_dicom(file)]
        if not files:
            raise DataError(f"{path}: a folder without DICOM files; expected one series.")
    stacks, refused = find_stacks(files)
    if len(stacks) == 1:
        return read_stack(stacks[0], modality=modality)
    if stacks:
        names = ", ".join(stack.name for stack in stacks)
        raise DataError(
            f"{path}: holds {len(stacks)} volumes ({names}). Move each into a folder of its own."
        )
    raise DataError(f"{path}: " + "; ".join(dict.fromkeys(item.reason for item in refused)))


class _Header(NamedTuple):
    file: Path
    uid: str
    modality: str
    name: str
    group: str | None
    inverted: bool
    slices: tuple[Slice, ...]


def _read_header(file: Path) -> _Header:
    refuse_placeholder(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            _check_is_image(dataset)
            slices = _slices(dataset, file)
            number = str(dataset.get("SeriesNumber") or "")
            label = str(dataset.get("SeriesDescription") or "").strip()
            return _Header(
                file,
                str(dataset.get("SeriesInstanceUID") or ""),
                str(dataset.get("Modality") or "unknown"),
                f"series {number} {label}".strip(),
                _group(dataset),
                dataset.get("PhotometricInterpretation") == "MONOCHROME1",
                slices,
            )
    except _UNREADABLE as error:
        raise DataError(f"damaged, or not DICOM ({type(error).__name__}: {error})") from None


def _check_is_image(dataset: Dataset) -> None:
    modality = str(dataset.get("Modality") or "")
    if modality in NOT_IMAGES:
        raise DataError(f"{NOT_IMAGES[modality]}: not an image")
    if "Rows" not in dataset or "Columns" not in dataset:
        name = UID(str(dataset.get("SOPClassUID") or "")).name or "unknown kind"
        raise DataError(f"a DICOM file without an image ({name}), or a damaged one")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise DataError(f"{dataset.SamplesPerPixel} numbers per pixel (colour); expected one")
    if dataset.get("PhotometricInterpretation") not in {"MONOCHROME1", "MONOCHROME2", None}:
        raise DataError(f"colours ({dataset.PhotometricInterpretation}), not intensities")
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise DataError(
            "a mosaic: all slices of a volume as tiles of one picture. Convert it to NIfTI "
            "(dcm2niix does)"
        )


def _slices(dataset: Dataset, file: Path) -> tuple[Slice, ...]:
    # Looked up one by one: a damaged element that nobody needs does no harm.
    top = {keyword: dataset.get(keyword) for keyword in _NEEDED}
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise DataError("several frames without a position of each")
        return (_slice(top, file, 0),)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    top |= _flat(shared[0])
    if len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise DataError(f"{dataset.get('NumberOfFrames')} frames, but positions of {len(frames)}")
    return tuple(_slice(top | _flat(item), file, index) for index, item in enumerate(frames))


def _flat(item: Dataset) -> dict[str, Any]:
    """The values in a functional group and in the groups inside it, by keyword."""
    values: dict[str, Any] = {}
    for element in item:
        if element.VR == "SQ":
            for part in element.value or ():
                values |= _flat(part)
        elif element.keyword:
            values[element.keyword] = element.value
    return values


def _slice(values: dict[str, Any], file: Path, frame: int) -> Slice:
    for keyword, count in _GEOMETRY.items():
        found = values.get(keyword)
        if found is None or len(found) != count or not np.isfinite(np.asarray(found, float)).all():
            raise DataError(f"no {keyword}, so nothing says where its pixels are")
    orientation = np.asarray([float(v) for v in values["ImageOrientationPatient"]])
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(orientation[:3] @ orientation[3:]) > 0.01:
        raise DataError(f"an ImageOrientationPatient that is not two right angles: {orientation}")
    spacing = [float(v) for v in values["PixelSpacing"]]
    if not min(spacing) > 0:
        raise DataError(f"a PixelSpacing of {spacing} mm")
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    return Slice(
        file,
        frame,
        (int(values["Rows"]), int(values["Columns"])),
        tuple(float(v) for v in values["ImagePositionPatient"]),
        tuple(orientation.tolist()),
        (spacing[0], spacing[1]),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        tuple(str(values.get(keyword)) for keyword in SPLIT_BY),
    )


def _group(dataset: Dataset) -> str | None:
    for keyword in ("PatientID", "StudyInstanceUID"):
        if value := str(dataset.get(keyword) or "").strip():
            return hashlib.sha256(f"{keyword} {value}".encode()).hexdigest()[:12]
    return None


def _stacks(headers: Sequence[_Header]) -> list[Stack]:
    slices = [part for header in headers for part in header.slices]
    _check_alike(slices)
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    groups = _volumes(slices, normal)
    notes = ()
    if any(header.inverted for header in headers):
        notes = ("MONOCHROME1: shown inverted by viewers; the stored numbers are kept",)
    first, stacks = headers[0], []
    for label, parts in groups.items():
        ordered = tuple(sorted(parts, key=lambda part: float(normal @ part.position)))
        _check_regular(ordered, normal)
        name = f"{first.name} {label}".strip()
        stacks.append(Stack(ordered, name, first.modality, first.group, notes))
    return stacks


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


def _pixels(file: Path) -> Shaped[np.ndarray, "frames rows columns"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, force=True)
            syntax = _syntax(dataset)
            if syntax.is_compressed and syntax != RLELossless and not syntax.is_deflated:
                array = _decode(dataset, syntax)
            else:
                array = dataset.pixel_array
    except _UNREADABLE as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            f"{file}: pixels missing or damaged ({lines[-1] if lines else error})."
        ) from None
    return array if array.ndim == 3 else array[None]


def _syntax(dataset: Any) -> UID:  # noqa: ANN401
    """How the pixels are stored; set where the file does not say it."""
    meta = getattr(dataset, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:
        dataset.file_meta = FileMetaDataset()
        implicit = dataset.original_encoding[0]
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain
    return dataset.file_meta.TransferSyntaxUID


def _decode(dataset: Any, syntax: UID) -> Shaped[np.ndarray, "*frames rows columns"]:  # noqa: ANN401
    """Stored numbers of compressed pixels, by GDCM.

    GDCM applies the rescaling of some kinds of object and not of others. It is handed the bare
    pixels instead, so that the numbers are as stored whatever the object is.
    """
    bare = Dataset()
    bare.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")  # secondary capture: nothing to rescale
    bare.SOPInstanceUID = UID("1.2.3")
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "NumberOfFrames",
        "PixelData",
    ):
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
