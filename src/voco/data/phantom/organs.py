"""The classes of the labels."""

from enum import IntEnum


class Organ(IntEnum):
    """Label values; left and right are the patient's."""

    BACKGROUND = 0
    LUNG_RIGHT = 1
    LUNG_LEFT = 2
    HEART = 3
    AORTA = 4
    INFERIOR_VENA_CAVA = 5
    LIVER = 6
    SPLEEN = 7
    STOMACH = 8
    KIDNEY_RIGHT = 9
    KIDNEY_LEFT = 10
    BLADDER = 11
    VERTEBRAE = 12
    RIBS = 13
    PELVIS = 14
