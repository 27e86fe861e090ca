"""What was recorded can be recorded again: how each method learns, how copies are recognised."""

import pytest

from golden import leaks
from golden.curves import LOOKS, STEPS, read, run, torsos
from voco.data.imageio import write_image
from voco.data.phantom import torso
from voco.methods import available

POINT = 3
"""The step that is looked at again."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return torsos(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", available())
def test_a_recorded_curve_is_complete(name):
    looks, bands = read(name)
    assert tuple(looks) == LOOKS
    assert looks[-1] == STEPS
    assert "loss" in bands
    for band in bands.values():
        assert len(band.low) == len(band.mean) == len(band.high) == len(looks)
        assert all(a <= b <= c for a, b, c in zip(*band, strict=True))


@pytest.mark.xdist_group("golden")
@pytest.mark.parametrize("name", available())
def test_the_first_steps_lie_in_the_recorded_band(name, store):
    figures = run(name, store, 0, upto=POINT)[POINT]
    looks, bands = read(name)
    assert set(figures) == set(bands)
    for key, value in figures.items():
        low, high = bands[key].around(looks.index(POINT))
        assert low <= value <= high, key


def test_changed_copies_of_scans_are_told_from_other_scans(tmp_path):
    for case in range(2):
        scan = torso(seed=0, case=case, spacing_mm=12.0).image
        write_image(scan, tmp_path / f"torso{case}.nii.gz")
    lines = list(leaks.measured([tmp_path]))
    assert lines[0] == "2 scans; 28 comparisons of different scans, 0 taken for one"
    assert {"| none | 2 of 2 |", "| gain | 2 of 2 |", "| coarser | 2 of 2 |"} <= set(lines)
