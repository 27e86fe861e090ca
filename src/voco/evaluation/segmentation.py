"""All metrics of one segmented case."""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer
from scipy.ndimage import find_objects

from voco.evaluation.overlap import Labels, Slices, count_voxels
from voco.evaluation.surface import hd95, nsd
from voco.evaluation.tables import Score
from voco.shapes import Spacing

Metric = Literal["dice", "hd95", "nsd"]
"""Dice, HD95 (mm), normalised surface Dice."""

METRICS: tuple[Metric, ...] = ("dice", "hd95", "nsd")
"""All of them, in the order of the tables."""

UNITS: dict[Metric, str] = {"dice": "", "hd95": "mm", "nsd": ""}


def measure(
    case: str,
    prediction: Labels,
    reference: Labels,
    spacing_mm: Spacing,
    classes: Mapping[int, str],
    *,
    tolerance_mm: float = 2.0,
    metrics: tuple[Metric, ...] = METRICS,
) -> list[Score]:
    """Every metric of every class of one case.

    Args:
        case: Name of the case.
        prediction: Predicted class numbers.
        reference: True class numbers, on the same grid.
        spacing_mm: Of the voxels.
        classes: Class numbers and the names of their structures, without background.
        tolerance_mm: Distance within which two surfaces agree (NSD).
        metrics: Which.

    Returns:
        A class in neither map is ``nan``; one that is in one map only has Dice 0, NSD 0 and an
        HD95 of ``inf``.
    """
    ours, theirs = _whole_numbers(prediction), _whole_numbers(reference)
    counts = count_voxels(ours, theirs)
    boxes = _boxes(ours, theirs) if {"hd95", "nsd"} & set(metrics) else {}
    scores = []
    for number, structure in classes.items():
        values: dict[Metric, float] = {"dice": counts.dice(number)}
        masks = _masks(ours, theirs, number, boxes.get(number))
        if "hd95" in metrics:
            values["hd95"] = hd95(*masks, spacing_mm)
        if "nsd" in metrics:
            values["nsd"] = nsd(*masks, spacing_mm, tolerance_mm)
        scores += [Score(case, structure, name, values[name], UNITS[name]) for name in metrics]
    return scores


def measure_regions(
    case: str,
    prediction: Labels,
    reference: Labels,
    spacing_mm: Spacing,
    regions: Mapping[str, tuple[int, ...]],
    *,
    tolerance_mm: float = 2.0,
) -> list[Score]:
    """Every metric of unions of classes, such as the tumour core of BraTS.

    Args:
        case: Name of the case.
        prediction: Predicted class numbers.
        reference: True class numbers, on the same grid.
        spacing_mm: Of the voxels.
        regions: Names and the class numbers of which each consists; they may share some.
        tolerance_mm: Distance within which two surfaces agree (NSD).
    """
    return [
        score
        for name, values in regions.items()
        for score in measure(
            case,
            np.isin(prediction, values),
            np.isin(reference, values),
            spacing_mm,
            {1: name},
            tolerance_mm=tolerance_mm,
        )
    ]


def _whole_numbers(labels: Labels) -> Integer[np.ndarray, "x y z"]:
    return labels.view(np.uint8) if labels.dtype == bool else labels


def _boxes(ours: Labels, theirs: Labels) -> dict[int, Slices]:
    """For each class number, the box that holds it in both maps."""
    found: dict[int, Slices] = {}
    for labels in (ours, theirs):
        for number, box in _found(labels):
            found[number] = _union(found[number], box) if number in found else box
    return found


def _found(labels: Labels) -> Iterator[tuple[int, Slices]]:
    for number, box in enumerate(find_objects(labels), start=1):
        if box is not None:
            yield number, box


def _union(first: Slices, second: Slices) -> Slices:
    x, y, z = (
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )
    return (x, y, z)


def _masks(
    ours: Labels, theirs: Labels, number: int, box: Slices | None
) -> tuple[Bool[np.ndarray, "_ _ _"], Bool[np.ndarray, "_ _ _"]]:
    if box is None:
        empty = np.zeros((1, 1, 1), bool)
        return empty, empty
    return ours[box] == number, theirs[box] == number
