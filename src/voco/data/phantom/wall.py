"""What is outermost: table, skin, fat, the muscles of the wall, and the fat of the cavity."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from voco.data.phantom.canvas import Canvas, Filling, Patch, mottled
from voco.data.phantom.frame import Frame
from voco.data.phantom.shapes import (
    Bounds,
    Distances,
    Ellipsoid,
    Grown,
    Intersection,
    Number,
    Outside,
    Points,
    Shape,
    Union,
    smooth_tube,
)

FAT = mottled(-104, fine=6, coarse=4)
"""Fat everywhere in the body."""


def muscle(hu: Number) -> Filling:
    """Muscle with some fat between its fibres."""

    def fill(patch: Patch) -> Float32[np.ndarray, "x y z"]:
        fatty = np.clip(patch.coarse + 0.5 * patch.fine - 1.4, 0, 0.8)
        return (hu + 4 * patch.fine - 140 * fatty).astype(np.float32)

    return fill


@dataclass(frozen=True)
class Skin(Shape):
    """The body's outline: the muscles of the trunk, under fat of varying thickness."""

    frame: Frame

    @property
    def bounds(self) -> Bounds:
        """Around the trunk and its fat."""
        low, high = self.frame.trunk.bounds
        fat = 3 * self.frame.patient.fat_mm
        return np.stack([low - fat, high + fat])

    def distance(self, at: Points) -> Distances:
        """To the trunk, less the fat; with a furrow along the spine."""
        thickness = self.frame.fat_mm(at[1], at[2])
        furrow = 5 * np.exp(-np.square(at[0] / 16)) * (at[1] < -40)
        return (self.frame.trunk.distance(at) - thickness + furrow).astype(np.float32)


def outline(frame: Frame, rng: np.random.Generator) -> Shape:
    """The skin's surface, with breasts where there are some."""
    skin = Skin(frame)
    if not frame.patient.female:
        return skin
    size = rng.uniform(0.8, 1.15) * (1 + frame.patient.fat_mm / 80)
    breasts = [
        Ellipsoid((side * 74, 86, 312), (56 * size, 34 * size, 54 * size), (0, 0, -14 * side))
        for side in (1, -1)
    ]
    return Union((skin, *breasts), blend_mm=22)


def paint_wall(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Skin, fat, the muscles of the trunk, and fat in the cavity."""
    body = outline(frame, rng)
    canvas.paint(body, mottled(15, fine=10))
    canvas.paint(Grown(body, -2.0), FAT)
    canvas.paint(frame.trunk, muscle(frame.patient.hu["muscle"]))
    paint_fat_planes(canvas, frame)
    canvas.paint(frame.cavity, FAT)


def paint_fat_planes(canvas: Canvas, frame: Frame) -> None:
    """Fat between the large muscles of back, buttocks and shoulder, and along the thigh vessels."""
    for side in (1, -1):
        gluteus = Ellipsoid((side * 108, -22, -34), (46, 66, 78), (0, side * 14, 0))
        canvas.paint(_shell(gluteus, 1.3), FAT, within=frame.trunk, inset_mm=4.0)
        buttock = Ellipsoid((side * 74, -92, -78), (66, 46, 74), (20, 0, side * -16))
        beside = Intersection((Outside(gluteus), _shell(buttock, 1.3)))
        canvas.paint(beside, FAT, within=frame.trunk, inset_mm=4.0)
        back = [(side * 32.0, frame.spine_y(z) - 42, float(z)) for z in range(0, 241, 40)]
        canvas.paint(_shell(smooth_tube(back, 24.0), 1.2), FAT, within=frame.trunk, inset_mm=4.0)
        armpit = Ellipsoid((side * 128, -16, 404), (16, 34, 44), (0, side * -24, side * -20))
        canvas.paint(armpit, FAT, within=frame.trunk, inset_mm=4.0)
        groin = [
            (side * 62.0, 40.0, -90.0),
            (side * 76.0, 52.0, -125.0),
            (side * 80.0, 42.0, -180.0),
        ]
        canvas.paint(smooth_tube(groin, 18.0), FAT, within=frame.trunk, inset_mm=4.0)
        canvas.paint(Ellipsoid((side * 34, -62, -136), (17, 30, 26)), FAT)


def _shell(shape: Shape, half_mm: Number) -> Shape:
    return Intersection((Grown(shape, half_mm), Outside(Grown(shape, -half_mm))))


def paint_table(canvas: Canvas, rng: np.random.Generator) -> None:
    """The scanner's table, just behind the back: a thin curved shell around foam."""
    middle = slice(canvas.hu.shape[0] // 3, 2 * canvas.hu.shape[0] // 3)
    rows = np.flatnonzero((canvas.hu[middle] > -300).any(axis=(0, 2)))
    if rows.size == 0:
        return
    steps = canvas.pose.height_mm[0, :, 0]
    row_mm = float(steps[1] - steps[0])
    across = (np.arange(canvas.hu.shape[0]) - (canvas.hu.shape[0] - 1) / 2) * row_mm
    top = steps[rows[0]] - 4 - row_mm / 2 + across[:, None] ** 2 * rng.uniform(5e-4, 1e-3)
    depth = top - steps[None, :]
    inside = (np.abs(across) < 205)[:, None]
    air = np.clip((-700 - canvas.hu) / 300, 0, 1)  # leaves what the patient covers
    for first, last, hu in ((0, 22, -960.0), (0, 2.5, -150.0), (19.5, 22, -150.0)):
        share = np.clip(np.minimum(depth - first, last - depth) / row_mm + 0.5, 0, 1) * inside
        share = share.astype(np.float32)[:, :, None] * air
        canvas.hu += share * (np.float32(hu) - canvas.hu)


def paint_deep_muscles(canvas: Canvas, frame: Frame) -> None:
    """Muscles inside the cavity: psoas, quadratus lumborum, and the pelvic floor."""
    filling = muscle(frame.patient.hu["muscle"])
    for side in (1, -1):
        psoas = [
            *((20, frame.spine_y(165) - 6, 168), (31, frame.spine_y(120) - 4, 120)),
            *((42, -32, 60), (55, -24, 5), (72, 12, -50), (92, 26, -100)),
        ]
        radii = (6, 13, 20, 20, 15, 12)
        canvas.paint(smooth_tube([(side * x, y, z) for x, y, z in psoas], radii), filling)
        quadratus = [(side * 52, -76, 165), (side * 66, -74, 100), (side * 78, -68, 42)]
        canvas.paint(smooth_tube(quadratus, (8, 13, 12)), filling)
        iliacus = Ellipsoid((side * 88, -18, -8), (14, 48, 44), (0, side * 20, 0))
        canvas.paint(iliacus, filling)
        obturator = [(side * 55, -20, -70), (side * 50, 10, -105), (side * 40, 0, -140)]
        canvas.paint(smooth_tube(obturator, (8, 11, 9)), filling)
    floor = Ellipsoid((0, -25, -146), (44, 48, 14))
    canvas.paint(floor, filling)


def paint_diaphragm(canvas: Canvas, frame: Frame) -> None:
    """The thin muscle between chest and belly, and its crura before the spine."""
    filling = frame.patient.hu["muscle"]
    canvas.paint(Grown(frame.below_diaphragm, 2.0), filling, within=frame.cavity)
    canvas.paint(Grown(frame.below_diaphragm, -2.0), FAT, within=frame.cavity)
    for side, low in ((1, 105), (-1, 130)):
        points = [frame.before_spine(side * 11, z, 1.0) for z in (245, 215, 180, low)]
        canvas.paint(smooth_tube(points, (5, 7, 6, 3)), filling)
