import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voco.evaluation.overlap import count_voxels, dice

LABELS = arrays(np.uint8, (4, 3, 5), elements=st.integers(0, 3))


def cube(shape, start, side, number=1):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(a, a + side) for a in start)] = number
    return labels


def test_cubes_of_20_voxels_shifted_by_3_have_a_dice_of_085():
    first, second = cube((40, 30, 30), (5, 5, 5), 20), cube((40, 30, 30), (8, 5, 5), 20)
    assert dice(first, second, [1]) == {1: pytest.approx(0.85)}


def test_a_class_in_neither_map_is_undefined_and_in_one_map_zero():
    empty, full = np.zeros((3, 3, 3), np.uint8), np.full((3, 3, 3), 2, np.uint8)
    assert math.isnan(dice(empty, empty, [2])[2])
    assert dice(full, empty, [2])[2] == 0
    assert dice(empty, full, [2])[2] == 0


@settings(max_examples=30, deadline=None)
@given(LABELS, LABELS)
def test_dice_is_that_of_the_masks_and_symmetric(prediction, reference):
    values = dice(prediction, reference, range(1, 4))
    assert str(values) == str(dice(reference, prediction, range(1, 4)))
    for number, value in values.items():
        ours, theirs = prediction == number, reference == number
        if ours.any() or theirs.any():
            assert value == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))


def test_counts_do_not_depend_on_the_order_in_memory():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (2, 6, 7, 4))
    expected = count_voxels(first, second)
    for other in (first.copy(), np.asfortranarray(first)):
        assert np.array_equal(count_voxels(other, np.asfortranarray(second)), expected)


def test_class_numbers_may_be_large():
    labels = np.full((2, 2, 2), 32767, np.int16)
    assert dice(labels, labels, [32767, 5])[32767] == 1
