"""The frame of the torso, which everything else hangs on: spine, wall, cavity, diaphragm.

All tables are in body coordinates (mm), with z = 0 at the upper end of the sacrum and z = 460 at
the upper end of the first thoracic vertebra of a torso of average size.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Float32, Float64
from scipy.interpolate import PchipInterpolator

from voco.data.phantom.patient import Patient
from voco.data.phantom.shapes import (
    Below,
    Column,
    Grown,
    Intersection,
    Number,
    Outside,
    Point,
    Shape,
)

VERTEBRA_HEIGHTS_MM = (
    *(36.5, 36.5, 36.5, 35.5, 35.0),  # L5 to L1
    *(28.5, 27.0, 26.0, 25.0, 24.5, 23.5, 23.0, 22.0, 21.5, 20.5, 20.0, 19.5),  # T12 to T1
    *(18.0, 17.0, 17.0, 17.0),  # C7 to C4
)
"""Each with the disc below it, from L5 upwards."""

_SPINE = (
    *((-140, -72), (-120, -84), (-90, -92), (-60, -86), (-25, -66), (0, -50), (40, -38)),
    *((80, -33), (120, -35), (160, -42), (200, -51), (240, -60), (290, -69), (335, -73)),
    *((380, -69), (420, -60), (460, -47), (500, -38), (560, -32)),
)
"""Height, and y of the middle of the vertebral bodies."""

_TRUNK = (
    *((-220, 168, 58, -112), (-150, 170, 60, -126), (-100, 167, 68, -131), (-50, 158, 74, -126)),
    *((0, 150, 77, -110), (50, 139, 76, -101), (100, 131, 75, -101), (150, 135, 77, -107)),
    *((200, 141, 83, -114), (250, 147, 90, -120), (300, 151, 92, -124), (350, 154, 84, -127)),
    *((390, 160, 68, -127), (420, 174, 54, -124), (445, 184, 40, -116), (468, 166, 28, -108)),
    *((492, 108, 18, -98), (520, 66, 14, -90), (560, 62, 14, -86)),
)
"""Height, half width, front, back of the muscles' outer surface."""

_CAVITY = (
    *((-150, 22, 4, -56), (-125, 38, 34, -72), (-95, 50, 54, -84), (-60, 57, 64, -88)),
    *((-30, 68, 68, -85), (0, 86, 69, -80), (30, 104, 69, -77), (60, 113, 68, -76)),
    *((100, 115, 66, -77), (150, 119, 69, -86), (200, 126, 74, -95), (250, 131, 80, -101)),
    *((300, 131, 80, -105), (340, 126, 72, -107), (375, 115, 58, -106), (405, 99, 38, -103)),
    *((430, 78, 14, -97), (450, 54, -10, -88), (464, 26, -30, -74)),
)
"""Height, half width, front, back of the inner surface of ribs and abdominal wall."""

_FAT = ((-150, 1.7), (-60, 1.7), (20, 1.5), (100, 1.15), (200, 0.8), (300, 0.6), (450, 0.7))
"""Height, and thickness of the fat under the skin relative to ``Patient.fat_mm``."""


@dataclass(frozen=True)
class Frame:
    """The frame of one patient."""

    patient: Patient

    @cached_property
    def trunk(self) -> Column:
        """Outer surface of the muscles."""
        return Column(self._with_belly(_TRUNK), exponent=2.35, closed=False)

    @cached_property
    def cavity(self) -> Column:
        """Inner surface of the ribs, the wall of the belly, and the pelvis."""
        return Column(self._with_belly(_CAVITY), exponent=2.3)

    @cached_property
    def below_diaphragm(self) -> Below:
        """Everything below the middle of the diaphragm, with its two domes."""
        step = 0.5
        x, y = np.meshgrid(np.arange(-150, 151, step), np.arange(-125, 126, step), indexing="ij")
        return Below((-150.0, -125.0), step, self._diaphragm_heights(x, y))

    @cached_property
    def abdomen(self) -> Shape:
        """Where the organs of belly and pelvis have room."""
        return Intersection((Grown(self.cavity, -2.0), Grown(self.below_diaphragm, -3.0)))

    @cached_property
    def chest(self) -> Shape:
        """Where lungs and heart have room."""
        above = Grown(Outside(self.below_diaphragm), -1.5)
        return Intersection((Grown(self.cavity, -0.5), above))

    def spine_y(self, z: Number) -> float:
        """The y of the middle of the vertebral bodies at a height."""
        return float(np.interp(z, *_spine_curve()))

    def before_spine(self, x: Number, z: Number, forwards_mm: Number = 0.0) -> Point:
        """A point in front of the vertebral bodies."""
        half_depth = float(np.interp(z, (0, 180, 460), (17.5, 16, 10)))
        return (x, self.spine_y(z) + half_depth + forwards_mm, z)

    def fat_mm(
        self, y: Float32[np.ndarray, "*s"], z: Float32[np.ndarray, "*s"]
    ) -> Float32[np.ndarray, "*s"]:
        """Thickness of the fat under the skin."""
        heights, shares = zip(*_FAT, strict=True)
        share = np.interp(z, heights, shares)
        belly = 1 / (1 + np.exp((z - 180) / 25))  # more in front at the belly, behind at the chest
        forwards = 1 + (0.4 * belly - 0.15) * np.tanh(y / 50)
        return (self.patient.fat_mm * share * forwards + 2).astype(np.float32)

    def _with_belly(
        self, profile: tuple[tuple[Number, Number, Number, Number], ...]
    ) -> tuple[tuple[float, float, float, float], ...]:
        rows = []
        for z, half, front, back in profile:
            bulge = self.patient.belly_mm * float(np.exp(-(((z - 85) / 95) ** 2)))
            rows.append((float(z), half + 0.4 * bulge, front + bulge, float(back)))
        return tuple(rows)

    def _diaphragm_heights(
        self, x: Float64[np.ndarray, "_ _"], y: Float64[np.ndarray, "_ _"]
    ) -> Float32[np.ndarray, "_ _"]:
        half, front, back = 130.0, 80.0, -102.0
        centre, depth = (front + back) / 2, (front - back) / 2
        across, along = x / half, (y - centre) / depth
        radius = np.minimum(np.sqrt(across**2 + along**2), 1.15)
        rim = 196 + 26 * along + 20 * along**2 - 6 * across**2
        dome = 264 + 28 * np.exp(-(((x - 62) / 48) ** 2)) + 17 * np.exp(-(((x + 70) / 46) ** 2))
        dome = dome + self.patient.breath_mm
        return (rim + (dome - rim) * (1 - radius**3.2)).astype(np.float32)


@cache
def _spine_curve() -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    heights, places = np.asarray(_SPINE, float).T
    fine = np.arange(heights[0], heights[-1] + 1.0)
    return fine, PchipInterpolator(heights, places)(fine)
