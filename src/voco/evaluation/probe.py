"""What frozen features tell about classes: a linear classifier and a vote of nearest neighbours.

Both are fitted to the features of some cases and asked about those of others; nothing of the
network that made the features is changed. They are deterministic: no random numbers are drawn.

*Linear* is multinomial logistic regression on standardised features with a penalty on the squared
coefficients. The problem is convex, and L-BFGS (Liu & Nocedal, Math. Programming 1989) walks from
zero to its one solution. *Neighbours* is the weighted vote of Wu et al. (CVPR 2018), with which
DINO is evaluated too (Caron et al., ICCV 2021): the most similar rows by cosine vote for their
class with the weight ``exp(similarity / temperature)``.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from voco.evaluation.classification import accuracy, balanced_accuracy, macro_auroc

LINEAR, NEIGHBOURS = "linear", "neighbours"

_CHUNK = 1024
"""Rows that are compared with all others at a time, to bound memory."""

_FLAT = 1e-5
"""A feature that spreads by less than this share of its own size is a constant."""

_HUGE, _FARTHEST = 1e15, 1e4
"""Bounds of features, and of standardised ones."""

_SOFTEN = 1e-3
"""Added to the variances of what the descent is scaled by; the solution does not depend on it."""


class Rows(NamedTuple):
    """Frozen features, their classes, and the cases that they are from.

    Attributes:
        features: One row for each voxel or volume.
        classes: Its class, from 0.
        cases: Number of its case, from 0.
    """

    features: Float[Tensor, "n e"]
    classes: Int64[Tensor, "n"]
    cases: Int64[Tensor, "n"]


class Judgement(NamedTuple):
    """How well the classes of one set of rows were told from what another set had shown.

    Attributes:
        figures: By probe and metric: ``accuracy``, ``balanced_accuracy``, and, with two classes,
            ``auroc``.
        found: By probe and class number: share of the rows of the class that are found.
        by_case: By probe: balanced accuracy within each case.
    """

    figures: dict[str, dict[str, float]]
    found: dict[str, dict[int, float]]
    by_case: dict[str, list[float]]

    def flat(self) -> dict[str, float]:
        """The figures by names such as ``linear_accuracy``."""
        return {
            f"{probe}_{metric}": value
            for probe, metrics in self.figures.items()
            for metric, value in metrics.items()
        }


def judge(
    train: Rows,
    test: Rows,
    class_count: int,
    *,
    ridge: float,
    iterations: int,
    neighbours: int,
    temperature: float,
) -> Judgement:
    """Fit both probes to some rows, and ask them about others.

    Args:
        train: Learnt from.
        test: Asked about; of other cases.
        class_count: Classes there may be.
        ridge: See :func:`linear_scores`.
        iterations: See :func:`linear_scores`.
        neighbours: See :func:`neighbour_scores`.
        temperature: See :func:`neighbour_scores`.
    """
    known, asked = standardised(train.features, test.features)
    scores = {
        LINEAR: linear_scores(
            known, train.classes, asked, class_count, ridge=ridge, iterations=iterations
        ),
        NEIGHBOURS: neighbour_scores(
            known,
            train.classes,
            asked,
            class_count,
            neighbours=neighbours,
            temperature=temperature,
        ),
    }
    targets, cases = test.classes.cpu().numpy(), test.cases.cpu().numpy()
    tables = {probe: part.double().cpu().numpy() for probe, part in scores.items()}
    return Judgement(
        {probe: _figures(targets, table) for probe, table in tables.items()},
        {
            probe: {
                number: accuracy(targets[targets == number], table[targets == number])
                for number in np.unique(targets).tolist()
            }
            for probe, table in tables.items()
        },
        {
            probe: [
                balanced_accuracy(targets[cases == case], table[cases == case])
                for case in np.unique(cases)
            ]
            for probe, table in tables.items()
        },
    )


def chances(train: Int64[Tensor, "n"], test: Int64[Tensor, "m"]) -> dict[str, float]:
    """What answers that do not look at the features reach, by metric.

    ``accuracy``: always naming the class that is most frequent among what was learnt from.
    ``balanced_accuracy``: naming any one class always, or all of them equally often: one over the
    number of classes that are asked about. ``auroc``: one half.
    """
    most = train.bincount().argmax()
    return {
        "accuracy": float((test == most).double().mean()),
        "balanced_accuracy": 1 / len(test.unique()),
        "auroc": 0.5,
    }


def standardised(
    train: Float[Tensor, "n e"], test: Float[Tensor, "m e"]
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "m e"]]:
    """Both with the mean of the first taken off, over its standard deviation.

    What is constant in the first becomes 0, and what is not finite counts as 0. Values far beyond
    any that a sound network gives are cut, so that nothing overflows.
    """
    known, asked = (
        torch.nan_to_num(part.float(), 0.0, 0.0, 0.0).clamp(-_HUGE, _HUGE) for part in (train, test)
    )
    mean = known.mean(dim=0, dtype=torch.float64)
    centred = known - mean.float()
    spread = centred.square().mean(dim=0, dtype=torch.float64).sqrt()
    inverse = torch.where(spread > _FLAT * mean.abs(), 1 / spread, 0.0).float()
    inverse = torch.nan_to_num(inverse, 0.0, 0.0, 0.0)
    scaled = (asked - mean.float()) * inverse
    return centred * inverse, scaled.clamp(-_FARTHEST, _FARTHEST)


def linear_scores(
    train: Float[Tensor, "n e"],
    classes: Int64[Tensor, "n"],
    test: Float[Tensor, "m e"],
    class_count: int,
    *,
    ridge: float,
    iterations: int,
) -> Float[Tensor, "m k"]:
    """Probabilities of the classes by multinomial logistic regression.

    Args:
        train: Standardised features.
        classes: Their classes.
        test: What is asked about.
        class_count: Classes there may be; one that is not among ``classes`` has probability 0.
        ridge: Weight of half the sum of the squared coefficients, against the sum of the rows'
            cross-entropies (scikit-learn's 1 / C). The biases are not penalised.
        iterations: At most so many of L-BFGS.
    """
    present, labels = classes.unique(return_inverse=True)
    count, width = train.shape
    # With all features turned and scaled to be independent the descent takes tens of steps
    # instead of thousands: features of neighbouring channels and levels are nearly the same.
    covariance = (train.mT @ train / count).double()
    covariance.diagonal().add_(ridge / count + _SOFTEN)
    factor = torch.linalg.cholesky(covariance).float()
    turned = torch.linalg.solve_triangular(factor, train.mT, upper=False).mT

    def coefficients(weight: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor.mT, weight, upper=True)

    with torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        weight = train.new_zeros(width, len(present)).requires_grad_()
        bias = train.new_zeros(len(present)).requires_grad_()
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=iterations,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            solver.zero_grad()
            penalty = ridge / (2 * count) * coefficients(weight).square().sum()
            value = F.cross_entropy(turned @ weight + bias, labels) + penalty
            value.backward()
            return value

        solver.step(loss)
    scores = test.new_zeros(len(test), class_count)
    scores[:, present] = (test @ coefficients(weight.detach()) + bias.detach()).softmax(dim=1)
    return scores


def neighbour_scores(
    train: Float[Tensor, "n e"],
    classes: Int64[Tensor, "n"],
    test: Float[Tensor, "m e"],
    class_count: int,
    *,
    neighbours: int,
    temperature: float,
) -> Float[Tensor, "m k"]:
    """Each class's share of the weighted votes of the nearest rows.

    Args:
        train: Standardised features.
        classes: Their classes.
        test: What is asked about.
        class_count: Classes there may be.
        neighbours: How many rows vote; all, if there are fewer.
        temperature: The smaller, the more the nearest of them count.
    """
    known, asked = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = F.one_hot(classes, class_count).to(known)
    parts = []
    for chunk in asked.split(_CHUNK):
        nearest = (chunk @ known.mT).topk(min(neighbours, len(known)), dim=1)
        weights = (nearest.values / temperature).softmax(dim=1)
        parts.append((weights[..., None] * votes[nearest.indices]).sum(dim=1))
    return torch.cat(parts)


def with_chance(
    judgement: Judgement, untrained: Mapping[str, float], chance: Mapping[str, float]
) -> dict[str, float]:
    """One line of figures: those of a network, of an untrained one, and of chance."""
    metrics = {metric for metrics in judgement.figures.values() for metric in metrics}
    return {
        **judgement.flat(),
        **{f"untrained_{name}": value for name, value in untrained.items()},
        **{f"{metric}_chance": chance[metric] for metric in sorted(metrics)},
    }


def _figures(
    targets: Int64[np.ndarray, "n"], scores: Float64[np.ndarray, "n k"]
) -> dict[str, float]:
    figures = {
        "accuracy": accuracy(targets, scores),
        "balanced_accuracy": balanced_accuracy(targets, scores),
    }
    area = macro_auroc(targets, scores) if scores.shape[1] == 2 else math.nan
    return {**figures, **({"auroc": area} if math.isfinite(area) else {})}
