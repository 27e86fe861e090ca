"""Scans that are folders of pictures, one for each slice: read into one volume.

Pictures say neither how large a voxel is nor which way the body lies. Voxels are taken as 1 mm,
rows as running from front to back, columns from the body's right to its left (as radiologists
look at axial slices) and slices from the feet up; a warning says so.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Shaped

from voco.data.scan import Scan, checked_volume
from voco.errors import DataError

ASSUMED = "pictures: no spacing and no orientation in the files; taken as 1 mm, axial, feet first"
"""What a reader of the quality report should know."""

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_pictures(files: Sequence[Path]) -> Scan:
    """Read the slices of one scan, in their order.

    Raises:
        DataError: If a picture is damaged or coloured, or the pictures differ in size.
    """
    slices = [_read(file) for file in files]
    for file, each in zip(files, slices, strict=True):
        if each.shape != slices[0].shape:
            raise DataError(
                f"{file}: {each.shape[1]} x {each.shape[0]} pixels, but {files[0].name} has "
                f"{slices[0].shape[1]} x {slices[0].shape[0]}; slices of one scan are alike."
            )
    # Pictures have rows first.
    array = np.stack(slices).transpose(2, 1, 0)[None]
    volume, notes = checked_volume(np.ascontiguousarray(array), _LPS, str(files[0].parent))
    return Scan(volume, warnings=(*notes, ASSUMED))


def _read(file: Path) -> Shaped[np.ndarray, "y x"]:
    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:160]
        raise DataError(f"{file}: damaged or no picture ({reason}).") from None
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # grey, written as red, green and blue
    if pixels.ndim != 2:
        raise DataError(f"{file}: a colour picture; expected grey.")
    return pixels
