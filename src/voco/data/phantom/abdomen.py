"""The solid organs of the belly, the stomach and the vessels, from back to front."""

import numpy as np
from jaxtyping import Float32

from voco.data.phantom.branches import places_inside, vessel_tree
from voco.data.phantom.canvas import Canvas, Filling, Patch, layered, mottled
from voco.data.phantom.frame import Frame
from voco.data.phantom.organs import Organ
from voco.data.phantom.shapes import (
    Capsule,
    Ellipsoid,
    Grown,
    HalfSpace,
    Intersection,
    Number,
    Outside,
    Point,
    Shape,
    Union,
    smooth_tube,
    tube,
)
from voco.data.phantom.wall import FAT


def _near(rng: np.random.Generator, centre: Point, spread_mm: Number) -> Point:
    x, y, z = np.asarray(centre) + rng.normal(0, spread_mm, 3)
    return (float(x), float(y), float(z))


def liver(frame: Frame, rng: np.random.Generator) -> Shape:
    """The right lobe under the right dome, the left lobe reaching across the midline."""
    size, rise = float(rng.uniform(0.92, 1.1)), frame.patient.breath_mm
    right = Intersection(
        (
            Ellipsoid(
                (66, -8, 216 + 0.7 * rise), (88 * size, 100, 96 * size), (0, -8, 0), exponent=2.4
            ),
            HalfSpace((8, 20, 200 + 0.7 * rise), (-0.72, 0.12, -0.68)),
        )
    )
    reach = float(rng.uniform(56, 84))
    left = Ellipsoid((6, 34, 240 + 0.8 * rise), (reach, 46, 36 * size), (8, -12, -6))
    spine = Capsule((-4, -70, 100), (-4, -82, 320), 48, 46)
    whole = Union((right, left), blend_mm=18)
    return Intersection((whole, Outside(spine)))


