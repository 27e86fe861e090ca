"""Masks to DICOM Segmentation objects (SEG), by highdicom.

A segmentation is written beside the series that it was made from: of the same patient, study and
frame of reference, each of its frames at the place of a source slice, which it refers to. Nothing
is resampled. The segments are binary, one for each class but the background, numbered from 1 in the
order of the classes, also where a class was not found. Frames without a voxel are left out, as is
usual.

The kind of a segment is the code of SNOMED CT that DICOM lists for anatomical structures (context
group 7192) or for lesions (7194) under the same words, in any order; ``left`` and ``right`` become
a modifier of the code. A name that neither lists gets a code of its own (scheme ``99VOCO``).
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from jaxtyping import Integer
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from voco import __version__
from voco.data.labelnames import colour
from voco.data.stacking import Stack
from voco.data.store import write_atomically
from voco.errors import DataError
from voco.extras import needed

EXTRA = "dicomseg"
"""What to install for it."""

_GROUPS = {
    "cid7192": "AnatomicalStructure",
    "cid7194": "MorphologicallyAbnormalStructure",
}
"""Context groups of DICOM in which a name is looked up, and the category of what they list."""

_SIDES = {"Left": "7771000", "Right": "24028007"}
"""SNOMED CT codes of the sides."""

_SERIES = 1000
"""Added to the number of the source's series."""

