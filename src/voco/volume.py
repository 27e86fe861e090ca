"""A scan in memory: an array and the grid it lies on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from voco.geometry import Grid


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    Attributes:
        array: ``(c, x, y, z)``; intensities in source units (HU for CT), or class numbers.
        grid: Where the voxels are; its shape is the array's spatial shape.
    """

    array: Shaped[np.ndarray, "c x y z"]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape[1:] != self.grid.shape:
            raise ValueError(f"array {self.array.shape[1:]} and grid {self.grid.shape} differ.")
