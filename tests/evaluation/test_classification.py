import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.evaluation.classification import (
    accuracy,
    auroc,
    balanced_accuracy,
    confusion,
    f1,
    macro_auroc,
    macro_f1,
    summarise,
)


def one_hot(classes, count):
    return np.eye(count)[np.asarray(classes)]


def test_auroc_counts_the_pairs_in_the_right_order():
    positive = np.array([True, True, False, False])
    assert auroc(positive, np.array([4.0, 3.0, 2.0, 1.0])) == 1
    assert auroc(positive, np.array([1.0, 2.0, 3.0, 4.0])) == 0
    assert auroc(positive, np.array([4.0, 2.0, 3.0, 1.0])) == pytest.approx(3 / 4)


def test_equal_scores_count_one_half():
    assert auroc(np.array([True, False, False]), np.ones(3)) == 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=12))
def test_auroc_is_the_share_of_pairs(rows):
    positive = np.array([row[0] for row in rows])
    score = np.array([float(row[1]) for row in rows])
    value = auroc(positive, score)
    if positive.all() or not positive.any():
        assert math.isnan(value)
        return
    gaps = score[positive][:, None] - score[~positive][None]
    assert value == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_two_classes_and_their_mirror_image_have_one_auroc():
    generator = np.random.default_rng(0)
    targets, scores = generator.integers(0, 2, 30), generator.random((30, 2))
    assert macro_auroc(targets, scores) == pytest.approx(macro_auroc(1 - targets, scores[:, ::-1]))


def test_three_classes_have_the_mean_of_one_against_the_rest():
    targets = np.array([0, 1, 2, 0, 1, 2])
    scores = np.random.default_rng(1).random((6, 3))
    each = [auroc(targets == k, scores[:, k]) for k in range(3)]
    assert macro_auroc(targets, scores) == pytest.approx(np.mean(each))


def test_a_class_without_cases_leaves_auroc_undefined():
    scores = np.random.default_rng(2).random((4, 3))
    assert math.isnan(macro_auroc(np.array([0, 1, 0, 1]), scores))
    assert math.isnan(summarise(np.array([0, 0, 0]), scores[:3, :2])["auroc"].mean)


def test_balanced_accuracy_weighs_classes_not_cases():
    targets, predicted = np.array([0, 0, 0, 1]), one_hot([0, 0, 0, 0], 2)
    assert accuracy(targets, predicted) == 0.75
    assert balanced_accuracy(targets, predicted) == 0.5


def test_f1_is_that_of_the_confusion_table():
    targets, predicted = np.array([0, 0, 1, 1, 1, 2]), one_hot([0, 1, 1, 1, 2, 2], 3)
    table = confusion(targets, predicted)
    assert table.tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    each = [2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(3)]
    assert macro_f1(targets, predicted) == pytest.approx(np.mean(each))
    nothing = np.zeros(3, bool)
    assert math.isnan(f1(nothing, nothing))


def test_every_metric_has_an_interval_around_it():
    generator = np.random.default_rng(3)
    targets = generator.integers(0, 2, 60)
    scores = one_hot(targets, 2) + generator.normal(0, 1, (60, 2))
    for summary in summarise(targets, scores, resamples=300).values():
        assert summary.low < summary.mean < summary.high
        assert summary.cases == 60