def paint_liver(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Liver (labelled) with portal and hepatic veins and perhaps lesions, and the gallbladder."""
    hu, shape = frame.patient.hu, liver(frame, rng)
    filling = mottled(hu["liver"], fine=4, coarse=2.5)
    canvas.paint(shape, filling, Organ.LIVER, within=frame.abdomen)
    room = Intersection((shape, frame.abdomen))
    rise = 0.7 * frame.patient.breath_mm
    for root, tissue in (((26, 8, 196 + rise), "portal_vein"), ((20, -30, 258 + rise), "vein")):
        tree = vessel_tree(root, places_inside(room, 26, 9, rng), 1.5, 5.5)
        if tree is not None:
            canvas.paint(tree, hu[tissue], over=(Organ.LIVER,))
    for place in places_inside(room, int(rng.poisson(0.8)), 16, rng):
        radius, cyst = float(rng.uniform(5, 15)), rng.random() < 0.5
        lesion = Ellipsoid((place[0], place[1], place[2]), (radius, radius, radius))
        canvas.paint(lesion, mottled(10 if cyst else 0.65 * hu["liver"], fine=3), Organ.LIVER)
    if rng.random() < 0.85:
        sac = tube([(38, 46, 186 + rise), (52, 60, 160 + rise)], (8, float(rng.uniform(11, 18))))
        canvas.paint(Grown(sac, 2), hu["gut_wall"], 0, within=frame.abdomen)
        canvas.paint(sac, mottled(hu["bile"], fine=2), within=frame.abdomen)


def paint_spleen(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Spleen (labelled), hollow towards stomach and kidney; striped in the arterial phase."""
    size, rise = float(rng.uniform(0.82, 1.15)), 0.8 * frame.patient.breath_mm
    outer = Ellipsoid((-99, -46, 226 + rise), (42 * size, 58 * size, 60 * size), (-18, 0, -14))
    hollow = Ellipsoid((-48, -6, 226 + rise), (33, 46, 62), (0, 8, 0))
    shape = Intersection((outer, Outside(hollow)))
    stripes = 22.0 if frame.patient.phase == "arterial" else 1.5
    filling = mottled(frame.patient.hu["spleen"], fine=4, coarse=stripes)
    canvas.paint(shape, filling, Organ.SPLEEN, within=frame.abdomen)


def paint_kidneys(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Both kidneys (labelled) in their fat: cortex, medulla, sinus and pelvis; and adrenals."""
    for side, label, z in ((1, Organ.KIDNEY_RIGHT, 132.0), (-1, Organ.KIDNEY_LEFT, 148.0)):
        centre = _near(rng, (side * 61.0, -42.0, z + 0.5 * frame.patient.breath_mm), 3.0)
        size = float(rng.uniform(0.9, 1.12))
        paint_kidney(canvas, frame, rng, (side, label, centre, size))
        top = (centre[0] - side * 14, centre[1] + 2, centre[2] + 54 * size)
        for x, y in ((8, -10), (-6, -10)):
            limb = Capsule(top, (top[0] + x, top[1] + y, top[2] + 6), 3.5, 2.5)
            canvas.paint(limb, frame.patient.hu["gland"])


def paint_kidney(
    canvas: Canvas, frame: Frame, rng: np.random.Generator, which: tuple[int, int, Point, float]
) -> None:
    """One kidney: side, label, centre and size."""
    side, label, (x, y, z), size = which
    hu, turn = frame.patient.hu, (-8.0, side * -11.0, side * 28.0)
    whole = Ellipsoid((x, y, z), (29 * size, 25 * size, 54 * size), turn)
    fat = Ellipsoid((x, y, z), (40 * size, 35 * size, 70 * size), turn)
    canvas.paint(fat, FAT, 0, within=frame.abdomen)
    canvas.paint(whole, mottled(hu["kidney_cortex"], fine=4), label)
    for angle in np.linspace(0, 2 * np.pi, 9)[:-1] + rng.uniform(0, 0.5):
        place = (x - side * 2 * size, y + 9 * size * np.cos(angle), z + 33 * size * np.sin(angle))
        pyramid = Ellipsoid((place[0], float(place[1]), float(place[2])), (11, 7, 9), turn)
        canvas.paint(pyramid, mottled(hu["kidney_medulla"], fine=4), over=(label,))
    sinus = Ellipsoid((x - side * 17 * size, y + 7 * size, z), (18 * size, 11, 27 * size), turn)
    canvas.paint(sinus, FAT, 0, over=(label,))
    pelvis = [(x - side * 10 * size, y + 5, z), (x - side * 30, y + 12, z - 12)]
    ureter = [*pelvis, (side * 38.0, -18.0, 70.0), (side * 42.0, -14.0, 0.0)]
    canvas.paint(tube(pelvis, (9 * size, 5)), hu["kidney_pelvis"])
    canvas.paint(smooth_tube([*ureter[1:], (side * 46.0, -30.0, -70.0)], 2.2), hu["kidney_pelvis"])
    if rng.random() < 0.25:
        radius = float(rng.uniform(6, 16))
        cyst = Ellipsoid(
            (x + side * 24, y, z + float(rng.uniform(-30, 30))), (radius, radius, radius)
        )
        canvas.paint(cyst, mottled(8, fine=2), label, within=frame.abdomen)


def paint_stomach(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Stomach (labelled, with what is in it): fluid or food, and gas above it."""
    rise, full = 0.8 * frame.patient.breath_mm, float(rng.uniform(0.7, 1.12))
    points = (
        *((-60, -22, 254 + rise), (-66, 4, 236 + rise), (-66, 28, 205), (-52, 44, 172)),
        *((-22, 52, 152), (14, 48, 156), (32, 34, 164)),
    )
    radii = np.asarray((33, 37, 35, 29, 22, 16, 9)) * full
    path = smooth_tube(_points(points), [float(r) for r in radii], 16)
    inner = Grown(path, -float(rng.uniform(3.5, 5.5)))
    level = float(rng.uniform(22, 52))
    canvas.paint(Grown(path, 1.5), FAT, 0, within=frame.abdomen)
    wall = mottled(frame.patient.hu["gut_wall"], fine=5)
    canvas.paint(path, wall, Organ.STOMACH, within=frame.abdomen)
    content = layered(level, -985.0, _meal(rng))
    canvas.paint(inner, content, Organ.STOMACH, within=frame.abdomen, inset_mm=4.0)


def _meal(rng: np.random.Generator) -> Filling:
    """Water, food, or contrast medium that was drunk."""
    kind = rng.choice(3, p=(0.45, 0.35, 0.2))
    if kind == 0:
        return mottled(float(rng.uniform(0, 22)), fine=3)
    if kind == 1:
        return mottled(float(rng.uniform(25, 60)), fine=22, coarse=18)
    return mottled(float(rng.uniform(150, 320)), fine=12)


def paint_pancreas(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Pancreas from the duodenum to the spleen, lobed with fat."""
    hu = frame.patient.hu["pancreas"]
    fatty = float(rng.uniform(0, 30))

    def lobed(patch: Patch) -> Float32[np.ndarray, "x y z"]:
        return (hu - fatty * np.maximum(patch.fine, 0) + 4 * patch.fine).astype(np.float32)

    points = _points(((30, 14, 142), (26, 18, 160), (2, 24, 176), (-30, 10, 190), (-62, -14, 206)))
    canvas.paint(smooth_tube(points, (14, 13, 9, 9, 8)), lobed)


def paint_veins(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Inferior vena cava (labelled), iliac and renal veins, the portal vein and its roots."""
    hu, rise = frame.patient.hu, frame.patient.breath_mm
    wide = float(rng.uniform(0.85, 1.2))
    blood = mottled(hu["vein"], fine=5)
    for side in (1, -1):
        iliac = [
            frame.before_spine(16, 42, 8),
            (side * 30.0, -28.0, 0.0),
            (side * 50, -18.0, -42.0),
        ]
        iliac += [
            (side * 56.0, 28.0, -88.0),
            (side * 66.0, 48.0, -120.0),
            (side * 70.0, 38.0, -170.0),
        ]
        canvas.paint(smooth_tube(iliac, (9, 7, 6.5, 6, 6, 5)), blood)
        kidney = [
            frame.before_spine(10, 150, 14),
            (side * 30.0, -10.0, 146),
            (side * 46.0, -28.0, 138.0),
        ]
        canvas.paint(smooth_tube(kidney, (5, 5.5, 4)), blood)
    cava = [frame.before_spine(19, z, 11) for z in (40, 80, 120, 160, 195)]
    cava += [(23.0, -20.0, 232.0), (23.0, -12.0, 262 + 0.5 * rise), (24.0, 4.0, 300 + 0.6 * rise)]
    radii = [wide * r for r in (10.5, 11, 11, 11.5, 12, 12.5, 12.5, 11)]
    canvas.paint(smooth_tube(cava, radii, 26), blood, Organ.INFERIOR_VENA_CAVA)
    portal = mottled(hu["portal_vein"], fine=4)
    trunk = _points(((6, 20, 165), (14, 12, 180), (28, 10, 200 + 0.7 * rise)))
    canvas.paint(smooth_tube(trunk, 7.0), portal)
    splenic = _points(((6, 18, 168), (-28, 2, 188), (-64, -24, 208), (-78, -34, 214)))
    canvas.paint(smooth_tube(splenic, 4.2), portal)
    canvas.paint(smooth_tube(_points(((6, 20, 165), (8, 18, 120), (18, 10, 60))), 5.0), portal)


def paint_visceral_arteries(canvas: Canvas, frame: Frame) -> None:
    """Coeliac trunk, superior mesenteric and renal arteries."""
    blood = frame.patient.hu["artery"]
    root = frame.before_spine(-8, 198, 20)
    canvas.paint(smooth_tube([root, (-4.0, 4.0, 200.0), (16.0, 8.0, 196.0)], 3.2), blood)
    root = frame.before_spine(-8, 182, 20)
    path = [root, (-4.0, 8.0, 165.0), (-2.0, 12.0, 120.0), (6.0, 8.0, 70.0)]
    canvas.paint(smooth_tube(path, 3.6), blood)
    for side, z in ((1, 134.0), (-1, 150.0)):
        path = [
            frame.before_spine(-8, 160, 8),
            (side * 24.0, -18.0, 152.0),
            (side * 46.0, -32.0, z),
        ]
        canvas.paint(smooth_tube(path, 3.0), blood)


def _points(rows: tuple[Point, ...]) -> list[Point]:
    return [(float(x), float(y), float(z)) for x, y, z in rows]
