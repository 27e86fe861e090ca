"""From stored voxels to the network's range."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.data.intensity import (
    ModalityIntensity,
    PercentileIntensity,
    WindowIntensity,
    ZScoreIntensity,
    apply,
)
from voco.data.store import ChannelStatistics

NAMES = ("0.5", "1", "5", "50", "95", "99", "99.5")
MR = ChannelStatistics(
    minimum=0,
    maximum=900,
    mean=300,
    std=100,
    percentiles=dict(zip(NAMES, (50, 60, 80, 280, 500, 640, 650), strict=True)),
)
MASK = ChannelStatistics(
    minimum=0, maximum=255, mean=255, std=0, percentiles=dict.fromkeys(NAMES, 255.0)
)
FLAT = ChannelStatistics(minimum=7, maximum=7, mean=7, std=0, percentiles=dict.fromkeys(NAMES, 7.0))


def case(statistics=MR, modality="MR", scale=1.0, offset=0.0):
    return SimpleNamespace(
        statistics=(statistics,), modality=modality, scale=(scale,), offset=(offset,)
    )


def seen(config, given_case, *values):
    """What the network sees of values in source units."""
    ramp = config.ramp(given_case)
    (scale,), (offset,) = given_case.scale, given_case.offset
    stored = (torch.tensor(values, dtype=torch.float64) - offset) / scale
    gain, bias = torch.tensor([ramp.gain]), torch.tensor([ramp.bias])
    volumes = apply(stored.view(1, 1, -1, 1, 1), gain, bias, ramp.low, ramp.high)
    return volumes.flatten().tolist()


def test_a_window_maps_its_ends_to_0_and_1_and_clips():
    config = WindowIntensity(low=-175, high=250)
    values = seen(config, case(modality="CT"), -1000, -175, 37.5, 250, 3000)
    assert values == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)


@given(scale=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_the_stored_scale_does_not_show(scale, offset):
    values = seen(WindowIntensity(), case(scale=scale, offset=offset), -100, 0, 100)
    assert values == pytest.approx([75 / 425, 175 / 425, 275 / 425], abs=1e-4)


def test_percentiles_are_of_each_case():
    assert seen(PercentileIntensity(), case(), 50, 350, 650) == pytest.approx([0, 0.5, 1])


def test_z_scores_have_zero_mean_and_unit_deviation_and_a_limit():
    values = seen(ZScoreIntensity(limit=3.0), case(), 300, 400, 100, 9000)
    assert values == pytest.approx([0, 1, -2, 3], abs=1e-5)


def test_modality_decides_between_window_and_percentiles():
    config = ModalityIntensity(low=0, high=100)
    assert seen(config, case(modality="CT"), 50) == pytest.approx([0.5])
    assert seen(config, case(modality="unknown"), 350) == pytest.approx([0.5])


def test_a_mask_whose_foreground_has_one_value_does_not_vanish():
    assert seen(PercentileIntensity(), case(MASK), 0, 255) == pytest.approx([0, 1])
    low, high = seen(ZScoreIntensity(), case(MASK), 0, 255)
    assert low < high


@pytest.mark.parametrize("config", [PercentileIntensity(), ZScoreIntensity(), ModalityIntensity()])
def test_a_constant_volume_stays_finite(config):
    assert all(abs(value) <= 5 for value in seen(config, case(FLAT), 7, 7))
