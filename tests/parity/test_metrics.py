"""Our metrics against MONAI's."""

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from scipy.ndimage import gaussian_filter

from voco.evaluation.overlap import dice
from voco.evaluation.surface import hausdorff, hd95, nsd

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (1.3, 2.1, 0.9)]


def blob(seed, shape=(18, 15, 12)):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 0.7)  # reaches the edge of the image


def batch(mask):
    return torch.from_numpy(mask)[None, None]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_random_blobs_equal_monai(seed, spacing):
    ours, theirs = blob(seed), blob(seed + 100)
    pair = (batch(ours), batch(theirs))
    options = {"include_background": True, "spacing": list(spacing)}
    assert dice(ours, theirs, [1])[1] == pytest.approx(float(compute_dice(*pair)), abs=1e-6)
    for percentile, value in ((95.0, hd95(ours, theirs, spacing)), (100.0, None)):
        expected = compute_hausdorff_distance(
            *pair, percentile=None if percentile == 100 else percentile, **options
        )
        found = hausdorff(ours, theirs, spacing, percentile) if value is None else value
        assert found == pytest.approx(float(expected), rel=1e-5)
    for tolerance in (0.5, 2.03):
        expected = compute_surface_dice(
            *pair, class_thresholds=[tolerance], use_subvoxels=True, **options
        )
        assert nsd(ours, theirs, spacing, tolerance) == pytest.approx(float(expected), abs=1e-4)
