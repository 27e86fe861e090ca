import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.evaluation.surface import hausdorff, hd95, nsd


def cube(start, side=20, shape=(40, 40, 40)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + side) for a in start)] = True
    return mask


def blob(seed, shape=(14, 12, 10)):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.8)


EMPTY = np.zeros((40, 40, 40), bool)


def test_cubes_shifted_by_3_voxels_of_1_5_mm_lie_4_5_mm_apart():
    first, second = cube((5, 5, 5)), cube((8, 5, 5))
    assert hd95(first, second, (1.5, 1.5, 1.5)) == pytest.approx(4.5)
    assert hausdorff(first, second, (1.5, 1.5, 1.5)) == pytest.approx(4.5)


@pytest.mark.parametrize(("axis", "expected"), [(0, 2.0), (1, 4.0), (2, 10.0)])
def test_distances_are_in_millimetres_along_every_axis(axis, expected):
    place = [5, 5, 5]
    place[axis] += 2
    assert hd95(cube((5, 5, 5)), cube(place), (1.0, 2.0, 5.0)) == pytest.approx(expected)


def test_the_larger_direction_counts():
    reference, prediction = cube((5, 5, 5), 6), cube((5, 5, 5), 6)
    prediction[30:33, 5:8, 5:8] = True  # a false island: far from the reference, one way only
    island = hausdorff(prediction, reference, (1.0, 1.0, 1.0))
    assert island == pytest.approx(22)
    assert hausdorff(reference, prediction, (1.0, 1.0, 1.0)) == island


def test_single_voxels_have_a_surface():
    first, second = cube((0, 0, 0), 1), cube((3, 4, 0), 1)
    assert hd95(first, second, (1.0, 1.0, 1.0)) == pytest.approx(5)


def test_the_edge_of_the_image_is_a_surface():
    full, part = np.ones((6, 6, 6), bool), np.ones((6, 6, 6), bool)
    part[5] = False
    assert hausdorff(full, part, (2.0, 1.0, 1.0)) == pytest.approx(2)


def test_empty_masks_are_undefined_or_a_miss_never_a_number():
    full = cube((5, 5, 5))
    spacing = (1.0, 1.0, 1.0)
    assert math.isnan(hd95(EMPTY, EMPTY, spacing))
    assert math.isnan(nsd(EMPTY, EMPTY, spacing, 2.0))
    assert hd95(EMPTY, full, spacing) == hd95(full, EMPTY, spacing) == math.inf
    assert nsd(EMPTY, full, spacing, 2.0) == nsd(full, EMPTY, spacing, 2.0) == 0


def test_surfaces_agree_wholly_within_the_tolerance_and_not_at_all_far_away():
    first, second = cube((5, 5, 5), 10), cube((7, 5, 5), 10)
    assert nsd(first, first, (1.0, 1.0, 1.0), 0.0) == 1
    assert nsd(first, second, (1.0, 1.0, 1.0), 2.0) == 1
    assert nsd(first, second, (1.5, 1.5, 1.5), 3.0) == 1
    assert nsd(cube((0, 0, 0), 5), cube((30, 30, 30), 5), (1.0, 1.0, 1.0), 2.0) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_distances_are_symmetric_and_grow_with_the_spacing(first, second):
    ours, theirs = blob(first), blob(second)
    once = hd95(ours, theirs, (1.0, 1.5, 2.0))
    assert hd95(theirs, ours, (1.0, 1.5, 2.0)) == pytest.approx(once)
    assert hd95(ours, theirs, (3.0, 4.5, 6.0)) == pytest.approx(3 * once)
    assert hausdorff(ours, theirs, (1.0, 1.5, 2.0)) >= once


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_larger_tolerance_never_lowers_nsd(first, second):
    ours, theirs = blob(first), blob(second)
    shares = [nsd(ours, theirs, (1.0, 1.5, 2.0), mm) for mm in (0.0, 1.0, 2.0, 100.0)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
