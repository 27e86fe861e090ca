"""How far the surfaces of two masks lie apart, in millimetres.

Two conventions, one per metric:

* **HD95** works on *surface voxels*: voxels of the mask with at least one of six neighbours
  outside it (the edge of the image counts as outside). Every surface voxel of one mask has a
  distance to the nearest surface voxel of the other. The 95th percentile (linear interpolation)
  is taken in each direction, and the larger of the two is the result. That is MONAI's definition;
  tools that pool both directions, or weigh voxels by the area they stand for, differ.
* **NSD** (normalised surface Dice, Nikolov et al. 2018, arXiv:1809.04430) works on *surface
  elements* between the voxels, weighted by their area: the share of both surfaces that lies
  within a tolerance of the other one. Equal to MONAI's ``compute_surface_dice`` with sub-voxels,
  whose table of areas is used.

Distances come from a tree of points, not from a distance map: a stray voxel far from everything
then costs no more than any other.
"""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy.spatial import KDTree

from voco.evaluation.overlap import Slices
from voco.shapes import Spacing

Mask = Bool[np.ndarray, "_ _ _"]
"""True inside the structure."""

Points = Int64[np.ndarray, "_ 3"]
"""Voxel indices."""


def hd95(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> float:
    """95th percentile Hausdorff distance in mm.

    ``nan`` if both masks are empty, ``inf`` if one is.
    """
    return hausdorff(prediction, reference, spacing_mm, percentile=95.0)


def hausdorff(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, percentile: float = 100.0
) -> float:
    """Hausdorff distance in mm, or a percentile of it in each direction, the larger one.

    Args:
        prediction: Predicted mask.
        reference: True mask, on the same grid.
        spacing_mm: Of the voxels.
        percentile: From 0 to 100; 100 is the largest distance.

    Returns:
        ``nan`` if both masks are empty, ``inf`` if one is.
    """
    if not prediction.any() or not reference.any():
        return float("nan") if prediction.any() == reference.any() else float("inf")
    box = common_box(prediction, reference)
    ours = _surface_voxels(prediction[box])
    theirs = _surface_voxels(reference[box])
    there = _nearest_mm(ours, theirs, spacing_mm)
    back = _nearest_mm(theirs, ours, spacing_mm)
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def nsd(prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other, from 0 to 1.

    Args:
        prediction: Predicted mask.
        reference: True mask, on the same grid.
        spacing_mm: Of the voxels.
        tolerance_mm: Distance that still counts as agreement.

    Returns:
        ``nan`` if both masks are empty, 0 if one is.
    """
    if not prediction.any() or not reference.any():
        return float("nan") if prediction.any() == reference.any() else 0.0
    box = common_box(prediction, reference)
    ours, our_areas = _surface_elements(prediction[box], spacing_mm)
    theirs, their_areas = _surface_elements(reference[box], spacing_mm)
    limit = tolerance_mm * (1 + 1e-6)  # equality must survive rounding
    near = our_areas[_nearest_mm(ours, theirs, spacing_mm, limit) <= limit].sum()
    near += their_areas[_nearest_mm(theirs, ours, spacing_mm, limit) <= limit].sum()
    return float(near / (our_areas.sum() + their_areas.sum()))


def common_box(prediction: Mask, reference: Mask) -> Slices:
    """The smallest box that holds both masks, at least one of which is not empty."""
    low, high = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(prediction.any(axis=others) | reference.any(axis=others))
        low.append(int(inside[0]))
        high.append(int(inside[-1]) + 1)
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def _surface_voxels(mask: Mask) -> Points:
    padded = np.pad(mask, 1)
    inside = (
        padded[:-2, 1:-1, 1:-1]
        & padded[2:, 1:-1, 1:-1]
        & padded[1:-1, :-2, 1:-1]
        & padded[1:-1, 2:, 1:-1]
        & padded[1:-1, 1:-1, :-2]
        & padded[1:-1, 1:-1, 2:]
    )
    return np.argwhere(mask & ~inside)


def _surface_elements(mask: Mask, spacing_mm: Spacing) -> tuple[Points, Float64[np.ndarray, "n"]]:
    """Where eight neighbouring voxels are neither all inside nor all outside, and the area there.

    Places are those of the corner that the eight share, up to half a voxel common to all masks.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    areas, weights = areas_mm2(spacing_mm)
    x, y, z = (side - 1 for side in padded.shape)
    codes = np.zeros((x, y, z), np.uint8)
    for (i, j, k), weight in np.ndenumerate(weights):
        codes += padded[i : i + x, j : j + y, k : k + z] * weight
    places = np.argwhere((codes != 0) & (codes != 255))
    return places, areas[codes[tuple(places.T)]]


@cache
def areas_mm2(
    spacing_mm: Spacing,
) -> tuple[Float64[np.ndarray, "256"], UInt8[np.ndarray, "2 2 2"]]:
    """Area of the surface in each of 256 neighbourhoods, and the bit of each neighbour."""
    from monai.metrics.utils import (  # noqa: PLC0415 (takes seconds)
        create_table_neighbour_code_to_surface_area,
    )

    areas, weights = create_table_neighbour_code_to_surface_area(spacing_mm)
    return areas.double().numpy(), weights[0, 0].numpy().astype(np.uint8)


def _nearest_mm(
    points: Points, others: Points, spacing_mm: Spacing, limit_mm: float = np.inf
) -> Float64[np.ndarray, "n"]:
    """Distance of every point to the nearest of the others; ``inf`` beyond the limit."""
    tree = KDTree(others * np.asarray(spacing_mm), leafsize=32, balanced_tree=False)
    bound = limit_mm * 1.001 if np.isfinite(limit_mm) else np.inf  # the bound itself is excluded
    distance, _ = tree.query(points * np.asarray(spacing_mm), distance_upper_bound=max(bound, 1e-9))
    return np.asarray(distance, float)
