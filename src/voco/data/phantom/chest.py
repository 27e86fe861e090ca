"""What is in the chest: lungs with vessels and bronchi, heart, great vessels, windpipe, gullet."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from voco.data.phantom.branches import places_inside, vessel_tree
from voco.data.phantom.canvas import Canvas, Filling, Patch, mottled
from voco.data.phantom.frame import Frame
from voco.data.phantom.organs import Organ
from voco.data.phantom.shapes import (
    Bounds,
    Distances,
    Ellipsoid,
    Grown,
    Intersection,
    Number,
    Point,
    Points,
    Shape,
    Union,
    smooth_tube,
    tube,
)
from voco.data.phantom.wall import FAT

_MEDIASTINUM = ((-110, 24), (-80, 23), (-50, 21), (-20, 21), (15, 17), (40, 9), (60, 4), (90, 2))
"""y, and half width of the mediastinum below the great vessels."""


@dataclass(frozen=True)
class MediastinalFace(Shape):
    """All on the lung's side of the mediastinum; the heart takes more, and is painted later."""

    side: int

    @property
    def bounds(self) -> Bounds:
        """One side of the body."""
        box = np.full((2, 3), 1e4) * [[-1], [1]]
        box[0 if self.side > 0 else 1, 0] = 0.0
        return box

    def distance(self, at: Points) -> Distances:
        """Sideways to the face."""
        places, widths = zip(*_MEDIASTINUM, strict=True)
        low = np.interp(at[1], places, widths)
        high = np.clip((at[2] - 385) / 40, 0, 1)
        half = low + (np.maximum(low, 27) - low) * high
        return ((half - self.side * at[0]) * 0.92).astype(np.float32)


def lung(frame: Frame, side: int) -> Shape:
    """The right (1) or the left (-1) lung, heart not yet taken out."""
    return Intersection((frame.chest, MediastinalFace(side)))


