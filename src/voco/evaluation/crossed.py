"""Means over seeds and cases at once: how sure one may be of them.

Every training (seed) is measured on the same cases, so the two are crossed. Both are drawn from
more that might have been, and a figure that is to hold for other seeds and other cases must be
sure of both. Two ways:

:func:`bootstrap` resamples seeds and cases, each with replacement and independently of the other
(the pigeonhole bootstrap: Owen, Ann. Appl. Stat. 2007). It needs no distribution, but two or three
seeds hardly show how much seeds differ, and its intervals are too narrow then.

:func:`crossed_test` is for differences of two rows, on which claims are built. How much a training
differs by chance is estimated from all rows together (:func:`training_noise`: rows and seeds as the
two factors of a table, whose rest is this noise), since a row's own two or three trainings tell
next to nothing of it; it is taken to be the same for all rows. How much cases differ is the pair's
own. The variances add up, and the degrees of freedom are Satterthwaite's (Biometrics Bull. 1946).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import t as student

from voco.evaluation.statistics import LEVEL

RESAMPLES = 2000
"""Bootstrap samples; the ends of a 95 % interval then stand on 50 samples each."""

_NOTHING = 1e-24
"""A variance that rounding alone may give."""

Trainings = Float64[np.ndarray, "s c"]
"""By seed and case; ``nan`` where there is no value."""


class Noise(NamedTuple):
    """How much the mean of a training over the cases differs by chance.

    Attributes:
        variance: Of the mean of one training of one row.
        freedom: Degrees of freedom of that estimate.
    """

    variance: float
    freedom: float


class Crossed(NamedTuple):
    """What is known of a mean difference, seeds and cases being random.

    Attributes:
        mean: Over both.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p of the hypothesis that it is 0.
    """

    mean: float
    low: float
    high: float
    p: float


def training_noise(means: Float64[np.ndarray, "r s"]) -> Noise | None:
    """The noise of trainings, from the means of several rows with the same seeds.

    What is common to all rows of a seed (which cases were labelled) is no noise: it cancels in
    every difference.

    Returns:
        ``None`` for fewer than two rows or two seeds.
    """
    rows, seeds = means.shape
    freedom = (rows - 1) * (seeds - 1)
    if not freedom:
        return None
    rest = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    return Noise(float((rest**2).sum() / freedom), freedom)


def crossed_test(difference: Trainings, noise: Noise) -> Crossed:
    """Mean difference of two rows, its interval and its test.

    Args:
        difference: Of two seeds and two cases or more, without gaps.
        noise: Of either row.
    """
    seeds, cases = difference.shape
    mean = float(difference.mean())
    by_case, rest = _squares(difference)
    # Both rows have the noise. That of cases which seeds share comes in addition.
    parts = [(2 * noise.variance / seeds, noise.freedom)]
    variance = parts[0][0]
    if by_case > rest:
        variance += (by_case - rest) / difference.size
        parts.append((by_case / difference.size, cases - 1))
        parts.append((rest / difference.size, (seeds - 1) * (cases - 1)))
    if variance <= _NOTHING:
        return Crossed(mean, mean, mean, 0.0 if abs(mean) > math.sqrt(_NOTHING) else 1.0)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    error = math.sqrt(variance)
    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * student.sf(abs(mean) / error, freedom))
    return Crossed(mean, mean - reach, mean + reach, p)


def bootstrap(values: Trainings, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of the mean (of each case over its trainings, then over cases).

    A factor with a single level is left as it is; ``nan`` where nothing varies.

    Args:
        values: The table; may have gaps.
        seed: Of the resampling.
        resamples: How many bootstrap samples.
    """
    if values.size == 1:
        return (math.nan, math.nan)
    generator = np.random.default_rng(seed)
    seeds, cases = (draw_weights(generator, count, resamples) for count in values.shape)
    there = np.isfinite(values)
    total = seeds @ there.astype(float)
    per_case = seeds @ np.where(there, values, 0.0) / np.where(total > 0, total, 1.0)
    weights = cases * (total > 0)
    sums, counts = (weights * per_case).sum(axis=1), weights.sum(axis=1)
    return ends(sums[counts > 0] / counts[counts > 0])


def over_trainings(values: Trainings) -> Float64[np.ndarray, "c"]:
    """Of each case, the mean over its trainings; ``nan`` where none has a value."""
    there = np.isfinite(values)
    sums = np.where(there, values, 0.0).sum(axis=0)
    counts = there.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def draw_weights(
    generator: np.random.Generator, count: int, resamples: int
) -> Float64[np.ndarray, "r n"]:
    """How often each level of a factor is drawn in each resample."""
    if count == 1:
        return np.ones((resamples, 1))
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def ends(samples: Float64[np.ndarray, "r"]) -> tuple[float, float]:
    """The ends of the 95 % interval that resamples span."""
    if not len(samples):
        return (math.nan, math.nan)
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high))


def complete_cases(tables: Sequence[Trainings]) -> Bool[np.ndarray, "c"]:
    """Which cases have a value in every training of every table."""
    return np.asarray(np.isfinite(np.stack(tables)).all(axis=(0, 1)))


def _squares(table: Trainings) -> tuple[float, float]:
    """Mean squares of cases, and of the rest that neither seeds nor cases explain."""
    seeds, cases = table.shape
    centred = table - table.mean()
    by_seed, by_case = centred.mean(axis=1), centred.mean(axis=0)
    rest = centred - by_seed[:, None] - by_case
    of_cases = seeds * (by_case**2).sum() / (cases - 1)
    return float(of_cases), float((rest**2).sum() / ((seeds - 1) * (cases - 1)))