_LONGEST = 64
"""Characters of a long string (LO) in DICOM."""

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""What a SEG takes over from its source and what may be unknown; anonymised files lack some."""

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def check_highdicom() -> None:
    """Refuse to begin where no segmentation could be written.

    Raises:
        UsageError: If highdicom is not installed.
    """
    _highdicom()


def write_dicom_segmentation(
    mask: Integer[np.ndarray, "columns rows slices"],
    classes: Mapping[int, str],
    stack: Stack,
    file: Path,
    *,
    network: str,
) -> None:
    """Write a mask as a DICOM segmentation, whole or not at all.

    Args:
        mask: Label values, on the grid of the stack.
        classes: Names of the label values, background first; without it nothing is a segment.
        stack: The slices of which the mask is.
        file: Where to.
        network: What tells the network from others; kept as the serial number of the device.

    Raises:
        DataError: If the series lacks what a segmentation must refer to.
        UsageError: If highdicom is not installed.
    """
    hd = _highdicom()
    thickness = float(np.linalg.norm(stack.affine[:3, 2]))
    headers = [_header(path, thickness) for path in stack.files]
    numbers = _numbered(mask, classes)
    frames = np.ascontiguousarray(numbers.transpose(2, 1, 0))
    first = headers[0]
    if len(headers) == 1:
        # A file of several frames is referred to as a whole, in the order of its frames.
        placed = np.zeros((int(first.NumberOfFrames), *frames.shape[1:]), frames.dtype)
        placed[[part.frame for part in stack.slices]] = frames
        frames = placed
    elif len(headers) != len(stack.slices):
        raise DataError(
            f"{stack.files[0]}: a volume out of several files with several frames each, to which "
            "a DICOM segmentation cannot refer. Write NIfTI."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            segmentation = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_segments(hd, classes),
                series_instance_uid=hd.UID(),
                series_number=_SERIES + int(first.get("SeriesNumber") or 0),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="voco",
                manufacturer_model_name="voco",
                software_versions=__version__,
                device_serial_number=network[:_LONGEST],
                content_label="SEGMENTATION",
                content_description="Predicted by a network; not reviewed",
                series_description="Predicted segmentation",
            )
            stream = io.BytesIO()
            segmentation.save_as(stream)
    except (ValueError, TypeError, AttributeError, KeyError, LookupError) as error:
        raise DataError(
            f"{stack.files[0]}: its series cannot be referred to by a DICOM segmentation "
            f"({error}). Write NIfTI."
        ) from None
    write_atomically(file, stream.getvalue())


class Kind(NamedTuple):
    """What a segment is, in codes.

    Attributes:
        category: Keyword of the SNOMED CT code of the category.
        value: Of the code.
        scheme: That it is of.
        meaning: In words.
        side: ``Left``, ``Right`` or empty: a modifier of the code.
    """

    category: str
    value: str
    scheme: str
    meaning: str
    side: str = ""


def segment_kind(name: str, value: int) -> Kind:
    """What a segment of a name is.

    Args:
        name: Of the class.
        value: Its label value, for a class that no code is known of.
    """
    words = _words(name)
    sides = words & {"left", "right"}
    # A code of that very side goes before a modified one.
    wanted = [(words, "")]
    if len(sides) == 1:
        wanted.append((words - sides, next(iter(sides)).capitalize()))
    for some, side in wanted:
        for group, category in _GROUPS.items():
            for code in getattr(codes, group).concepts.values():
                if code.scheme_designator == "SCT" and _words(code.meaning) == some:
                    return Kind(category, code.value, "SCT", code.meaning, side)
    return Kind("AnatomicalStructure", f"label-{value}", "99VOCO", name[:_LONGEST])


def _segments(hd: Any, classes: Mapping[int, str]) -> list[Any]:  # noqa: ANN401 (imported late)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="voco", family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    segments = []
    for number, (value, name) in enumerate(list(classes.items())[1:], start=1):
        kind = segment_kind(name, value)
        segment = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:_LONGEST],
            segmented_property_category=getattr(codes.SCT, kind.category),
            segmented_property_type=hd.sr.CodedConcept(kind.value, kind.scheme, kind.meaning),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"label value {value}",
            display_color=hd.color.CIELabColor.from_rgb(*colour(number)),
        )
        if kind.side:
            side = hd.sr.CodedConcept(_SIDES[kind.side], "SCT", kind.side)
            (code,) = segment.SegmentedPropertyTypeCodeSequence
            code.SegmentedPropertyTypeModifierCodeSequence = [side]
        segments.append(segment)
    return segments


def _numbered(
    mask: Integer[np.ndarray, "columns rows slices"], classes: Mapping[int, str]
) -> Integer[np.ndarray, "columns rows slices"]:
    """Label values to numbers of segments: 0 is the background, whatever its value is."""
    table = np.zeros(max(classes) + 1, np.uint8 if len(classes) <= 256 else np.uint16)
    table[list(classes)] = np.arange(len(classes))
    return table[mask]


def _header(file: Path, thickness: float) -> Dataset:
    """All of a source image but its pixels; a missing thickness is the distance of the slices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        absent = [keyword for keyword in _NEEDED if not data.get(keyword)]
        if not data.get("FrameOfReferenceUID"):
            absent.append("FrameOfReferenceUID")
        if absent:
            raise DataError(
                f"{file}: no {' and no '.join(absent)}, which a DICOM segmentation must refer to. "
                "Write NIfTI."
            )
        for keyword in _MAY_BE_EMPTY:
            if data.get(keyword) is None:
                setattr(data, keyword, "")
        for measures in _measures(data):
            if measures.get("SliceThickness") is None:
                measures.SliceThickness = thickness
        if data.PatientSex not in {"M", "F", "O"}:
            data.PatientSex = ""
    return data


def _measures(data: Dataset) -> Iterator[Dataset]:
    """What holds the size of the voxels: the image itself, or the groups of its frames."""
    groups = [
        *(data.get("SharedFunctionalGroupsSequence") or ()),
        *(data.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    if not groups:
        yield data
    for group in groups:
        yield from group.get("PixelMeasuresSequence") or ()


def _words(name: str) -> frozenset[str]:
    """The words of a name, in small letters; their order does not matter."""
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))


def _highdicom() -> Any:  # noqa: ANN401 (an optional package)
    return needed("highdicom", EXTRA, "Writing DICOM segmentations")
