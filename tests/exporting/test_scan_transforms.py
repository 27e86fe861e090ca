"""The bundle's own transforms do what voco does, though they share no code with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from voco.data.intensity import (
    ModalityIntensity,
    PercentileIntensity,
    WindowIntensity,
    ZScoreIntensity,
    apply,
)
from voco.data.patches import scaling
from voco.data.preprocess import prepare_volume, restore_labels
from voco.data.store import Preprocessing
from voco.exporting.scan_transforms import PrepareScand, RestoreMaskd
from voco.geometry import Grid
from voco.volume import Volume

WAYS = [
    WindowIntensity(low=-100, high=100),
    PercentileIntensity(),
    ZScoreIntensity(limit=3),
    ModalityIntensity(),
]


def scan(seed: int, kind: str) -> Volume:
    """A bright ball in noise, axes in any order and direction, voxels of any shape."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(5, 30, 3))
    places = np.moveaxis(np.indices(shape), 0, -1)
    middle, radius = np.asarray(shape) / 2, min(shape) / 3
    array = rng.normal(-800, 20, shape)
    array[np.linalg.norm(places - middle, axis=-1) < radius] += 900
    if kind == "CT":
        array = np.round(array).clip(-1024)
    elif kind == "fractions":
        array = array / 777
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], (3, 1)) * rng.uniform(0.5, 3, 3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, rng.normal(0, 50, 3)
    return Volume(array[None].astype(np.float32), Grid(shape, affine))


def both(seed: int, kind: str, intensity, *, foreground: bool, window=(8, 8, 8)):
    volume = scan(seed, kind)
    modality = "CT" if kind == "CT" else "MR"
    spacing = tuple(np.random.default_rng(seed).uniform(0.4, 4, 3).round(2).tolist())
    ready = prepare_volume(
        volume, Preprocessing(spacing_mm=spacing, foreground=foreground), modality=modality
    )
    gain, bias = scaling(ready, intensity)
    stored = torch.from_numpy(np.ascontiguousarray(ready.image))
    ours = apply(stored[None], gain[None], bias[None], *intensity.bounds)[0]
    transform = PrepareScand(
        "image", spacing, foreground, intensity.model_dump(mode="json"), modality, window
    )
    read = MetaTensor(torch.from_numpy(volume.array), affine=torch.from_numpy(volume.grid.affine))
    theirs = transform({"image": read})["image"]
    low = theirs.meta["voco"]["before"]
    inside = theirs.as_tensor()[
        (slice(None), *(slice(a, a + s) for a, s in zip(low, ours.shape[1:], strict=True)))
    ]
    return ready, ours, inside, theirs


@pytest.mark.parametrize("intensity", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("kind", ["CT", "fractions"])
@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), foreground=st.booleans())
def test_scans_are_prepared_as_voco_does(intensity, kind, seed, foreground):
    ready, ours, inside, theirs = both(seed, kind, intensity, foreground=foreground)
    unit = float(scaling(ready, intensity)[0].max())
    assert inside.shape == ours.shape
    # A value halfway between two stored units may be rounded to either of them.
    off = (inside - ours).abs()
    assert off.mean() < 2e-4
    assert off.max() < 1.1 * unit + 1e-3
    assert min(theirs.shape[1:]) >= 8


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), foreground=st.booleans())
def test_masks_come_back_as_voco_brings_them(seed, foreground):
    ready, _, inside, theirs = both(seed, "CT", WAYS[0], foreground=foreground)
    rng = torch.Generator().manual_seed(seed)
    padded = torch.rand((3, *theirs.shape[1:]), generator=rng)
    low = theirs.meta["voco"]["before"]
    logits = padded[
        (slice(None), *(slice(a, a + s) for a, s in zip(low, inside.shape[1:], strict=True)))
    ]
    ours = np.array([0, 3, 300])[restore_labels(logits, ready.grid, ready.source_grid)]
    restored = RestoreMaskd("pred", "image", [0, 3, 300])({"pred": padded, "image": theirs})
    mask = restored["pred"]
    assert mask.shape[1:] == ours.shape == ready.source_grid.shape
    assert np.allclose(np.asarray(mask.affine), ready.source_grid.affine)
    assert (np.asarray(mask[0]) == ours).mean() > 0.999
