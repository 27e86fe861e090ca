"""Image files to volumes and back.

Read: NIfTI-1 and NIfTI-2 (``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``), FreeSurfer
(``.mgz``, ``.mgh``), MINC 1 (``.mnc``) and AFNI (``.HEAD`` with ``.BRIK``) by nibabel; NRRD
(``.nrrd``, ``.nhdr``) and MetaImage (``.mha``, ``.mhd``) by SimpleITK; DICOM by
:mod:`voco.data.dicom`. Written: NIfTI-1.

Voxels keep their order and their units (a stored slope and intercept are applied); the grid says
where they lie, in RAS+ millimetres. Integers stay integers. NIfTI is never read by SimpleITK: it
returns a whole volume for a truncated ``.nii.gz``, without an error.

What would be read wrongly is refused: see :func:`read_scan`.
"""

import gzip
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from isal import isal_zlib
from jaxtyping import Float64, Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.minc1 import MincError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError, ImageDataError, SpatialImage

from voco.data import dicom
from voco.data.labelnames import CARET_CODE, caret_extension
from voco.data.scan import (
    Scan,
    checked_volume,
    class_numbers,
    hounsfield,
    refuse_placeholder,
    rescaled,
)
from voco.errors import DataError
from voco.volume import Volume

Read = tuple[Shaped[np.ndarray, "*axes"], Float64[np.ndarray, "4 4"], tuple[str, ...]]
"""Array as stored in the file (in source units), affine, warnings."""

_NO_GZIP = cast("type[Exception]", isal_zlib.error)  # its stubs take the class for an instance

_DAMAGED = (
    ImageFileError,
    HeaderDataError,
    ImageDataError,
    MGHError,
    MincError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    _NO_GZIP,
)
"""What is raised for damaged files, seen by feeding some."""

_UNITS = {1: ("metres", 1000.0), 3: ("microns", 0.001)}
"""NIfTI's codes of the units that are not millimetres (or nothing, which means them)."""

_GZIP_FACTOR = 1100
"""No gzip stream unpacks to more than about 1032 times its length."""

_GZIP_READ = 1 << 16
"""Bytes of a gzip file that are unpacked at a time."""

_LEVEL = 3
"""gzip level of written files: a third larger than 9, ten times faster."""


