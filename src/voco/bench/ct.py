"""A CT to measure on, in the size of a real one, made in seconds.

A generated torso of 5 mm is interpolated to the voxels of a scan and gets the noise of one, so
that it is neither too easy to compress nor too smooth.
"""

from functools import cache
from pathlib import Path

import numpy as np

from voco.data.imageio import write_image
from voco.data.phantom import Torso, torso
from voco.data.resampling import resized
from voco.geometry import Grid
from voco.shapes import Shape3
from voco.volume import Volume

_TORSO_MM = 5.0
_NOISE_HU = 12.0
_AIR_HU = -1024


def ct(shape: Shape3, length_mm: float) -> Volume:
    """An int16 CT in HU, stored like most: axes towards Left, Posterior, Superior.

    Args:
        shape: Voxels.
        length_mm: How much of the body it shows, from below; a torso has 600 mm.
    """
    body = _torso(length_mm).image
    voxels = resized(body.array, shape, np.int16)[0]
    noise = np.random.default_rng(0).standard_normal((*shape[:2], 8), dtype=np.float32)
    grains = np.rint(noise * _NOISE_HU).astype(np.int16)
    for z in range(shape[2]):  # another shift of one of a few patterns for every slice
        voxels[:, :, z] += np.roll(grains[:, :, z % 8], 37 * z, axis=0)
    np.maximum(voxels, _AIR_HU, out=voxels)  # as scanners do
    return Volume(np.asfortranarray(voxels)[None], in_lps(body.grid.reshaped(shape)))


def organs(length_mm: float) -> Volume:
    """The organ numbers of a torso at 5 mm: uint8."""
    return _torso(length_mm).label


def in_lps(grid: Grid) -> Grid:
    """Where a grid's voxels lie once its first two axes are turned round."""
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = np.asarray(grid.shape[:2]) - 1
    return Grid(grid.shape, grid.affine @ turn)


def write_ct(file: Path, shape: Shape3, length_mm: float) -> None:
    """A CT as a file."""
    write_image(ct(shape, length_mm), file)


def _torso(length_mm: float) -> Torso:
    """The lower part of a torso."""
    whole = _whole_torso()
    slices = max(1, round(length_mm / _TORSO_MM))
    x, y, _ = whole.image.grid.shape
    grid = whole.image.grid.crop((0, 0, 0), (x, y, slices))
    image, label = (
        Volume(volume.array[..., :slices], grid) for volume in (whole.image, whole.label)
    )
    return Torso(image, label, whole.patient)


@cache
def _whole_torso() -> Torso:
    """Takes a second, and several subjects need it."""
    return torso(seed=0, spacing_mm=_TORSO_MM)
