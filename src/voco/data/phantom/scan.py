"""From tissue to a scan: the noise that reconstruction leaves."""

import numpy as np
from jaxtyping import Float32, Int16
from scipy.ndimage import gaussian_filter, gaussian_filter1d

_AVERAGE_PATH_MM = 300.0
"""Water that a ray crosses sideways in an average torso."""


def scanned(
    hu: Float32[np.ndarray, "x y z"],
    noise_hu: float,
    spacing_mm: float,
    rng: np.random.Generator,
) -> Int16[np.ndarray, "x y z"]:
    """Blurred by the scanner, with correlated noise, as whole HU.

    Noise is grainy within a slice and independent between slices. Where rays cross more
    tissue (shoulders, hips) there is more of it, in streaks from side to side.
    """
    blurred = gaussian_filter(hu, (0.35, 0.35, 0.25), truncate=3.0)
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    grain = gaussian_filter(white, (0.55, 0.55, 0), truncate=3.0)
    grain -= gaussian_filter(white, (1.6, 1.6, 0), truncate=3.0)
    streaks = gaussian_filter1d(white, 4.0, axis=0, truncate=3.0)
    path = np.maximum(blurred + 1000, 0).sum(axis=0) * (spacing_mm / 1000)
    load = np.clip(gaussian_filter1d(path, 1.5, axis=0) / _AVERAGE_PATH_MM, 0.3, 1.7)[None]
    noise = load**1.3 * grain / grain.std()
    noise += np.maximum(load - 1.0, 0) * 0.7 * streaks / streaks.std()
    level = noise_hu * (1 + 0.1 * rng.standard_normal())
    return np.clip(np.rint(blurred + level * noise), -1024, 3071).astype(np.int16)
