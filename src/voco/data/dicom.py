"""DICOM series to volumes."""

from pathlib import Path

from voco.data.scan import Scan
from voco.errors import DataError


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its marker, or by its name where the marker is missing."""
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom", ".ima"}


def read_folder(path: Path, *, modality: str | None = None) -> Scan:
    """Read the one series in a folder."""
    raise DataError(f"{path}: DICOM is not read yet.")
