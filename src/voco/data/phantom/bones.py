"""Bones: vertebrae with their discs and canal, ribs, breastbone, shoulder, pelvis, femur."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from voco.data.phantom.canvas import Canvas, Filling, mottled
from voco.data.phantom.frame import VERTEBRA_HEIGHTS_MM, Frame
from voco.data.phantom.organs import Organ
from voco.data.phantom.shapes import (
    Bounds,
    Capsule,
    Distances,
    Ellipsoid,
    Grown,
    HalfSpace,
    Intersection,
    Number,
    Outside,
    Point,
    Points,
    Shape,
    Union,
    power,
    smooth_tube,
    tube,
)


@dataclass(frozen=True)
class Bone:
    """HU of the parts of a bone, one set per patient."""

    cortex: Filling
    marrow: Filling

    def paint(self, canvas: Canvas, shape: Shape, shell_mm: Number, label: int | None) -> None:
        """A solid with a hard shell and softer marrow."""
        canvas.paint(shape, self.cortex, label)
        canvas.paint(Grown(shape, -shell_mm), self.marrow)


def draw_bone(rng: np.random.Generator) -> Bone:
    """Dense bones of the young to thin ones of the old."""
    density = rng.uniform(0.65, 1.25)
    return Bone(
        cortex=mottled(540 * density, fine=60), marrow=mottled(150 * density, fine=26, coarse=14)
    )


@dataclass(frozen=True)
class Vertebra:
    """Measures of one vertebra (mm)."""

    bottom: float
    """Height of the lower end of its disc."""
    disc: float
    height: float
    """Of the body, without the disc."""
    half_width: float
    half_depth: float
    y: float
    """Of the middle of the body."""
    tilt_deg: float
    lumbar: bool

    @property
    def z(self) -> float:
        """Of the middle of the body."""
        return self.bottom + self.disc + self.height / 2


def vertebrae(frame: Frame) -> list[Vertebra]:
    """From L5 upwards."""
    found, bottom = [], 0.0
    for number, height in enumerate(VERTEBRA_HEIGHTS_MM):
        middle = bottom + height / 2
        lumbar = number < 5
        slope = frame.spine_y(middle + 8) - frame.spine_y(middle - 8)
        found.append(
            Vertebra(
                bottom=bottom,
                disc=height * (0.25 if lumbar else 0.18),
                height=height * (0.75 if lumbar else 0.82),
                half_width=float(np.interp(middle, (0, 90, 200, 330, 460), (27, 24, 20, 15, 14))),
                half_depth=float(np.interp(middle, (0, 180, 330, 460), (18, 16.5, 14, 10))),
                y=frame.spine_y(middle),
                tilt_deg=-float(np.degrees(np.arctan2(slope, 16))),
                lumbar=lumbar,
            )
        )
        bottom += height
    return found


def paint_spine(canvas: Canvas, frame: Frame, bone: Bone) -> None:
    """Vertebrae (labelled), discs and the canal with the cord (not labelled)."""
    column = vertebrae(frame)
    for vertebra in column:
        canvas.paint(_slab(vertebra, vertebra.bottom, vertebra.z, 1.5), mottled(82, fine=8))
    for vertebra in column:
        low = vertebra.z - vertebra.height / 2
        body = _slab(vertebra, low, low + vertebra.height, 0.0)
        bone.paint(canvas, body, 1.7, Organ.VERTEBRAE)
        bone.paint(canvas, _arch(vertebra), 2.8, Organ.VERTEBRAE)
    canal = [(0.0, v.y - v.half_depth - 9.5, v.z) for v in column]
    canvas.paint(tube(canal, 8.5), mottled(-20, fine=10), Organ.BACKGROUND)
    canvas.paint(tube(canal, 6.5), mottled(28, fine=4))


def _slab(vertebra: Vertebra, low: Number, high: Number, wider: Number) -> Shape:
    """An upright elliptic cylinder between two heights, tilted with the spine."""
    width, depth = vertebra.half_width + wider, vertebra.half_depth + wider
    middle = (low + high) / 2
    centre = (0.0, vertebra.y, middle)
    turn = (vertebra.tilt_deg, 0.0, 0.0)
    angle = np.deg2rad(vertebra.tilt_deg)
    up = (0.0, -float(np.sin(angle)), float(np.cos(angle)))
    down = (0.0, -up[1], -up[2])
    half = (high - low) / 2
    top = (0.0, centre[1] + half * up[1], middle + half * up[2])
    base = (0.0, centre[1] - half * up[1], middle - half * up[2])
    cylinder = Ellipsoid(centre, (width, depth, 3 * half), turn)
    box = Ellipsoid(centre, (width, depth, half + 2), turn, exponent=8.0)
    return Intersection((cylinder, box, HalfSpace(top, up), HalfSpace(base, down)))


def _arch(vertebra: Vertebra) -> Union:
    """Pedicles, laminae, joints, transverse processes and the spinous process."""
    v, parts = vertebra, list[Shape]()
    back, z = v.y - v.half_depth, v.z + 0.12 * v.height
    size = 1.0 if v.lumbar else 0.8
    for side in (1, -1):
        root: Point = (side * 0.78 * v.half_width, back - 9, z)
        parts += [
            Capsule((side * 0.62 * v.half_width, back + 6, z), root, 4.4 * size, 4.4 * size),
            Capsule(root, (side * 3, back - 22 * size - 2, z - 5), 4.6 * size, 4 * size),
            Capsule(root, (side * (v.half_width + 17), back - 15, z), 4.4 * size, 3.6 * size),
            Capsule((root[0], back - 12, z + 10), (root[0], back - 13, z - 16), 4 * size, 4 * size),
        ]
    start: Point = (0.0, back - 22 * size - 2, z - 5)
    drop, length = (9.0, 27.0) if v.lumbar else (24.0, 23.0)
    for lower in (0.0, 7.0) if v.lumbar else (0.0, 3.0):
        stop = (0.0, start[1] - length, start[2] - drop - lower)
        parts.append(Capsule((0.0, start[1], start[2] - lower), stop, 4 * size, 4.2 * size))
    return Union(tuple(parts))


_RIBS = (
    # how far forward (degrees from the back), how much lower its front end is, cartilage (mm)
    *((128, 36, 18), (142, 52, 22), (146, 62, 26), (146, 72, 30), (144, 82, 36), (140, 92, 48)),
    *((134, 100, 62), (126, 98, 40), (116, 92, 34), (104, 84, 28), (80, 52, 0), (56, 34, 0)),
)


def rib_path(frame: Frame, number: int, side: int) -> list[Point]:
    """Points along a rib (1 to 12) from the spine to its front end."""
    spine = vertebrae(frame)
    vertebra = spine[17 - number]
    last_deg, drop, _ = _RIBS[number - 1]
    head_z = vertebra.z + 0.3 * vertebra.height
    points: list[Point] = [
        (side * (vertebra.half_width + 2.0), vertebra.y - vertebra.half_depth + 1, head_z),
        (side * (vertebra.half_width + 17.0), vertebra.y - vertebra.half_depth - 9, head_z - 2),
    ]
    for share in np.linspace(0.0, 1.0, 10):
        degrees = 32 + (last_deg - 32) * share
        z = head_z - 3 - drop * (1 - np.cos(np.pi * share**0.85)) / 2 * 0.94 - 0.06 * drop * share
        points.append(_on_cage(frame, side, float(degrees), float(z), 5.0))
    return points


def _on_cage(frame: Frame, side: int, degrees: Number, z: Number, outwards: Number) -> Point:
    """A point on the rib cage: degrees from straight behind, through the flank, to the front."""
    heights = np.asarray([min(max(z, 130.0), 446.0)], np.float32)
    half, centre, depth = (float(part[0]) for part in frame.cavity.section(heights))
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    exponent = 2 / frame.cavity.exponent
    x = (half + outwards) * abs(sine) ** exponent
    y = centre - (depth + outwards) * abs(cosine) ** exponent * np.sign(cosine)
    return (float(side * x), float(y), z)


def paint_ribs(canvas: Canvas, frame: Frame, bone: Bone) -> None:
    """Twelve pairs (labelled), and the cartilage that joins the upper ones to the breastbone."""
    cartilage = mottled(95, fine=12)
    for side in (1, -1):
        for number, (_, _, length) in enumerate(_RIBS, start=1):
            path = rib_path(frame, number, side)
            if length:
                front = _sternal_end(frame, number, side, path[-1])
                canvas.paint(smooth_tube(front, 5.0, 8), cartilage)
            bone.paint(canvas, smooth_tube(path, 5.4, 20), 2.4, Organ.RIBS)


def _sternal_end(frame: Frame, number: int, side: int, end: Point) -> list[Point]:
    """From the end of a rib to the breastbone, or (8 to 10) to the cartilage above."""
    if number >= 8:
        above = rib_path(frame, number - 1, side)[-1]
        return [end, (above[0] * 0.8, above[1] + 6, above[2] + 2)]
    z = 402.0 - 22 * (number - 1) if number < 7 else 277.0
    stop = (side * 13.0, _sternum_y(frame, z), z)
    middle = ((end[0] + stop[0]) / 2, (end[1] + stop[1]) / 2 + 3, end[2] * 0.7 + stop[2] * 0.3)
    return [end, middle, stop]


def _sternum_y(frame: Frame, z: Number) -> float:
    _, centre, depth = (float(p[0]) for p in frame.cavity.section(np.asarray([z], np.float32)))
    return centre + depth + 6


def paint_sternum(canvas: Canvas, frame: Frame, bone: Bone) -> None:
    """Manubrium, body and xiphoid; and both collar bones."""
    rows = ((412, 26), (396, 24), (378, 15), (350, 14), (320, 16), (290, 17), (268, 9), (250, 4))
    for (high, half), (low, lower_half) in pairwise(rows):
        z, width = (high + low) / 2, (half + lower_half) / 2
        centre = (0.0, _sternum_y(frame, z), z)
        radii = (width, 5.5, (high - low) / 2 + 2)
        bone.paint(canvas, Ellipsoid(centre, radii, (14, 0, 0), exponent=4.0), 2.2, None)
    for side in (1, -1):
        collar = ((14, 50, 416), (45, 42, 430), (85, 8, 440), (118, -30, 446), (150, -52, 448))
        points = [(side * float(x), float(y), float(z)) for x, y, z in collar]
        bone.paint(canvas, smooth_tube(points, 6.0), 2.6, None)


def paint_shoulders(canvas: Canvas, bone: Bone) -> None:
    """Shoulder blades and the heads of the raised arms."""
    for side in (1, -1):
        blade = Ellipsoid((side * 100, -99, 372), (40, 4.5, 66), (-8, side * 8, side * 27))
        bone.paint(canvas, blade, 2.6, None)
        spine = [(side * 72.0, -113.0, 412.0), (side * 118.0, -92.0, 432.0)]
        bone.paint(canvas, tube([*spine, (side * 152.0, -62.0, 446.0)], 5.5), 2.6, None)
        bone.paint(canvas, Ellipsoid((side * 162, -40, 438), (23, 23, 24)), 2.5, None)


@dataclass(frozen=True)
class IliacWing(Shape):
    """The blade of one hip bone: a curved sheet with an oval outline."""

    side: int

    @property
    def bounds(self) -> Bounds:
        """Around the blade."""
        low, high = sorted((self.side * 25.0, self.side * 136.0))
        return np.asarray([[low, -94.0, -92.0], [high, 62.0, 58.0]])

    def distance(self, at: Points) -> Distances:
        """To the sheet, or to its rim."""
        x, y, z = self.side * at[0], at[1], at[2]
        behind = np.maximum(-12 - y, 0) / np.float32(70)
        sheet = 77 + 0.4 * (z + 80) - 62 * behind**2 - 0.06 * np.maximum(y, 0)
        slope = 1 / np.sqrt(1 + 0.4**2 + np.square(124 / 70 * behind))
        across, along = (y + 14) / np.float32(70), (z + 20) / np.float32(68)
        level = np.sqrt(power(across, 2.0) + power(along, 2.0))
        rim = (level - 1) * 66
        thickness = 4.2 + 2.6 * np.clip((level - 0.72) * 4, 0, 1)
        return np.maximum(np.abs(x - sheet) * slope - thickness, rim).astype(np.float32)


def paint_pelvis(canvas: Canvas, frame: Frame, bone: Bone) -> None:
    """Sacrum and both hip bones (labelled), and the femurs (not labelled)."""
    rows = ((-14, 50, 16, 19), (-42, 43, 13, 19), (-68, 33, 11, 18), (-92, 22, 8, 16))
    sacrum = [
        Ellipsoid((0.0, frame.spine_y(z) - 3, z), (half, depth, tall), (35 if z > -60 else 5, 0, 0))
        for z, half, depth, tall in rows
    ]
    coccyx = Ellipsoid((0.0, frame.spine_y(-115), -116), (9, 6, 17), (-20, 0, 0))
    bone.paint(canvas, Union((*sacrum, coccyx), blend_mm=10), 2.5, Organ.PELVIS)
    for side in (1, -1):
        _paint_hip(canvas, bone, side)


def _paint_hip(canvas: Canvas, bone: Bone, side: int) -> None:
    def beside(x: Number, y: Number, z: Number) -> Point:
        return (side * x, y, z)

    notches = (
        Ellipsoid(beside(60, -66, -66), (60, 30, 34)),
        Ellipsoid(beside(90, 62, -70), (60, 34, 40)),
    )
    wing = Intersection((IliacWing(side), *(Outside(notch) for notch in notches)))
    canvas.paint(Grown(wing, 2.0), 60.0)
    bone.paint(canvas, wing, 2.6, Organ.PELVIS)
    hip = (
        Ellipsoid(beside(86, 4, -84), (26, 27, 32)),
        tube([beside(74, 26, -84), beside(40, 44, -100), beside(11, 50, -114)], (10, 7.5, 9)),
        tube([beside(10, 48, -120), beside(28, 32, -140), beside(52, 4, -154)], (7.5, 6, 7)),
        tube([beside(84, -14, -92), beside(70, -26, -122), beside(58, -18, -152)], (15, 13, 13)),
    )
    for part in hip:
        bone.paint(canvas, part, 3.0, Organ.PELVIS)
    head = beside(96, 4, -92)
    canvas.paint(Ellipsoid(head, (26, 26, 26)), 45.0, Organ.BACKGROUND)
    femur = (
        tube([head, beside(126, -6, -112), beside(140, -8, -128)], (13, 14, 17)),
        tube([beside(136, -8, -125), beside(128, -4, -230)], (17, 15)),
        Ellipsoid(head, (23, 23, 23)),
    )
    bone.paint(canvas, Union(femur), 3.5, Organ.BACKGROUND)
