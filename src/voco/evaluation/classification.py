"""Metrics of classes given to whole volumes."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import rankdata

from voco.evaluation.statistics import Summary, bootstrap_statistic

Targets = Int64[np.ndarray, "n"]
"""True class of each case, from 0."""

ClassScores = Float64[np.ndarray, "n k"]
"""One score per case and class; the highest is the predicted class."""

RESAMPLES = 1000
"""Bootstrap samples."""


def accuracy(targets: Targets, scores: ClassScores) -> float:
    """Share of cases whose highest score is at the true class."""
    return float((scores.argmax(axis=1) == targets).mean())


def balanced_accuracy(targets: Targets, scores: ClassScores) -> float:
    """Mean over the classes that occur of the share of their cases that is found."""
    hit = scores.argmax(axis=1) == targets
    return float(np.mean([hit[targets == number].mean() for number in np.unique(targets)]))


def auroc(positive: Bool[np.ndarray, "n"], score: Float64[np.ndarray, "n"]) -> float:
    """Chance that a random positive case scores higher than a random negative one.

    Mann and Whitney's U over the number of pairs; equal scores count one half. ``nan`` unless
    there are cases of both kinds.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    rank_sum = float(rankdata(score)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def macro_auroc(targets: Targets, scores: ClassScores) -> float:
    """AUROC of class 1 for two classes; beyond, the mean over the classes against the rest.

    ``nan`` if any class has no case.
    """
    if scores.shape[1] == 2:
        return auroc(targets == 1, scores[:, 1] - scores[:, 0])
    each = [auroc(targets == number, scores[:, number]) for number in range(scores.shape[1])]
    return float(np.mean(each))


def f1(positive: Bool[np.ndarray, "n"], predicted: Bool[np.ndarray, "n"]) -> float:
    """Twice the cases found, over the cases there are plus the cases claimed.

    ``nan`` if the class neither occurs nor is predicted.
    """
    total = int(positive.sum() + predicted.sum())
    return 2 * int((positive & predicted).sum()) / total if total else math.nan


def macro_f1(targets: Targets, scores: ClassScores) -> float:
    """Mean F1 over the classes that occur or are predicted."""
    predicted = scores.argmax(axis=1)
    each = [f1(targets == number, predicted == number) for number in range(scores.shape[1])]
    return float(np.nanmean(each))


def confusion(targets: Targets, scores: ClassScores) -> Int64[np.ndarray, "k k"]:
    """Cases of each true class (row) given to each class (column)."""
    classes = scores.shape[1]
    pairs = targets * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


METRICS: dict[str, Callable[[Targets, ClassScores], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "auroc": macro_auroc,
    "f1": macro_f1,
}
"""Metrics of a set of cases, by name."""


def summarise(
    targets: Targets, scores: ClassScores, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Summary]:
    """Every metric of the set, with a bootstrap interval over cases.

    A metric that is not defined (AUROC where a class has no case) is ``nan``.
    """
    return {
        name: bootstrap_statistic(
            lambda rows, metric=metric: metric(targets[rows], scores[rows]),
            len(targets),
            seed,
            resamples,
        )
        for name, metric in METRICS.items()
    }
