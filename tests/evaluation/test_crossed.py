import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from voco.evaluation.crossed import (
    Noise,
    bootstrap,
    crossed_test,
    over_trainings,
    training_noise,
)


def test_noise_is_what_neither_rows_nor_seeds_explain():
    # Means of two rows: 1 and 3; of two seeds: 1 and 3. The rest is +1, -1, -1, +1; one degree of
    # freedom is left to it.
    noise = training_noise(np.array([[1.0, 1.0], [1.0, 5.0]]))
    assert noise == Noise(variance=4.0, freedom=1)


def test_what_all_rows_share_is_no_noise():
    rows, seeds = np.array([[0.1], [0.5], [0.7]]), np.array([[0.0, 3.0, -2.0, 9.0]])
    noise = training_noise(rows + seeds)
    assert noise is not None
    assert noise.variance == pytest.approx(0, abs=1e-25)
    assert noise.freedom == 6


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_one_row_or_one_seed_tells_nothing_of_noise(shape):
    assert training_noise(np.zeros(shape)) is None


def test_where_cases_agree_the_test_is_a_t_test_with_the_noise_of_two_rows():
    difference = np.array([[0.02] * 4, [0.04] * 4])  # the seeds differ, the cases do not
    noise = Noise(variance=0.0001, freedom=7)
    found = crossed_test(difference, noise)
    error = math.sqrt(2 * 0.0001 / 2)
    assert found.mean == pytest.approx(0.03)
    assert found.p == pytest.approx(2 * student.sf(0.03 / error, 7))
    assert found.high - found.mean == pytest.approx(student.ppf(0.975, 7) * error)


def test_without_noise_of_trainings_the_test_is_the_paired_t_test_of_the_cases():
    per_case = np.array([0.01, 0.03, -0.02, 0.05, 0.04])
    found = crossed_test(np.stack([per_case, per_case]), Noise(0.0, 3))
    error = per_case.std(ddof=1) / math.sqrt(5)
    assert found.p == pytest.approx(2 * student.sf(per_case.mean() / error, 4))


def test_no_difference_at_all_is_no_difference_and_a_constant_one_is_certain():
    still = Noise(0.0, 3)
    assert crossed_test(np.zeros((2, 3)), still).p == 1.0
    assert crossed_test(np.full((2, 3), 0.1), still).p == 0.0


def test_rows_that_differ_by_chance_alone_are_seldom_told_apart():
    generator = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        # Four equal rows, three seeds, twenty cases; trainings differ as much as cases do.
        scores = (
            generator.normal(0, 0.05, (1, 1, 20))
            + generator.normal(0, 0.01, (1, 3, 1))
            + generator.normal(0, 0.01, (4, 3, 1))
            + generator.normal(0, 0.02, (4, 3, 20))
        )
        noise = training_noise(scores.mean(axis=2))
        assert noise is not None
        false += crossed_test(scores[1] - scores[0], noise).p < 0.05
    assert false <= 20  # 5 % are 10; a test of the cases alone gives more than 60


def test_the_interval_of_equal_values_is_their_value():
    assert bootstrap(np.full((3, 5), 0.25)) == (0.25, 0.25)


def test_one_value_has_no_interval():
    assert all(map(math.isnan, bootstrap(np.array([[0.5]]))))


def test_with_one_seed_only_cases_are_resampled():
    values = np.array([[0.0, 1.0]])
    # The means of two cases drawn with replacement: 0, a half (twice as likely), 1.
    assert bootstrap(values) == (0.0, 1.0)
    assert bootstrap(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])) == (0.0, 1.0)


def test_gaps_are_left_out_of_means():
    values = np.array([[0.2, math.nan, 0.6], [0.4, math.nan, math.nan]])
    assert over_trainings(values) == pytest.approx([0.3, math.nan, 0.6], nan_ok=True)
    low, high = bootstrap(values)
    assert 0.2 <= low <= 0.45 <= high <= 0.6


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=4))
def test_the_interval_holds_the_mean_and_the_sign_only_turns_it(table):
    difference = np.array(table)
    noise = Noise(0.01, 4)
    found, turned = crossed_test(difference, noise), crossed_test(-difference, noise)
    assert found.low <= found.mean <= found.high
    assert turned.p == pytest.approx(found.p)
    assert turned.low == pytest.approx(-found.high)
    assert 0 <= found.p <= 1
