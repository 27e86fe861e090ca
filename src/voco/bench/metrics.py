"""Dice, HD95 and NSD of 13 organs of a whole label map, against MONAI's functions per organ."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Integer

from voco.bench.ct import organs
from voco.bench.harness import Subject
from voco.data.phantom import CLASSES
from voco.data.resampling import resized_labels
from voco.evaluation.segmentation import measure
from voco.shapes import Spacing

ORGANS = {number: name for number, name in CLASSES.items() if 1 <= number <= 13}
TOLERANCE_MM = 2.0

LabelMap = Integer[np.ndarray, "x y z"]


def subjects(length_mm: float = 600.0, spacing_mm: float = 1.5) -> list[Subject]:
    """13 organs of a torso; what is compared is the same torso a little moved.

    Args:
        length_mm: How much of the torso.
        spacing_mm: Side of a voxel.
    """
    label = organs(length_mm)
    sides: Spacing = (spacing_mm, spacing_mm, spacing_mm)
    reference = resized_labels(label.array[0], label.grid.resampled(sides).shape)
    prediction = np.roll(reference, (1, -2, 1), axis=(0, 1, 2))
    size = "x".join(map(str, reference.shape))
    return [
        Subject(
            name="metrics",
            what=f"Dice, HD95 and NSD of 13 organs, {size} voxels at {spacing_mm} mm",
            plain=lambda: plain(prediction, reference, sides),
            ours=lambda: ours(prediction, reference, sides),
            equal=difference,
            most=2,
        )
    ]


def plain(prediction: LabelMap, reference: LabelMap, spacing_mm: Spacing) -> list[float]:
    """An organ at a time, its masks as MONAI wants them."""
    from monai.metrics.hausdorff_distance import (  # noqa: PLC0415 (takes seconds)
        compute_hausdorff_distance,
    )
    from monai.metrics.meandice import compute_dice  # noqa: PLC0415
    from monai.metrics.surface_dice import compute_surface_dice  # noqa: PLC0415

    values = []
    for number in ORGANS:
        said, true = (
            torch.from_numpy(label == number)[None, None] for label in (prediction, reference)
        )
        settings: dict[str, Any] = {"include_background": True, "spacing": spacing_mm}
        values += [
            float(compute_dice(said, true)),
            float(compute_hausdorff_distance(said, true, percentile=95, **settings)),
            float(compute_surface_dice(said, true, [TOLERANCE_MM], use_subvoxels=True, **settings)),
        ]
    return values


def ours(prediction: LabelMap, reference: LabelMap, spacing_mm: Spacing) -> list[float]:
    """What ``voco evaluate`` does with a case."""
    scores = measure("torso", prediction, reference, spacing_mm, ORGANS, tolerance_mm=TOLERANCE_MM)
    return [score.value for score in scores]


def difference(first: list[float], second: list[float]) -> str:
    """The largest one; an absent organ is nan in both."""
    largest = np.nanmax(np.abs(np.subtract(first, second)))
    return f"{len(first)} values, largest difference {largest:.0e}"
