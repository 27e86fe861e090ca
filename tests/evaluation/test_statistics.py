import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_statistic,
    compare,
    holm,
    sign_flip_p,
    summarise,
)


def normal(seed, count=40, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_the_interval_of_a_normal_mean_is_about_two_standard_errors_wide():
    values = normal(0, 200)
    low, high = bootstrap_interval(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert low < values.mean() < high


def test_95_of_100_intervals_hold_the_true_mean():
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(normal(seed, 30, mean=3.0), seed, 500)
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_interval_leans_towards_the_long_tail():
    skewed = np.exp(normal(1, 60))
    low, high = bootstrap_interval(skewed)
    assert high - skewed.mean() > skewed.mean() - low


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = normal(2)
    assert bootstrap_interval(values, 5) == bootstrap_interval(values, 5)
    assert bootstrap_interval(values, 5) != bootstrap_interval(values, 6)


def test_one_value_has_no_interval_and_equal_values_have_a_point():
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([0.5])))
    assert bootstrap_interval(np.full(4, 0.5)) == (0.5, 0.5)


def test_misses_are_left_out_of_the_mean_and_the_count():
    summary = summarise([1.0, 3.0, math.nan, math.inf])
    assert (summary.mean, summary.cases) == (2.0, 2)
    assert summary.std == pytest.approx(math.sqrt(2))
    assert summarise([math.nan]).cases == 0
    assert math.isnan(summarise([]).mean)


def test_sign_flips_of_few_pairs_are_exact():
    # All of three positive: of 8 sign patterns two are as extreme.
    assert sign_flip_p(np.array([0.1, 0.2, 0.3])) == pytest.approx(2 / 8)
    assert sign_flip_p(np.zeros(4)) == 1
    assert sign_flip_p(np.arange(1.0, 11.0)) == pytest.approx(2 / 2**10)


def test_random_flips_agree_with_the_exact_ones():
    values = normal(3, 14, mean=0.4)
    exact = sign_flip_p(values)
    padded = np.concatenate([values, np.zeros(1)])  # a zero changes no sum, but the path
    assert sign_flip_p(padded) == pytest.approx(exact, abs=0.02)


def test_no_difference_is_rejected_as_often_as_its_level_says():
    p_values = [sign_flip_p(normal(seed, 10)) for seed in range(300)]
    assert np.mean(np.asarray(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_a_clear_difference_is_found_by_both_tests_and_by_the_interval():
    second = normal(4, 12)
    found = compare(second + 0.5 + 0.1 * normal(5, 12), second)
    assert found.low > 0
    assert found.wilcoxon_p < 0.01
    assert found.permutation_p < 0.01
    assert (found.cases, found.higher, found.lower) == (12, 12, 0)
    assert found.difference == pytest.approx(found.first - found.second)


def test_pairs_with_a_miss_are_left_out_of_a_comparison():
    found = compare([1.0, math.inf, 3.0], [0.0, 2.0, math.nan])
    assert (found.cases, found.difference) == (1, 1.0)
    assert compare([math.nan], [1.0]).cases == 0


def test_equal_methods_give_p_1():
    found = compare([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert found.wilcoxon_p == found.permutation_p == 1
    assert (found.low, found.high) == (0, 0)
    assert math.isnan(found.effect)


def test_a_comparison_needs_pairs():
    with pytest.raises(ValueError, match="equally many"):
        compare([1.0], [1.0, 2.0])


def test_holm_multiplies_by_what_is_still_to_be_tested():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    undefined = holm([math.nan, 0.02])
    assert math.isnan(undefined[0])
    assert undefined[1] == 0.02


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_its_order(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.asarray(adjusted)[order]) >= 0)


def test_samples_in_which_a_figure_is_undefined_are_left_out():
    values = normal(6, 20)
    seen = bootstrap_statistic(
        lambda rows: math.nan if 0 in rows else float(values[rows].mean()) + 0 * len(rows), 20
    )
    assert math.isnan(seen.mean)  # undefined for the set itself: no interval is made up
    fine = bootstrap_statistic(
        lambda rows: float(values[rows].mean()) if 3 in rows else math.nan, 20, resamples=200
    )
    assert fine.low < fine.mean < fine.high