def read_scan(
    path: Path, *, modality: str | None = None, channels: tuple[str, ...] | None = None
) -> Scan:
    """Read any image file, or a folder with one DICOM series.

    Args:
        path: The file or folder.
        modality: What the user says it is; overrides what the file says.
        channels: Names of the entries of a fourth axis. Without them a file with four axes is
            refused: it could be a time series as well.

    Raises:
        DataError: With the reason: not an image, damaged, no volume, or ambiguous.
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and dicom.is_dicom(path)):
        return dicom.read_folder(path, modality=modality)
    array, affine, notes = _reader(path)(path)
    names = channels or ("image",)
    array = _channels_first(array, names, path)
    volume, more = checked_volume(array, affine, str(path))
    scan = hounsfield(volume, modality, str(path))
    return Scan(scan.volume, scan.modality, names, (*notes, *more, *scan.warnings))


def read_image(path: Path) -> Volume:
    """The volume of :func:`read_scan`.

    Raises:
        DataError: As :func:`read_scan`.
    """
    return read_scan(path).volume


def read_label(path: Path) -> Volume:
    """Read a label file: class numbers ``(1, x, y, z)``, uint8 or int16.

    Raises:
        DataError: As :func:`read_scan`, and if a value is no whole number from 0 to 32767.
    """
    path = Path(path)
    array, affine, _ = _reader(path)(path)
    numbers = class_numbers(_channels_first(array, ("label",), path), str(path))
    return checked_volume(numbers, affine, str(path))[0]


def write_image(
    volume: Volume,
    path: Path,
    *,
    description: str = "",
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write ``.nii.gz`` or ``.nii``, whole or not at all; equal volumes give equal bytes.

    One channel becomes a file with three axes, more channels the fourth axis. The numbers keep
    their type (float16 becomes float32, bool uint8). Both transforms of the header are set to
    the grid (a sheared grid fits the sform only), units are millimetres.

    Args:
        volume: What to write.
        path: Where to.
        description: Up to 79 ASCII characters for the header.
        labels: Names of label values: the file is then marked as a label map, and its header gets
            an extension that holds them (:mod:`voco.data.labelnames`).

    Raises:
        DataError: If the name ends otherwise.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: images are written as .nii.gz or .nii.")
    image = _nifti(volume, description, labels)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", _LEVEL, stream, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def suffix_of(path: Path) -> str:
    """The ending that tells the format, in small letters: ``.nii.gz``, ``.nrrd``, or ''."""
    name = path.name.lower()
    known = (s for s in (*READERS, *UNREAD) if name.endswith(s))
    return max(known, key=len, default="")


def _nifti(volume: Volume, description: str, labels: Mapping[int, str] | None) -> nib.Nifti1Image:
    array = volume.array
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    affine = volume.grid.affine
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    axes = affine[:3, :3] / volume.grid.spacing_mm
    sheared = not np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=0 if sheared else 1)
    header: Any = image.header
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode("ascii", "replace")[:79]
    if labels is not None:
        header.set_intent("label")
        header.extensions.append(Nifti1Extension(CARET_CODE, caret_extension(labels)))
    return image


def _reader(path: Path) -> Callable[[Path], Read]:
    if not path.exists():
        state = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise DataError(f"{path}: {state}.")
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected one file.")
    suffix = suffix_of(path)
    if suffix in UNREAD:
        raise DataError(f"{path}: {UNREAD[suffix]}.")
    if suffix not in READERS:
        raise DataError(
            f"{path}: not a kind of image file that is read ({', '.join(READERS)}, DICOM)."
        )
    refuse_placeholder(path)
    return READERS[suffix]


def _channels_first(
    array: Shaped[np.ndarray, "*axes"], names: tuple[str, ...], path: Path
) -> Shaped[np.ndarray, "c x y z"]:
    if array.size == 0:
        raise DataError(f"{path}: no voxels: its sides are {array.shape}.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and len(names) == 1:
        return array[None]
    if array.ndim == 4 and array.shape[3] == len(names):
        return np.moveaxis(array, 3, 0)
    size = " x ".join(map(str, array.shape))
    if array.ndim < 3:
        raise DataError(f"{path}: {size} voxels, a picture; a volume has three axes.")
    if len(names) > 1:
        raise DataError(f"{path}: {size} voxels do not hold {len(names)} channels {names}.")
    raise DataError(
        f"{path}: {size} voxels, more than three axes (a time series? channels?). Save the "
        "volume you want as a file of its own, or name the channels in a dataset.json."
    )


def _read_nibabel(path: Path) -> Read:
    image = _guarded(path, lambda: nib.load(path, mmap=False))
    if not isinstance(image, SpatialImage):
        raise DataError(f"{path}: holds {type(image).__name__}, not a volume.")
    if isinstance(image, nib.AnalyzeImage) and not isinstance(image, nib.Nifti1Pair):
        raise DataError(
            f"{path}: an ANALYZE 7.5 file, which does not say which side is left. Convert it "
            "to NIfTI with a tool that knows where it came from."
        )
    _check_size(image, path)
    affine, notes = np.array(image.affine, dtype=np.float64), ()
    if isinstance(image, nib.Nifti1Pair):
        notes = _check_header(image, path)
        unit, scale = _UNITS.get(int(np.asarray(image.header["xyzt_units"])) & 7, ("mm", 1.0))
        affine[:3] *= scale
        notes = (*notes, *([] if scale == 1 else [f"its header counts in {unit}; turned into mm"]))
    return _guarded(path, lambda: _voxels(image, path)), affine, notes


def _guarded(path: Path, read: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What nibabel reads; its errors become ours, its remarks are not needed."""
    try:
        with warnings.catch_warnings(), _Silence("nibabel.global"):
            warnings.simplefilter("ignore")
            return read()
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: reading this kind of file (MINC 2) needs the package {error.name}; install "
            "it, or convert the file to NIfTI."
        ) from None
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged or cut off ({_brief(error)}).") from None


def _voxels(image: SpatialImage, path: Path) -> Shaped[np.ndarray, "*axes"]:
    proxy: Any = image.dataobj
    if isinstance(image, nib.Nifti1Pair):
        packed = suffix_of(path) == ".nii.gz"
        raw = _unpacked(path, proxy) if packed else proxy.get_unscaled()
        return rescaled(raw, float(proxy.slope), float(proxy.inter))
    # The other formats have factors per slice or volume, and apply them themselves.
    return rescaled(np.asarray(proxy), 1.0, 0.0)


def _unpacked(path: Path, proxy: Any) -> Shaped[np.ndarray, "*axes"]:  # noqa: ANN401 (nibabel's)
    """The stored numbers of a gzip file: what nibabel gives, in a third of its time.

    Raises:
        EOFError: If there are fewer than the header promises, or their end is missing.
        IsalError: If they are damaged; the checksum at their end is looked at, too.
    """
    made = np.empty(int(np.prod(proxy.shape)) * proxy.dtype.itemsize, np.uint8)
    at, unpack = -int(proxy.offset), isal_zlib.decompressobj(wbits=31)  # from the first voxel on
    with path.open("rb") as stream:
        while at < len(made) or not unpack.eof:
            packed = (unpack.unused_data if unpack.eof else b"") or stream.read(_GZIP_READ)
            if not packed:  # without its end, nothing says that what came is right
                raise EOFError(f"{max(0, at)} of {len(made)} bytes of voxels, then it breaks off")
            if unpack.eof:  # a file may be several streams, one after the other
                unpack = isal_zlib.decompressobj(wbits=31)
            content = np.frombuffer(unpack.decompress(packed), np.uint8)
            start, skipped = max(0, at), max(0, -at)
            some = content[skipped : skipped + max(0, len(made) - start)]
            made[start : start + len(some)] = some
            at += len(content)
    return made.view(proxy.dtype).reshape(proxy.shape, order="F")


