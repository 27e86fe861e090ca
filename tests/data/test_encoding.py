"""Intensities as int16 and their statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.data.encoding import Encoding, choose_encoding, describe, histogram, percentile


def stored(channel, encoding):
    rounded = np.rint(encoding.stored(channel))
    assert rounded.min() >= -32768
    assert rounded.max() <= 32767
    return rounded.astype(np.int16)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "float32", "float64"])
def test_whole_numbers_within_int16_stay_exactly_themselves(dtype):
    channel = np.arange(0, 2 if dtype == "bool" else 100).reshape(-1, 1, 1).astype(dtype)
    assert choose_encoding(channel, "unknown") == Encoding(1.0, 0.0)


def test_unsigned_16_bit_is_exact():
    channel = np.array([0, 1, 40000, 65535], np.uint16).reshape(4, 1, 1)
    encoding = choose_encoding(channel, "MR")
    values = stored(channel, encoding) * encoding.scale + encoding.offset
    assert np.array_equal(values, channel)


def test_a_ct_with_fractions_has_steps_of_one_hu():
    channel = np.linspace(-1024, 3000, 64).reshape(4, 4, 4)
    assert choose_encoding(channel, "CT") == Encoding(1.0, 0.0)


def test_a_ct_between_0_and_1_is_not_wiped_out():
    channel = np.linspace(0, 1, 64).reshape(4, 4, 4)
    assert choose_encoding(channel, "CT").scale < 1e-3


@settings(max_examples=100, deadline=None)
@given(
    exponent=st.floats(-30, 30),
    shift=st.floats(-1e3, 1e3),
    outlier=st.sampled_from([0.0, 10.0, 1e3, 1e6]),
    seed=st.integers(0, 99),
)
def test_no_value_is_clipped_or_off_by_more_than_half_a_step(exponent, shift, outlier, seed):
    channel = np.random.default_rng(seed).normal(size=(8, 8, 8)) + shift
    channel[0, 0, 0] += outlier
    channel *= 10.0**exponent
    encoding = choose_encoding(channel, "MR")
    error = stored(channel, encoding) * encoding.scale + encoding.offset - channel
    assert np.abs(error).max() <= 0.505 * encoding.scale


def test_fractions_have_12_bits_over_their_central_99_percent():
    channel = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    encoding = choose_encoding(channel, "MR")
    low, high = np.percentile(channel, (0.5, 99.5))
    assert encoding.scale == pytest.approx((high - low) / 4095, rel=1e-6)
    assert encoding.offset == 0


def test_an_extreme_value_that_leaves_few_steps_is_said():
    channel = np.random.default_rng(0).random((16, 16, 16))
    channel[0, 0, 0] = 1e4
    encoding = choose_encoding(channel, "MR")
    assert encoding.warning is not None
    assert "clip them before preparing" in encoding.warning


@pytest.mark.parametrize("value", [0.0, 0.5, -3.7e9])
def test_a_constant_is_exact(value):
    channel = np.full((2, 2, 2), value)
    encoding = choose_encoding(channel, "MR")
    assert np.all(stored(channel, encoding) * encoding.scale + encoding.offset == value)


def test_statistics_are_of_the_foreground_in_source_units():
    channel = np.array([-1000] * 10 + [0, 10, 20, 30], np.int16).reshape(14, 1, 1)
    facts = describe(histogram(channel), histogram(channel[1:]), Encoding(2.0, 5.0), -500.0)
    assert (facts.minimum, facts.maximum) == (-1995.0, 65.0)
    assert facts.mean == pytest.approx(2 * 15 + 5)
    assert facts.std == pytest.approx(2 * np.std([0, 10, 20, 30]))
    assert facts.percentiles["50"] == 2 * 10 + 5
    assert facts.percentiles["99.5"] == 2 * 30 + 5


def test_statistics_are_of_everything_where_there_is_no_foreground():
    channel = np.array([-1000, -900], np.int16).reshape(2, 1, 1)
    counts = histogram(channel)
    assert describe(counts, counts, Encoding(1.0, 0.0), -500.0).mean == -950


@given(
    values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=50), percent=st.floats(0, 100)
)
def test_a_percentile_is_the_inverted_distribution(values, percent):
    counts = histogram(np.array(values, np.int16).reshape(-1, 1, 1))
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(counts, percent) == pytest.approx(expected)
