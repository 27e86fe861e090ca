"""Bowel and pelvis: small bowel, colon with what is in it, bladder, and the organs behind it."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from voco.data.phantom.branches import winding_path
from voco.data.phantom.canvas import Canvas, Filling, Patch, layered, mottled
from voco.data.phantom.frame import Frame
from voco.data.phantom.organs import Organ
from voco.data.phantom.shapes import (
    Capsule,
    Ellipsoid,
    Grown,
    Intersection,
    Number,
    Outside,
    Point,
    Union,
    smooth_path,
    tube,
)
from voco.data.phantom.wall import FAT

_COLON = (
    *((76, 20, -38), (86, 16, -8), (92, 4, 40), (94, -4, 84), (86, 12, 120)),  # ascending
    *((62, 44, 116), (25, 60, 98), (-15, 62, 100), (-52, 54, 124)),  # transverse
    *((-84, 22, 158), (-100, -20, 168), (-101, -38, 130), (-98, -36, 80)),  # descending
    *((-92, -18, 20), (-76, 10, -20), (-48, 24, -34), (-16, 14, -22)),  # sigmoid
    *((8, -8, -34), (10, -34, -52), (2, -62, -80), (0, -58, -115), (0, -46, -150)),  # rectum
)


def paint_small_bowel(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Duodenum and many loops, some with contrast medium or gas."""
    hu = frame.patient.hu
    core = Ellipsoid((-2, 26, 34), (94, 52 + frame.patient.belly_mm, 112), exponent=2.6)
    spine = Capsule((0, -40, -40), (0, -40, 200), 44, 44)
    room = Intersection((frame.abdomen, Grown(frame.cavity, -12.0), core, Outside(spine)))
    opaque = rng.random() < 0.3
    duodenum = [(32.0, 34.0, 164.0), (44.0, 14.0, 158.0), (46.0, 4.0, 128.0), (30.0, 2.0, 108.0)]
    duodenum += [(0.0, 6.0, 106.0), (-24.0, 14.0, 116.0)]
    _paint_loop(canvas, frame, smooth_path(duodenum, 14), 10.5, hu["gut_wall"], 18.0)
    for start in (
        (-44.0, 34.0, 110.0),
        (20.0, 38.0, 50.0),
        (-30.0, 36.0, 0.0),
        (30.0, 30.0, -20.0),
    ):
        path = smooth_path(winding_path(room, start, 26, 26.0, rng), 80)
        for first in range(0, len(path) - 1, 8):
            content = float(rng.uniform(180, 320)) if opaque else float(rng.uniform(5, 45))
            gas = rng.random() < 0.08
            filling = layered(48.0, -900.0, content) if gas else mottled(content, fine=8)
            radius = float(rng.uniform(10.5, 14.5))
            _paint_loop(canvas, frame, path[first : first + 9], radius, hu["gut_wall"], filling)


def _paint_loop(
    canvas: Canvas, frame: Frame, path: list[Point], radius: Number, wall: Number, filling: Filling
) -> None:
    loop = tube(path, radius)
    canvas.paint(loop, mottled(wall, fine=5), within=frame.abdomen)
    canvas.paint(Grown(loop, -3.0), filling, within=frame.abdomen, inset_mm=3.0)


def paint_colon(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """The frame of the colon, pouched, with stool and gas, down to the rectum."""
    shift = rng.normal(0, 5, (len(_COLON), 3))
    forwards = np.asarray([frame.patient.belly_mm * (1 if y > 0 else 0.2) for _, y, _ in _COLON])
    places = np.asarray(_COLON, float) + shift
    places[:, 1] += forwards * np.exp(-(((places[:, 2] - 85) / 95) ** 2))
    points = [(float(x), float(y), float(z)) for x, y, z in places]
    path = smooth_path(points, 110)
    wide = float(rng.uniform(0.85, 1.15))
    sizes = np.interp(
        np.linspace(0, 1, 110), (0, 0.2, 0.45, 0.7, 0.82, 1), (27, 24, 21, 15, 15, 17)
    )
    radii = wide * sizes * (1 + 0.14 * np.sin(np.arange(110) * 1.9))
    wall = frame.patient.hu["gut_wall"]
    for first in range(0, 109, 6):
        piece = slice(first, first + 7)
        loop = tube(path[piece], [float(r) for r in radii[piece]])
        canvas.paint(loop, mottled(wall, fine=5), 0, within=frame.abdomen)
        lumen = Grown(loop, -2.5)
        canvas.paint(lumen, _stool(rng), within=frame.abdomen, inset_mm=2.5)


def _stool(rng: np.random.Generator) -> Filling:
    """Stool with gas bubbles, or gas over fluid."""
    if rng.random() < 0.3:
        return layered(float(rng.uniform(-10, 40)), -960.0, float(rng.uniform(10, 50)))
    mean, bubbles = float(rng.uniform(15, 70)), float(rng.uniform(0.9, 1.6))

    def fill(patch: Patch) -> Float32[np.ndarray, "x y z"]:
        gas = np.clip(patch.fine + 0.4 * patch.coarse - bubbles, 0, 1.2)
        return (mean + 18 * patch.fine - 520 * gas).astype(np.float32)

    return fill


def paint_bladder(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Bladder (labelled), and behind or below it uterus or prostate."""
    hu, full = frame.patient.hu, float(rng.uniform(0.72, 1.2))
    soft = mottled(hu["gland"] * 1.15, fine=5, coarse=5)
    if frame.patient.female:
        uterus = (
            Ellipsoid((4, 4, -72), (25, 19, 30), (50, 0, 6)),
            Ellipsoid((0, -16, -100), (14, 13, 20)),
        )
        canvas.paint(Union(uterus), soft, within=frame.cavity)
    else:
        canvas.paint(Ellipsoid((0, 8, -122), (23, 17, 18)), soft)
        for side in (1, -1):
            canvas.paint(Capsule((side * 5, -20, -100), (side * 26, -24, -92), 6, 5), soft)
    centre = (float(rng.normal(0, 3)), 30.0, -98.0 + 22 * full)
    radii = (42 * full, 30 * full, 30 * full)
    shape = Ellipsoid(centre, radii, exponent=2.4)
    canvas.paint(Grown(shape, 3.0), FAT, 0, within=frame.cavity)
    wall = mottled(hu["gut_wall"], fine=4)
    canvas.paint(shape, wall, Organ.BLADDER, within=frame.cavity, inset_mm=2.0)
    urine = mottled(hu["urine"], fine=2)
    if frame.patient.phase == "late":  # contrast medium sinks to the back
        urine = layered(float(rng.uniform(15, 40)), hu["urine"], float(rng.uniform(150, 320)))
    canvas.paint(Grown(shape, -3.0), urine, within=frame.cavity, inset_mm=5.0)


def paint_mesentery(canvas: Canvas, rng: np.random.Generator) -> None:
    """Small vessels in the fat between the loops."""
    for _ in range(30):
        angle, z = rng.uniform(0.1, np.pi - 0.1), rng.uniform(-20, 130)
        stop = (float(70 * np.cos(angle)), float(14 + 36 * np.sin(angle)), float(z))
        root = (2.0, 12.0, float(60 + 0.6 * (z - 60)))
        bend = (root[0] * 0.5 + stop[0] * 0.5 + float(rng.normal(0, 6)), 22.0, (root[2] + z) / 2)
        for one, other in pairwise(smooth_path([root, bend, stop], 5)):
            canvas.paint(Capsule(one, other, 1.7, 1.5), 60.0)