def _check_size(image: SpatialImage, path: Path) -> None:
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iufb":
        kind = "colour" if dtype.fields is not None else str(dtype)
        raise DataError(f"{path}: {kind} voxels; expected one number per voxel.")
    count = int(np.prod([int(n) for n in image.shape], dtype=object))
    file = Path(image.file_map["image"].filename or path)
    if not file.exists():
        raise DataError(f"{path}: a header whose image file {file.name} is not there.")
    factor = _GZIP_FACTOR if file.suffix in {".gz", ".mgz"} else 1
    if count * dtype.itemsize > file.stat().st_size * factor:
        raise DataError(
            f"{path}: cut off: its header promises {count * dtype.itemsize} bytes of voxels, "
            f"the file has {file.stat().st_size}."
        )


def _check_header(image: nib.Nifti1Pair, path: Path) -> tuple[str, ...]:
    # nibabel replaces a spacing of 0 by 1 while loading, so the header is read once more.
    file = image.file_map.get("header", image.file_map["image"])
    with file.get_prepare_fileobj("rb") as stream:
        raw: Any = type(image.header).from_fileobj(stream, check=False)
    spacing = np.abs(np.asarray(raw["pixdim"][1:4], float))
    if not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise DataError(
            f"{path}: a spacing of {', '.join(f'{s:g}' for s in spacing)} mm along x, y, z. "
            "Write the true voxel size into the header."
        )
    return _guarded(path, lambda: _transforms(image, spacing))


def _transforms(image: nib.Nifti1Pair, spacing: Float64[np.ndarray, "3"]) -> tuple[str, ...]:
    header: Any = image.header
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        return ("its header gives no orientation: left and right may be swapped",)
    notes = []
    sides = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
    if not np.allclose(sides, spacing, rtol=0.01):
        said, used = (", ".join(f"{s:.4g}" for s in row) for row in (spacing, sides))
        notes.append(f"its header gives the spacing {said} and, by its sform, {used}; {used} used")
    if sform is not None and qform is not None:
        far = np.append(np.asarray(image.shape[:3]) - 1, 1)
        apart = max(
            float(np.linalg.norm((sform - qform)[:3, 3])),
            float(np.linalg.norm(((sform - qform) @ far)[:3])),
        )
        if apart > 0.5 * spacing.min():
            notes.append(f"sform and qform differ by up to {apart:.3g} mm; the sform is used")
    return tuple(notes)


def _read_itk(path: Path) -> Read:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
        size = " x ".join(map(str, reader.GetSize()))
        if components != 1:
            raise DataError(
                f"{path}: {components} numbers per voxel (colour or vectors); expected one."
            )
        if dimension != 3:
            raise DataError(f"{path}: {size} voxels, {dimension} axes; a volume has three.")
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path}: damaged or cut off ({_brief(error)}).") from None
    # ITK puts the physical space in LPS.
    flip = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = flip @ direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = flip @ np.asarray(image.GetOrigin())
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return rescaled(array, 1.0, 0.0), affine, ()


class _Silence:
    """Keep a library's logger quiet; what it has to say is checked here."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.before, self.logger.disabled = self.logger.disabled, True

    def __exit__(self, *_: object) -> None:
        self.logger.disabled = self.before


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


READERS: dict[str, Callable[[Path], Read]] = {
    ".nii.gz": _read_nibabel,
    ".nii": _read_nibabel,
    ".hdr": _read_nibabel,
    ".img": _read_nibabel,
    ".mgz": _read_nibabel,
    ".mgh": _read_nibabel,
    ".mnc": _read_nibabel,
    ".head": _read_nibabel,
    ".brik": _read_nibabel,
    ".nrrd": _read_itk,
    ".nhdr": _read_itk,
    ".mha": _read_itk,
    ".mhd": _read_itk,
}
"""Ending of a file name to its reader."""

UNREAD: dict[str, str] = {
    ".png": "a picture, not a volume",
    ".jpg": "a picture, not a volume",
    ".jpeg": "a picture, not a volume",
    ".tif": "a TIFF, which does not say where its voxels are; convert it to NIfTI",
    ".tiff": "a TIFF, which does not say where its voxels are; convert it to NIfTI",
    ".npy": "a bare array, which does not say where its voxels are; convert it to NIfTI",
    ".vtk": "a VTK file; convert it to NIfTI",
    ".mif": "an MRtrix file; convert it to NIfTI with mrconvert",
    ".zip": "an archive; unpack it and name the folder",
    ".tar": "an archive; unpack it and name the folder",
    ".tgz": "an archive; unpack it and name the folder",
    ".tar.gz": "an archive; unpack it and name the folder",
    ".7z": "an archive; unpack it and name the folder",
    ".rar": "an archive; unpack it and name the folder",
}
"""Ending of a file name to why such a file is not read."""
