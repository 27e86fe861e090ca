"""Labelled synthetic torso CTs, drawn from a seed.

Every case is another patient in another scan: size, fat, pose, breathing, the shape and size of
the organs, field of view, contrast phase, noise. Organs that look alike in CT (liver, spleen,
kidney, muscle) get HU that overlap, so that place and shape tell them apart, not brightness alone.
The anatomy is made of analytic solids (:mod:`~voco.data.phantom.shapes`) with measures of an
average adult, painted in a fixed order over one smoothly bent coordinate system.
"""

from typing import NamedTuple

import numpy as np

from voco.data.phantom.abdomen import (
    paint_kidneys,
    paint_liver,
    paint_pancreas,
    paint_spleen,
    paint_stomach,
    paint_veins,
    paint_visceral_arteries,
)
from voco.data.phantom.bones import (
    draw_bone,
    paint_pelvis,
    paint_ribs,
    paint_shoulders,
    paint_spine,
    paint_sternum,
)
from voco.data.phantom.bowel import (
    paint_bladder,
    paint_colon,
    paint_mesentery,
    paint_small_bowel,
)
from voco.data.phantom.canvas import Canvas
from voco.data.phantom.chest import paint_aorta, paint_lungs, paint_mediastinum
from voco.data.phantom.frame import Frame
from voco.data.phantom.organs import Organ
from voco.data.phantom.patient import PROTOCOLS, Patient, draw_patient
from voco.data.phantom.pose import pose
from voco.data.phantom.scan import scanned
from voco.data.phantom.wall import (
    paint_deep_muscles,
    paint_diaphragm,
    paint_table,
    paint_wall,
)
from voco.volume import Volume

CLASSES: dict[int, str] = {int(organ): organ.name.lower() for organ in Organ}
"""Label values and their names."""

__all__ = ["CLASSES", "Organ", "Patient", "Torso", "torso"]


class Torso(NamedTuple):
    """One case."""

    image: Volume
    """int16 HU, one channel, RAS+."""
    label: Volume
    """uint8 values of :data:`CLASSES`, on the grid of the image."""
    patient: Patient
    """Who was drawn, and how the scan was made."""


def torso(seed: int, case: int = 0, spacing_mm: float = 5.0) -> Torso:
    """A synthetic CT of a torso and its label.

    Args:
        seed: Seed of the collection.
        case: Number of the case in it. The patient and the scan depend on both numbers alone.
        spacing_mm: Edge of a voxel.

    Returns:
        Image, label and the patient; same arguments, same voxels.
    """
    streams = np.random.default_rng([seed, case]).spawn(6)
    patient = draw_patient(PROTOCOLS[case % len(PROTOCOLS)], streams[0])
    placed, grid = pose(patient, spacing_mm, streams[1])
    canvas = Canvas(placed, streams[2])
    _paint(canvas, Frame(patient), streams[3])
    if streams[4].random() < 0.75:
        paint_table(canvas, streams[4])
    image = scanned(canvas.hu, patient.noise_hu, spacing_mm, streams[5])
    return Torso(Volume(image[None], grid), Volume(canvas.label[None], grid), patient)


def _paint(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Everything, in the order in which things cover one another."""
    bone = draw_bone(rng)
    paint_wall(canvas, frame, rng)
    paint_lungs(canvas, frame, rng)
    paint_diaphragm(canvas, frame)
    paint_deep_muscles(canvas, frame)
    paint_mediastinum(canvas, frame, rng)
    paint_liver(canvas, frame, rng)
    paint_spleen(canvas, frame, rng)
    paint_kidneys(canvas, frame, rng)
    paint_mesentery(canvas, rng)
    paint_small_bowel(canvas, frame, rng)
    paint_stomach(canvas, frame, rng)
    paint_colon(canvas, frame, rng)
    paint_pancreas(canvas, frame, rng)
    paint_veins(canvas, frame, rng)
    paint_aorta(canvas, frame, rng)
    paint_visceral_arteries(canvas, frame)
    paint_bladder(canvas, frame, rng)
    paint_spine(canvas, frame, bone)
    paint_ribs(canvas, frame, bone)
    paint_sternum(canvas, frame, bone)
    paint_shoulders(canvas, bone)
    paint_pelvis(canvas, frame, bone)
