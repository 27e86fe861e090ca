"""Intervals and tests: how sure one may be of a mean, and of a difference.

Cases are what is resampled, never voxels: the interval says what other cases of the same kind
would give. All random numbers come from the seed that is passed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import norm, wilcoxon

RESAMPLES = 5000
"""Bootstrap samples; the ends of a 95 % interval then stand on 125 samples each."""

LEVEL = 0.95
"""Coverage of the intervals."""

_EXACT_PAIRS = 14
"""Up to so many pairs all sign flips are enumerated (2 ** 14 = 16384)."""

_ROWS = 1000
"""Resamples drawn at a time, to bound memory."""

Values = Float64[np.ndarray, "n"]
"""One number per case."""

Numbers = Sequence[float] | Values
"""The same, in any form."""


class Summary(NamedTuple):
    """What is known of a mean.

    Attributes:
        mean: Over the finite values.
        std: Standard deviation over them (of a sample: divided by ``cases - 1``).
        low: Lower end of the bootstrap interval of the mean.
        high: Upper end.
        cases: How many finite values.
    """

    mean: float
    std: float
    low: float
    high: float
    cases: int


class Comparison(NamedTuple):
    """What is known of the difference of two methods on the same cases.

    Attributes:
        cases: How many have a finite value from both.
        first: Mean of the first over these cases.
        second: Mean of the second.
        difference: First minus second.
        low: Lower end of the bootstrap interval of the mean difference.
        high: Upper end.
        effect: Mean difference over its standard deviation (Cohen's d of paired samples).
        higher: Cases in which the first is higher.
        lower: Cases in which it is lower.
        wilcoxon_p: Two-sided p of Wilcoxon's signed-rank test.
        permutation_p: Two-sided p of the sign-flip test of the mean; exact up to 14 cases.
    """

    cases: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    effect: float
    higher: int
    lower: int
    wilcoxon_p: float
    permutation_p: float


def summarise(values: Numbers, seed: int = 0, resamples: int = RESAMPLES) -> Summary:
    """Mean, standard deviation and interval of the finite values.

    With one value there is no standard deviation and no interval (``nan``); with none, no mean.
    """
    finite = _finite(values)
    if len(finite) == 0:
        return Summary(*[math.nan] * 4, cases=0)
    std = float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
    low, high = bootstrap_interval(finite, seed, resamples)
    return Summary(float(finite.mean()), std, low, high, len(finite))


def bootstrap_interval(
    values: Values, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the mean: bias-corrected and accelerated bootstrap (Efron, JASA 1987).

    Against the plain percentile interval it corrects for skew, which Dice values near 1 have.

    Args:
        values: One finite number per case.
        seed: Of the resampling.
        resamples: How many bootstrap samples.
        level: Coverage, between 0 and 1.

    Returns:
        ``nan`` twice for fewer than two values.
    """
    if len(values) < 2:
        return (math.nan, math.nan)
    if np.ptp(values) == 0:
        return (float(values[0]), float(values[0]))
    means = np.concatenate(
        [values[rows].mean(axis=1) for rows in resampled_rows(len(values), seed, resamples)]
    )
    return _corrected(means, values, level)


def bootstrap_statistic(
    statistic: Callable[[Int64[np.ndarray, "n"]], float],
    count: int,
    seed: int = 0,
    resamples: int = 1000,
    level: float = LEVEL,
) -> Summary:
    """Percentile interval of any figure of a set of cases.

    Args:
        statistic: From the row numbers of the cases of a sample to the figure. ``nan`` where the
            sample does not define it (a class without a case): such samples are left out.
        count: Cases in the set.
        seed: Of the resampling.
        resamples: How many bootstrap samples.
        level: Coverage, between 0 and 1.

    Returns:
        The figure of the set itself as ``mean``, the spread over the samples as ``std``.
    """
    value = statistic(np.arange(count))
    if count < 2 or not math.isfinite(value):
        return Summary(value, math.nan, math.nan, math.nan, count)
    drawn = [statistic(rows) for block in resampled_rows(count, seed, resamples) for rows in block]
    samples = _finite(drawn)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Summary(value, float(samples.std(ddof=1)), float(low), float(high), count)


def compare(
    first: Numbers, second: Numbers, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """The difference of two methods measured on the same cases, in the same order.

    Cases in which either value is not finite are left out.

    Raises:
        ValueError: If the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need equally many values, got {len(first)} and {len(second)}.")
    pairs = np.asarray([first, second], float)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    difference = pairs[0] - pairs[1]
    count = len(difference)
    if count == 0:
        return Comparison(0, *[math.nan] * 6, higher=0, lower=0, wilcoxon_p=1.0, permutation_p=1.0)
    low, high = bootstrap_interval(difference, seed, resamples)
    spread = float(difference.std(ddof=1)) if count > 1 else math.nan
    return Comparison(
        cases=count,
        first=float(pairs[0].mean()),
        second=float(pairs[1].mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        effect=float(difference.mean()) / spread if spread > 0 else math.nan,
        higher=int((difference > 0).sum()),
        lower=int((difference < 0).sum()),
        wilcoxon_p=wilcoxon_p(difference),
        permutation_p=sign_flip_p(difference, seed),
    )


def sign_flip_p(difference: Values, seed: int = 0, flips: int = 10_000) -> float:
    """Two-sided p of the hypothesis that differences are symmetric about 0 (Fisher 1935).

    All sign flips are enumerated up to 14 pairs; beyond, ``flips`` random ones are drawn and the
    observed one is counted among them, so p is never 0.

    Args:
        difference: One number per pair, finite.
        seed: Of the random flips.
        flips: How many of them.
    """
    count = len(difference)
    observed = abs(difference.sum())
    # Flips that should give the observed sum give it up to rounding only.
    limit = observed - 1e-9 * np.abs(difference).sum()
    if count <= _EXACT_PAIRS:
        bits = np.arange(1 << count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * bits) @ difference) >= limit).mean())
    generator = np.random.default_rng(seed)
    hits = sum(
        int((np.abs(generator.choice([-1.0, 1.0], (rows, count)) @ difference) >= limit).sum())
        for rows in _blocks(flips)
    )
    return (hits + 1) / (flips + 1)


def wilcoxon_p(difference: Values) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences of zero are left out.

    Args:
        difference: One number per pair, finite.
    """
    moved = difference[difference != 0]
    return float(np.asarray(wilcoxon(moved))[1]) if len(moved) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of several tests (Holm, Scand. J. Statist. 1979); ``nan`` stays ``nan``.

    Rejecting what is below 0.05 keeps the chance of any false rejection at 5 %.
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = highest
    return adjusted


def resampled_rows(count: int, seed: int, resamples: int) -> Iterator[Int64[np.ndarray, "_ n"]]:
    """Row numbers of the bootstrap samples of a set, some at a time."""
    generator = np.random.default_rng(seed)
    for rows in _blocks(resamples):
        yield generator.integers(0, count, (rows, count))


def _blocks(total: int) -> Iterator[int]:
    for start in range(0, total, _ROWS):
        yield min(_ROWS, total - start)


def _finite(values: Numbers) -> Values:
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def _corrected(
    means: Float64[np.ndarray, "r"], values: Values, level: float
) -> tuple[float, float]:
    """The ends of the interval, moved for bias and skew (Efron 1987, equations 2.3 and 6.6)."""
    below = (means < values.mean()).sum() + 0.5 * (means == values.mean()).sum()
    bias = norm.ppf(np.clip(below / len(means), 0.5 / len(means), 1 - 0.5 / len(means)))
    # Leaving out one case moves the mean by its deviation over n - 1: no need to compute it.
    deviation = values - values.mean()
    skew = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    z = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, norm.cdf(bias + z / (1 - skew * z)))
    return (float(low), float(high))
