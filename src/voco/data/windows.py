"""Unlabelled windows of the stores, a function of the seed and the step alone."""

from typing import Literal

from pydantic import NonNegativeInt

from voco.config import Config


class WindowsConfig(Config):
    """How windows are cut out of the volumes of the stores."""

    fit: Literal["crop", "plane", "resize"] = "crop"
    """``crop``: a random box at the store's spacing, padded where the volume is smaller.
    ``plane``: x and y of the whole volume are resampled to the window, z is a random slab at the
    scale of x. ``resize``: the whole volume is resampled to the window, aspect ignored."""
    foreground: bool = True
    """Whether the whole volume means its foreground box."""
    balance: Literal["case", "store"] = "case"
    """Whether every case is equally likely, or every store and then every case of it."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 loads in the training process. Results do not depend on it."""
