"""DICOM to volumes: which files form a stack of slices, and the voxels of a stack.

**Which files belong together.** Slices of one folder with the same SeriesInstanceUID and
modality. Frames of a multi-frame file count as slices; each brings its own position. What makes
slices a volume is in :mod:`voco.data.stacking`.

**Numbers.** RescaleSlope and RescaleIntercept of each slice are applied: CT is in HU. Pixels that
are stored plainly or as RLE are read by pydicom, which notices missing bytes; compressed ones are
decoded by the GDCM in SimpleITK.

Names of patients are never read; PatientID only as a hash that tells which cases are of one
patient.
"""

import hashlib
import struct
import tempfile
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Shaped
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from voco.data.scan import (
    Scan,
    checked_volume,
    hounsfield,
    refuse_placeholder,
    rescaled,
)
from voco.data.stacking import SPLIT_BY, Slice, Stack, split
from voco.errors import DataError

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

_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
)

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
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom raises for damaged files, seen by feeding it some."""


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
    file, frames = Path(), np.empty((0, 0, 0))
    for index, part in enumerate(stack.slices):
        if part.file != file:
            file, frames = part.file, _pixels(part.file)
        if part.frame >= len(frames):
            raise DataError(f"{file}: cut off: {len(frames)} frames, {part.frame + 1} expected.")
        frame = frames[part.frame]
        if frame.shape != part.size:
            raise DataError(f"{part.file}: pixels {frame.shape}, its header says {part.size}.")
        values = rescaled(frame, part.slope, part.intercept)
        # Each slice has its own scale, so its own type; the volume takes the widest.
        dtype = np.result_type(result.dtype, values.dtype) if index else values.dtype
        dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
        result = result.astype(dtype, copy=False)
        result[index] = values
    first = stack.files[0]
    name = str(first.parent if len(stack.files) > 1 else first)
    volume, notes = checked_volume(result.transpose(2, 1, 0)[None], stack.affine, name)
    scan = hounsfield(volume, modality or stack.modality or None, name)
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
                str(dataset.get("Modality") or ""),
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
    top |= _grouped(shared[0])
    if len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise DataError(f"{dataset.get('NumberOfFrames')} frames, but positions of {len(frames)}")
    return tuple(_slice(top | _grouped(item), file, index) for index, item in enumerate(frames))


def _grouped(item: Dataset) -> dict[str, Any]:
    """The values in the functional groups of a frame, by keyword."""
    values: dict[str, Any] = {}
    # Named one by one: makers put sequences of their own beside them, with other positions.
    for keyword in _GROUPS:
        for part in item.get(keyword) or ():
            values |= {key: part.get(key) for key in _NEEDED if key in part}
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
    x, y, z = (float(v) for v in values["ImagePositionPatient"])
    spacing = [float(v) for v in values["PixelSpacing"]]
    if not min(spacing) > 0:
        raise DataError(f"a PixelSpacing of {spacing} mm")
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    return Slice(
        file,
        frame,
        (int(values["Rows"]), int(values["Columns"])),
        (x, y, z),
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
    first = headers[0]
    notes: tuple[str, ...] = ()
    if any(header.inverted for header in headers):
        notes = ("MONOCHROME1: shown inverted by viewers; the stored numbers are kept",)
    volumes = split([part for header in headers for part in header.slices])
    return [
        Stack(slices, f"{first.name} {name}".strip(), first.modality, first.group, notes)
        for name, slices in volumes.items()
    ]


def _pixels(file: Path) -> Shaped[np.ndarray, "frames rows columns"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, force=True)
            if "PixelData" not in dataset:
                raise DataError(f"{file}: no pixels in it; was it cut off?")
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
