"""Labelled volumes that a small network learns to segment within seconds."""

from pathlib import Path

import numpy as np

from voco.data.preprocess import prepare_volume
from voco.data.store import Case, Preprocessing, Store
from voco.geometry import Grid
from voco.recipes import FinetuneConfig
from voco.volume import Volume

VALUES = {0: "background", 205: "dark", 420: "bright"}
"""Label values and their names; the numbers are far apart on purpose."""


def blob(number, shape=(24, 24, 24), channels=1, spacing_mm=(1.0, 1.0, 1.0)):
    """Noise with two balls, darker and brighter than it: image and label on a RAS grid."""
    rng = np.random.default_rng(number)
    image = rng.normal(0, 10, (channels, *shape))
    label = np.zeros(shape, np.int16)
    places_mm = np.moveaxis(np.indices(shape), 0, -1) * spacing_mm
    size_mm = np.asarray(shape) * spacing_mm
    for sign, value in ((-1, 205), (1, 420)):
        middle = rng.uniform(6, size_mm - 7)
        middle[0] = rng.uniform(5, size_mm[0] / 2 - 3) + (size_mm[0] / 2 if sign > 0 else 0)
        inside = np.linalg.norm(places_mm - middle, axis=-1) < rng.uniform(3.5, 5)
        label[inside] = value
        image[:, inside] += sign * 100
    return np.round(image).astype(np.int16), label


def raised(image):
    """The image with a bright upper third: another class of scan."""
    third = image.shape[-1] // 3
    return np.concatenate([image[..., : 2 * third], image[..., 2 * third :] + 40], axis=-1)


def blob_store(path: Path, count=8, *, first=0, channels=1, shape=(24, 24, 24)) -> Path:
    """A store of blobs with a class per case: every other one is raised."""
    store = Store.create(path, Preprocessing(spacing_mm=(1, 1, 1)))
    for number in range(first, first + count):
        image, label = blob(number, shape, channels)
        image = raised(image) if number % 2 else image
        grid = Grid(shape, np.diag([1.0, 1, 1, 1]))
        ready = prepare_volume(
            Volume(image, grid),
            store.preprocessing,
            modality="MR",
            label=Volume(label[None], grid),
        )
        case = Case(
            id=f"blob{number}",
            source=f"blob{number}",
            source_sha256=str(number),
            shape=shape,
            spacing_mm=(1, 1, 1),
            affine=grid.affine.tolist(),
            source_shape=shape,
            source_affine=grid.affine.tolist(),
            source_orientation="RAS",
            modality="MR",
            channels=tuple(f"channel{c}" for c in range(channels)),
            scale=ready.scale,
            offset=ready.offset,
            statistics=ready.statistics,
            classes=VALUES,
            class_voxels=ready.class_voxels,
            target=("plain", "raised")[number % 2],
        )
        store.add([store.write(case, ready.image, ready.label)])
    return path


NETWORK = {"name": "resenc_unet", "features": [8, 16], "blocks": [1, 1]}
TASK = {"name": "segmentation", "roi": [16, 16, 16], "crops_per_volume": 2}
FAST = {
    "task": TASK,
    "backbone": NETWORK,
    "intensity": {"name": "window", "low": -200, "high": 200},
    "optimizer": {"lr": 0.01},
    "steps": 40,
    "batch_size": 2,
    "validation": 2,
    "workers": 0,
}


def recipe(**changes) -> FinetuneConfig:
    """A recipe that takes seconds."""
    return FinetuneConfig.model_validate({**FAST, **changes})
