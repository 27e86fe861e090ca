"""A random crop from a store, against loading the whole float32 volume and cutting."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from voco.bench.harness import Subject
from voco.data.arrays import read_array, write_array
from voco.shapes import Shape3

_SHAPE: Shape3 = (384, 384, 96)
_SIDE = 96


def subjects() -> list[Subject]:
    """A crop of 96 cubed of a generated body of 384 x 384 x 96 voxels, in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="voco-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [crop_subject(body(_SHAPE), folder, "read-crop")]


def crop_subject(volume: np.ndarray, folder: Path, name: str) -> Subject:
    """Both ways of reading one crop of a volume.

    Args:
        volume: int16 ``(x, y, z)``, of 96 voxels or more along each axis.
        folder: Where both files go.
        name: For the table.
    """
    np.save(folder / f"{name}.npy", volume.astype(np.float32))
    write_array(folder / f"{name}.b2nd", volume[None])
    plain_boxes, our_boxes = _boxes(volume.shape), _boxes(volume.shape)

    def plain() -> np.ndarray:
        (x0, y0, z0), (x1, y1, z1) = next(plain_boxes)
        return np.load(folder / f"{name}.npy")[x0:x1, y0:y1, z0:z1].copy()

    def ours() -> np.ndarray:
        return read_array(folder / f"{name}.b2nd", next(our_boxes))[0]

    bytes_per_voxel = (folder / f"{name}.b2nd").stat().st_size / volume.size
    shape = " x ".join(map(str, volume.shape))
    return Subject(
        name=name,
        what=f"random crop of {_SIDE} cubed from {shape}; {bytes_per_voxel:.2f} bytes per voxel "
        "against 4",
        plain=plain,
        ours=ours,
        equal=lambda a, b: "same voxels" if np.array_equal(a, b) else "other voxels",
    )


def _boxes(shape: tuple[int, ...]) -> Iterator[tuple[Shape3, Shape3]]:
    """The same random places for whoever asks."""
    random = np.random.default_rng(0)
    while True:
        x, y, z = (int(random.integers(0, side - _SIDE + 1)) for side in shape)
        yield (x, y, z), (x + _SIDE, y + _SIDE, z + _SIDE)


def body(shape: Shape3) -> np.ndarray:
    """A noisy ellipse in air, with the texture and noise of a CT, int16 HU."""
    random = np.random.default_rng(0)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    coarse = random.normal(0, 1, tuple(side // 8 for side in shape))
    factors = tuple(side / short for side, short in zip(shape, coarse.shape, strict=True))
    texture = np.asarray(ndimage.zoom(coarse, factors, order=1)) * 60
    grain = random.normal(0, 1, shape).astype(np.float32)
    noise = np.asarray(ndimage.gaussian_filter(grain, 0.7)) * 40
    inside = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    return np.where(inside, 40 + texture + noise, -1000 + noise * 0.3).astype(np.int16)
