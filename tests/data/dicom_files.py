"""DICOM files for tests: small, complete, and wrong in whatever way is asked for."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

STUDY, SERIES = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"])


def slice_dataset(pixels: np.ndarray, position, **elements) -> FileDataset:
    """One CT slice (rows, columns) at a position; further elements by keyword (None: without)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    standard = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesNumber": 1,
        "PatientID": "somebody",
        "Modality": "CT",
        "ImagePositionPatient": [float(f"{v:.6f}") for v in position],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.75],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    }
    for keyword, value in (standard | elements).items():
        if value is not None:
            setattr(data, keyword, value)
    return data


def write_series(folder: Path, volume: np.ndarray, *, positions=None, names=None, **elements):
    """A series of CT slices from stored numbers (slices, rows, columns), 2 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(volume):
        position = (-10, -20, 30 + 2 * index) if positions is None else positions[index]
        name = f"{index:03d}.dcm" if names is None else names[index]
        data = slice_dataset(pixels, position, InstanceNumber=index + 1, **elements)
        data.save_as(folder / name, enforce_file_format=True)


def write_multiframe(file: Path, volume: np.ndarray, positions, **elements):
    """An enhanced MR file with a frame per position; each frame has a slope of its own."""
    frames = []
    for index, position in enumerate(positions):
        frame, plane, values, content = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = list(position)
        values.RescaleSlope, values.RescaleIntercept = index + 1, 0
        content.TemporalPositionIndex = 1
        frame.PlanePositionSequence = [plane]
        frame.PixelValueTransformationSequence = [values]
        frame.FrameContentSequence = [content]
        frames.append(frame)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.5, 0.75]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data = slice_dataset(
        volume,
        (0, 0, 0),
        SOPClassUID=EnhancedMRImageStorage,
        Modality="MR",
        NumberOfFrames=len(volume),
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[shared],
        **{"ImagePositionPatient": None, "RescaleSlope": None, "RescaleIntercept": None}
        | {"ImageOrientationPatient": None, "PixelSpacing": None}
        | elements,
    )
    data.save_as(file, enforce_file_format=True)
