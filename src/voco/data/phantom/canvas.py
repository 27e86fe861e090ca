"""The scan while it is painted: solids cover one another in the order in which they are painted.

Voxels know their place in the body through one smooth map (:mod:`voco.data.phantom.pose`), so all
organs bend together and never run into each other. Edges are as wide as a voxel: a voxel that a
surface cuts gets a share of both sides (partial volume).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy.ndimage import gaussian_filter

from voco.data.phantom.shapes import Bounds, Distances, Number, Points, Shape
from voco.shapes import Shape3

Box = tuple[slice, slice, slice]


class Patch(NamedTuple):
    """What a filling may depend on, for the voxels of a box."""

    at: Points
    """Body coordinates (mm)."""
    height_mm: Float32[np.ndarray, "_ y _"]
    """Height over the scanner's centre, against gravity; the patient lies on the back."""
    fine: Float32[np.ndarray, "x y z"]
    """Smooth noise of a few mm, mean 0, standard deviation 1."""
    coarse: Float32[np.ndarray, "x y z"]
    """Smooth noise of some 15 mm, mean 0, standard deviation 1."""


Filling = Number | Callable[[Patch], Float32[np.ndarray, "x y z"]]
"""HU of a tissue: one number, or a function of the place."""


def mottled(mean: Number, fine: Number = 0.0, coarse: Number = 0.0) -> Filling:
    """A tissue of a mean HU with texture of two sizes (standard deviations in HU)."""
    return lambda patch: (mean + fine * patch.fine + coarse * patch.coarse).astype(np.float32)


def layered(level_mm: Number, above: Number, below: Filling) -> Filling:
    """Gas (or lighter fluid) above a level, a fluid below it."""

    def fill(patch: Patch) -> Float32[np.ndarray, "x y z"]:
        fluid = below(patch) if callable(below) else np.full_like(patch.fine, below)
        return np.where(patch.height_mm > level_mm, np.float32(above), fluid)

    return fill


@dataclass(frozen=True)
class Pose:
    """Where the voxels of a scan lie in the body.

    Attributes:
        at: Body coordinates of every voxel centre (mm).
        height_mm: Height of every row over the scanner's centre (mm).
        matrix: 3x4, voxel indices to body coordinates, the smooth deformation left out.
        reach_mm: Largest deformation along any axis.
        spacing_mm: Mean voxel size in the body.
    """

    at: Points
    height_mm: Float32[np.ndarray, "1 _ 1"]
    matrix: Float[np.ndarray, "3 4"]
    reach_mm: float
    spacing_mm: float


class Canvas:
    """HU and label of every voxel, painted from back to front.

    Args:
        pose: Where the voxels lie in the body.
        rng: For the textures.
    """

    def __init__(self, pose: Pose, rng: np.random.Generator) -> None:
        self.pose = pose
        shape = pose.at.shape[1:]
        self.hu: Float32[np.ndarray, "x y z"] = np.full(shape, -1000, np.float32)
        self.label: UInt8[np.ndarray, "x y z"] = np.zeros(shape, np.uint8)
        self._fine = smooth_noise(shape, 3.0 / pose.spacing_mm, rng)
        self._coarse = smooth_noise(shape, 9.0 / pose.spacing_mm, rng)
        self._rooms: dict[int, tuple[Shape, Distances]] = {}
        self._inverse = np.linalg.inv(pose.matrix[:, :3])

    def paint(
        self,
        shape: Shape,
        filling: Filling,
        label: int | None = None,
        *,
        over: tuple[int, ...] | None = None,
        within: Shape | None = None,
        inset_mm: Number = 0.0,
    ) -> None:
        """Cover what is there with a solid.

        Args:
            shape: The solid.
            filling: Its HU.
            label: Class of the voxels of which it takes at least half; by default they keep theirs.
            over: Only voxels of these classes are covered; by default all.
            within: What sticks out of this solid is left out. Measured once per canvas.
            inset_mm: How far to stay from the surface of ``within``.
        """
        box = self._box(shape.bounds)
        if box is None:
            return
        share = self._share(shape, box)
        if within is not None:
            np.minimum(share, self._covered(self._room(within)[box] + inset_mm), out=share)
        if over is not None:
            share *= np.isin(self.label[box], over)
        hu = self.hu[box]
        value = filling(self._patch(box)) if callable(filling) else np.float32(filling)
        hu += share * (value - hu)
        if label is not None:
            self.label[box][share >= 0.5] = label

    def inside(self, shape: Shape) -> Bool[np.ndarray, "x y z"]:
        """Voxels of which a solid takes at least half."""
        inside = np.zeros(self.label.shape, bool)
        box = self._box(shape.bounds)
        if box is not None:
            inside[box] = self._share(shape, box) >= 0.5
        return inside

    def _share(self, shape: Shape, box: Box) -> Float32[np.ndarray, "x y z"]:
        distance: Distances = np.full(self.hu[box].shape, 1e4, np.float32)
        for part in shape.parts():
            cut = self._box(part.bounds)
            if cut is None:
                continue
            local = tuple(
                slice(max(c.start - b.start, 0), max(c.stop - b.start, 0))
                for c, b in zip(cut, box, strict=True)
            )
            patch = part.distance(self.pose.at[(slice(None), *cut)])
            distance[local] = np.minimum(distance[local], patch)
        return self._covered(distance)

    def _covered(self, distance: Distances) -> Float32[np.ndarray, "x y z"]:
        """Share of each voxel that lies inside a surface at some distance from its centre."""
        return np.clip(0.5 - distance / np.float32(self.pose.spacing_mm), 0, 1)

    def _room(self, shape: Shape) -> Distances:
        if id(shape) not in self._rooms:  # the shape is kept, so that its id stays its own
            self._rooms[id(shape)] = (shape, shape.distance(self.pose.at))
        return self._rooms[id(shape)][1]

    def _patch(self, box: Box) -> Patch:
        at = self.pose.at[(slice(None), *box)]
        rows = self.pose.height_mm[:, box[1]]
        return Patch(at, rows, self._fine[box], self._coarse[box])

    def _box(self, bounds: Bounds) -> Box | None:
        """Voxels that may lie within bounds: the corners taken back to indices, with a margin."""
        margin = self.pose.reach_mm + self.pose.spacing_mm
        low, high = bounds[0] - margin, bounds[1] + margin
        centre, half = (low + high) / 2, (high - low) / 2
        middle = self._inverse @ (centre - self.pose.matrix[:, 3])
        reach = np.abs(self._inverse) @ half
        size = np.asarray(self.label.shape)
        start = np.clip(np.floor(middle - reach), 0, size).astype(int)
        stop = np.clip(np.ceil(middle + reach) + 1, 0, size).astype(int)
        if (high < low).any() or (stop <= start).any():
            return None
        return (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))


def smooth_noise(
    shape: Shape3, sigma_voxels: float, rng: np.random.Generator
) -> Float32[np.ndarray, "x y z"]:
    """Gaussian noise of mean 0 and standard deviation 1, smooth over some voxels."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if sigma_voxels > 0.3:
        noise = gaussian_filter(noise, sigma_voxels, mode="wrap", truncate=2.5)
    noise -= noise.mean()
    noise /= noise.std()
    return noise
