"""How a patient lies in the scanner: size, turn, field of view, and a smooth bend of everything."""

import numpy as np
from jaxtyping import Float32, Float64

from voco.data.phantom.canvas import Pose
from voco.data.phantom.patient import Patient
from voco.geometry import Grid
from voco.shapes import Shape3

_CONTROL_MM = 75.0
"""Distance between the control points of the bend."""
_BEND_MM = 6.0
"""Standard deviation of the control points' displacement."""


def pose(patient: Patient, spacing_mm: float, rng: np.random.Generator) -> tuple[Pose, Grid]:
    """Body coordinates of every voxel of a scan, and where the voxels are in the world.

    The scan is square in the axial plane, as scanners reconstruct it. Its grid is RAS+.
    """
    scale = np.asarray(patient.scale)
    length = (patient.top_mm - patient.bottom_mm) * scale[2]
    across = max(8, round(patient.view_mm / spacing_mm))
    shape = (across, across, max(8, round(length / spacing_mm)))
    matrix = np.zeros((3, 4))
    matrix[:, :3] = patient.turn / scale[:, None] * spacing_mm
    centre = np.asarray([*patient.centre_mm, (patient.top_mm + patient.bottom_mm) / 2])
    matrix[:, 3] = centre - matrix[:, :3] @ ((np.asarray(shape) - 1) / 2)
    bend = _bend(shape, spacing_mm, rng)
    at = np.stack([_linear(row, shape) for row in matrix]) + bend
    rows = patient.centre_mm[1] + (np.arange(shape[1]) - (shape[1] - 1) / 2) * spacing_mm
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [*((1 - np.asarray(shape[:2])) / 2 * spacing_mm), patient.table_mm]
    mean_mm = float(spacing_mm / scale.mean())
    height = rows.astype(np.float32)[None, :, None]
    reach = float(np.abs(bend).max())
    return Pose(at.astype(np.float32), height, matrix, reach, mean_mm), Grid(shape, affine)


def _linear(row: Float64[np.ndarray, "4"], shape: Shape3) -> Float32[np.ndarray, "x y z"]:
    x, y, z = (np.arange(n) * step for n, step in zip(shape, row, strict=False))
    return (x[:, None, None] + y[None, :, None] + z[None, None, :] + row[3]).astype(np.float32)


def _bend(
    shape: Shape3, spacing_mm: float, rng: np.random.Generator
) -> Float32[np.ndarray, "3 x y z"]:
    """A random displacement: uniform cubic B-splines over a coarse lattice of control points."""
    bases = [_spline_basis(n, _CONTROL_MM / spacing_mm) for n in shape]
    control = rng.normal(0, _BEND_MM, (3, *(basis.shape[1] for basis in bases)))
    field = control.astype(np.float32)
    steps = ("cijk,zk->cijz", "cijz,yj->ciyz", "ciyz,xi->cxyz")
    for subscripts, basis in zip(steps, bases[::-1], strict=True):
        # Without BLAS: the same bits whatever the number of threads.
        field = np.einsum(subscripts, field, basis, optimize=False)
    return field


def _spline_basis(count: int, step: float) -> Float32[np.ndarray, "n m"]:
    """Weight of each control point (``step`` voxels apart) at each of ``count`` voxels."""
    place = np.arange(count) / step + 1
    points = np.arange(int(np.ceil((count - 1) / step)) + 3)
    away = np.abs(place[:, None] - points[None, :])
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6
    weights = np.where(away < 1, near, np.where(away < 2, far, 0.0))
    return weights.astype(np.float32)
