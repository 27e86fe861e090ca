"""Who is scanned, and how: everything about a case that is not the shape of a single organ."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64

from voco.data.phantom.shapes import Point, turned

Phase = Literal["native", "arterial", "portal", "late"]
"""Time after the injection of contrast medium; native: none."""

Protocol = Literal["chest-abdomen-pelvis", "abdomen-pelvis", "chest-abdomen", "chest"]
"""Which part of the torso is scanned."""

PROTOCOLS: tuple[Protocol, ...] = (
    *("chest-abdomen-pelvis", "chest-abdomen-pelvis", "abdomen-pelvis", "chest-abdomen-pelvis"),
    *("chest-abdomen", "chest-abdomen-pelvis", "chest-abdomen-pelvis", "chest"),
)
"""Of one case after the other; then from the start. Taking turns, not drawn: so even a few cases
hold every organ."""

_PHASE_SHARES = (0.25, 0.15, 0.4, 0.2)

_ENDS_MM: dict[Protocol, tuple[tuple[float, float], tuple[float, float]]] = {
    "chest-abdomen-pelvis": ((-155, -135), (445, 470)),
    "abdomen-pelvis": ((-155, -135), (295, 330)),
    "chest-abdomen": ((10, 60), (445, 470)),
    "chest": ((175, 205), (445, 475)),
}
"""Lowest and highest slice: the range that each is drawn from (body coordinates)."""

_HU: dict[str, tuple[float, float, float, float, float]] = {
    # tissue: native, arterial, portal, late; standard deviation between patients
    "muscle": (55, 57, 61, 60, 4),
    "liver": (56, 64, 108, 92, 9),
    "spleen": (49, 125, 118, 94, 7),
    "kidney_cortex": (33, 170, 172, 138, 9),
    "kidney_medulla": (33, 65, 150, 142, 6),
    "kidney_pelvis": (4, 5, 12, 330, 8),
    "pancreas": (41, 98, 90, 74, 7),
    "artery": (43, 305, 158, 112, 12),
    "vein": (41, 62, 146, 112, 9),
    "portal_vein": (41, 95, 172, 116, 9),
    "left_heart": (43, 295, 152, 110, 12),
    "right_heart": (43, 210, 148, 110, 12),
    "heart_muscle": (47, 92, 104, 88, 6),
    "gut_wall": (40, 72, 78, 68, 7),
    "gland": (42, 62, 78, 74, 6),
    "urine": (4, 4, 9, 25, 5),
    "bile": (9, 9, 11, 12, 4),
}
"""Mean HU by phase, after the usual radiological references; textures and noise come on top."""


@dataclass(frozen=True)
class Patient:
    """What is drawn once for a case.

    Attributes:
        female: Decides on breasts, uterus or prostate.
        fat_mm: Thickness of the fat under the skin at the flank.
        belly_mm: How far the belly stands out through fat inside.
        breath_mm: How much higher (expiration) the diaphragm stands.
        scale: Size relative to the standard torso along x, y, z.
        turn_deg: Turns about x, y, z.
        protocol: Which part is scanned.
        bottom_mm: Lowest slice (body coordinates).
        top_mm: Highest slice (body coordinates).
        view_mm: Side of the square field of view.
        centre_mm: Body coordinates (x, y) of the middle of the field of view.
        table_mm: World z of the lowest slice.
        phase: Contrast phase.
        hu: HU of each tissue.
        noise_hu: Standard deviation of the noise in a torso of average width.
    """

    female: bool
    fat_mm: float
    belly_mm: float
    breath_mm: float
    scale: Point
    turn_deg: Point
    protocol: Protocol
    bottom_mm: float
    top_mm: float
    view_mm: float
    centre_mm: tuple[float, float]
    table_mm: float
    phase: Phase
    hu: dict[str, float]
    noise_hu: float

    @property
    def turn(self) -> Float64[np.ndarray, "3 3"]:
        """World directions to body directions."""
        return turned(self.turn_deg)


def draw_patient(protocol: Protocol, rng: np.random.Generator) -> Patient:
    """A random patient in a random scan of some part of the torso."""
    phase: Phase = get_args(Phase)[rng.choice(4, p=_PHASE_SHARES)]
    low, high = _ENDS_MM[protocol]
    fat = float(np.clip(rng.gamma(4.0, 3.5), 5, 32))
    size = rng.normal(1, 0.035)
    scale = tuple(float(s) for s in np.clip(size + rng.normal(0, [0.03, 0.035, 0.03]), 0.88, 1.12))
    widest = 2 * (160 + 1.2 * fat) * scale[0]
    return Patient(
        female=bool(rng.random() < 0.5),
        fat_mm=fat,
        belly_mm=float(np.clip(rng.normal(0.8 * fat, 8), 0, 38)),
        breath_mm=float(rng.uniform(-10, 14)),
        scale=(scale[0], scale[1], scale[2]),
        turn_deg=(float(rng.normal(0, 1.5)), float(rng.normal(0, 1.5)), float(rng.normal(0, 2.5))),
        protocol=protocol,
        bottom_mm=float(rng.uniform(*low)),
        top_mm=float(rng.uniform(*high)),
        view_mm=float(max(330.0, widest * rng.uniform(0.98, 1.1))),
        centre_mm=(float(rng.normal(0, 6)), float(rng.normal(-14, 6))),
        table_mm=float(rng.integers(-900, -200)),
        phase=phase,
        hu=_draw_hu(phase, rng),
        noise_hu=float(rng.uniform(7, 16)),
    )


def _draw_hu(phase: Phase, rng: np.random.Generator) -> dict[str, float]:
    column = get_args(Phase).index(phase)
    bolus = rng.normal(0, 1)  # all vessels of a patient are bright or pale together
    hu = {}
    for tissue, values in _HU.items():
        mean, native, spread = values[column], values[0], values[-1]
        enhanced = (mean - native) * (1 + 0.12 * bolus)
        spread = spread / 2 if phase == "native" else spread
        hu[tissue] = float(native + enhanced + rng.normal(0, spread))
    hu["liver"] -= float(max(0.0, rng.normal(-6, 12)))  # some livers are fatty
    return hu
