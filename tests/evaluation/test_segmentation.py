import math

import numpy as np
import pytest

from voco.evaluation.overlap import dice
from voco.evaluation.segmentation import measure
from voco.evaluation.surface import hd95, nsd

SPACING = (1.0, 1.5, 2.0)


def labels(seed):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 4, (4, 4, 3)).astype(np.uint8)
    return coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)


def test_every_class_has_the_metrics_of_its_own_masks():
    prediction, reference = labels(1), labels(2)
    classes = {1: "liver", 2: "spleen", 3: "aorta"}
    scores = measure("a", prediction, reference, SPACING, classes, tolerance_mm=1.0)
    values = {(score.structure, score.metric): score.value for score in scores}
    for number, name in classes.items():
        ours, theirs = prediction == number, reference == number
        assert values[name, "dice"] == dice(prediction, reference, [number])[number]
        assert values[name, "hd95"] == pytest.approx(hd95(ours, theirs, SPACING))
        assert values[name, "nsd"] == pytest.approx(nsd(ours, theirs, SPACING, 1.0))
    assert {score.unit for score in scores if score.metric == "hd95"} == {"mm"}


def test_a_class_that_is_nowhere_is_undefined_in_every_metric():
    empty = np.zeros((4, 4, 4), np.uint8)
    assert all(math.isnan(s.value) for s in measure("a", empty, empty, SPACING, {7: "cyst"}))


def test_a_missed_class_has_dice_0_and_no_finite_distance():
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[1:3, 1:3, 1:3] = 2
    missed = measure("a", np.zeros_like(reference), reference, SPACING, {2: "spleen"})
    assert [score.value for score in missed] == [0, math.inf, 0]


def test_masks_may_be_boolean_and_only_the_metrics_asked_for_are_computed():
    mask = np.ones((3, 3, 3), bool)
    scores = measure("a", mask, mask, SPACING, {1: "all"}, metrics=("dice",))
    assert [(score.metric, score.value) for score in scores] == [("dice", 1)]