def paint_lungs(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Both lungs (labelled with all that is in them), with vessel trees and bronchi."""
    air = float(rng.normal(-835, 25))

    def parenchyma(patch: Patch) -> Float32[np.ndarray, "x y z"]:
        lower = np.float32(-0.45) * patch.height_mm  # denser at the back, by gravity
        return (air + lower + 14 * patch.fine + 10 * patch.coarse).astype(np.float32)

    for side, label in ((1, Organ.LUNG_RIGHT), (-1, Organ.LUNG_LEFT)):
        room = lung(frame, side)
        canvas.paint(MediastinalFace(side), parenchyma, label, within=frame.chest)
        hilum: Point = (side * 36.0, -26.0, 352.0)
        for count, thickness in ((120, 1.15), (100, 1.25)):
            tree = vessel_tree(hilum, places_inside(room, count, 7, rng), thickness, 7.0)
            if tree is not None:
                canvas.paint(tree, 30.0, over=(label,))
        bronchi = vessel_tree(hilum, places_inside(room, 12, 25, rng), 2.2, 4.5)
        if bronchi is not None:
            canvas.paint(Grown(bronchi, 1.2), 10.0, over=(label,))
            canvas.paint(bronchi, -960.0, over=(label,))


def paint_mediastinum(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Heart, great vessels, windpipe and gullet, from front to back."""
    _paint_gullet(canvas, frame)
    _paint_heart(canvas, frame, rng)
    _paint_pulmonary_vessels(canvas, frame)
    _paint_neck_vessels(canvas, frame)
    _paint_windpipe(canvas)


def _paint_heart(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    hu, size = frame.patient.hu, float(rng.uniform(0.92, 1.12))
    rise = 0.6 * frame.patient.breath_mm
    wall = mottled(hu["heart_muscle"], fine=4)
    left, right = mottled(hu["left_heart"], fine=5), mottled(hu["right_heart"], fine=7)

    def chamber(
        x: Number, y: Number, z: Number, radii: Point, turn: Point = (0, 0, 0)
    ) -> Ellipsoid:
        middle = np.asarray((-20.0, 14.0, 318.0))
        centre = middle - (0, 6, 0) + size * (np.asarray((x, y, z)) - middle) + (0, 0, rise)
        scaled = (size * radii[0], size * radii[1], size * radii[2])
        return Ellipsoid((float(centre[0]), float(centre[1]), float(centre[2])), scaled, turn)

    turn = (0.0, 30.0, -32.0)  # the apex points left, forwards and down
    outside = Union(
        (
            chamber(-30, 20, 309, (62, 43, 40), turn),
            chamber(22, 12, 322, (26, 28, 36)),
            chamber(0, -17, 336, (35, 22, 27)),
            chamber(-8, 20, 346, (30, 26, 24)),
        ),
        blend_mm=14,
    )
    canvas.paint(Grown(outside, 3.0), FAT, 0, within=frame.chest, inset_mm=-1.0)
    canvas.paint(outside, wall, Organ.HEART, within=frame.chest)
    canvas.paint(chamber(-48, 12, 306, (36, 19, 20), turn), left)
    canvas.paint(chamber(0, -16, 337, (30, 17, 22)), left)
    canvas.paint(chamber(-24, 40, 304, (42, 13, 24), (0, 30, -38)), right)
    canvas.paint(chamber(23, 12, 322, (21, 23, 31)), right)


def paint_aorta(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Ascending, arch, descending and abdominal aorta (labelled), and the iliac arteries."""
    blood = mottled(frame.patient.hu["artery"], fine=4)
    wide = float(rng.uniform(0.88, 1.22))
    ascending = [(-8.0, 8.0, 342.0), (10.0, 16.0, 364.0), (13.0, 12.0, 384.0)]
    arch = [(6.0, -4.0, 399.0), (-10.0, -28.0, 404.0), (-23.0, -48.0, 396.0)]
    descending = [
        frame.before_spine(x, z, forwards)
        for x, z, forwards in (
            *((-27, 376, -6), (-27, 345, -2), (-25, 310, 3), (-21, 270, 8), (-14, 230, 12)),
            *((-9, 190, 13), (-8, 150, 12), (-8, 100, 11), (-6, 48, 10)),
        )
    ]
    radii = [15, 15.5, 15, 14, 13, 12.5, 12.5, 12, 12, 11.5, 11, 10.5, 10, 9.5, 8.5]
    path = smooth_tube([*ascending, *arch, *descending], [wide * r for r in radii], 50)
    calcified = rng.random() < 0.35
    if calcified:
        canvas.paint(Grown(path, 1.0), lambda patch: _calcified(patch, frame.patient.hu["artery"]))
    canvas.paint(path, blood, Organ.AORTA)
    for side in (1, -1):
        fork = frame.before_spine(-6 + side * 3, 48, 9)
        iliac = [fork, (side * 26.0, -18.0, 8.0), (side * 50.0, -8.0, -38.0)]
        iliac += [
            (side * 62.0, 34.0, -84.0),
            (side * 74.0, 52.0, -120.0),
            (side * 80, 42.0, -170.0),
        ]
        canvas.paint(smooth_tube(iliac, (7, 6, 5.5, 5, 5, 4.5)), blood)


def _calcified(patch: Patch, blood: Number) -> Float32[np.ndarray, "x y z"]:
    return np.where(patch.coarse > 1.1, np.float32(750), np.float32(blood * 0.5 + 25))


def _paint_pulmonary_vessels(canvas: Canvas, frame: Frame) -> None:
    blood = mottled(frame.patient.hu["right_heart"], fine=5)
    trunk = [(-24.0, 36.0, 342.0), (-27.0, 24.0, 362.0), (-24.0, 2.0, 372.0)]
    canvas.paint(smooth_tube(trunk, (13, 13.5, 12.5)), blood)
    right = [(-22.0, 2.0, 371.0), (6.0, -10.0, 368.0), (38.0, -18.0, 358.0)]
    left = [(-26.0, 0.0, 373.0), (-38.0, -22.0, 374.0), (-46.0, -38.0, 352.0)]
    canvas.paint(smooth_tube(right, (11, 10, 7)), blood)
    canvas.paint(smooth_tube(left, (11, 9, 7)), blood)
    veins = mottled(frame.patient.hu["left_heart"], fine=5)
    for side in (1, -1):
        for z in (326.0, 350.0):
            ends = [(side * 14.0, -16.0, 337.0), (side * 42.0, -22.0, z)]
            canvas.paint(tube(ends, (7, 5)), veins)


def _paint_neck_vessels(canvas: Canvas, frame: Frame) -> None:
    hu = frame.patient.hu
    artery = mottled(hu["artery"], fine=5)
    vein = mottled(hu["vein"] * (1.9 if frame.patient.phase == "arterial" else 1.0), fine=6)
    cava = [(24.0, 10.0, 332.0), (25.0, 10.0, 370.0), (24.0, 12.0, 405.0), (30.0, 4.0, 436.0)]
    canvas.paint(smooth_tube([*cava, (36.0, -4.0, 475.0)], (10, 9.5, 9, 8, 7)), vein)
    left = [(22.0, 12.0, 404.0), (-8.0, 22.0, 412.0), (-34.0, 6.0, 436.0), (-40.0, -8.0, 475.0)]
    canvas.paint(smooth_tube(left, (7, 7, 7, 6)), vein)
    for path, radius in (
        ([(4.0, -2.0, 404.0), (14.0, -8.0, 430.0), (24.0, -18.0, 475.0)], 6.0),
        ([(-8.0, -20.0, 408.0), (-14.0, -18.0, 435.0), (-22.0, -20.0, 475.0)], 4.0),
        ([(-18.0, -36.0, 406.0), (-26.0, -36.0, 435.0), (-48.0, -34.0, 470.0)], 5.0),
    ):
        canvas.paint(smooth_tube(path, radius), artery)


def _paint_gullet(canvas: Canvas, frame: Frame) -> None:
    points = [
        frame.before_spine(x, z, 8.0) for x, z in ((-3, 475), (-5, 420), (-2, 370), (-2, 320))
    ]
    points += [frame.before_spine(-8, 285, 20.0), (-24.0, -14.0, 266.0), (-42.0, -8.0, 254.0)]
    wall: Filling = mottled(frame.patient.hu["gut_wall"], fine=5)
    canvas.paint(smooth_tube(points, 7.0), wall)
    canvas.paint(smooth_tube(points[:4], 2.2), -300.0)


def _paint_windpipe(canvas: Canvas) -> None:
    trunk = [(0.0, -14.0, 490.0), (1.0, -20.0, 440.0), (3.0, -28.0, 400.0), (3.0, -31.0, 372.0)]
    right = [(3.0, -31.0, 373.0), (20.0, -33.0, 360.0), (40.0, -30.0, 346.0)]
    left = [(3.0, -31.0, 373.0), (-20.0, -36.0, 356.0), (-44.0, -34.0, 340.0)]
    tubes = [
        smooth_tube(p, r) for p, r in ((trunk, 8.5), (right, (6, 5.5, 4.5)), (left, (5.5, 5, 4.5)))
    ]
    airway = Union(tuple(tubes))
    canvas.paint(Grown(airway, 2.0), 35.0, Organ.BACKGROUND)
    canvas.paint(airway, -990.0, Organ.BACKGROUND)
