"""The losses of volume contrast: predicted against true shares, and bases kept apart.

Wu, Zhuang & Chen, CVPR 2024 (arXiv 2402.17300), and the public code that followed. All are
computed in at least float32 with autocast off, and are finite in value and gradient for every
finite input; the parameters say what bounds them.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from voco.nn.unit import at_least_float32, unit

Variant = Literal["paper", "v0", "v1", "v2"]
"""Which of the things that are called VoCo; see :mod:`voco.methods.voco`."""

PairGradient = Literal["both", "first"]
"""Which members of a pair of bases the regularization moves."""

PAIR_GRADIENT: dict[Variant, PairGradient] = {
    "paper": "both",
    "v0": "both",
    "v1": "first",
    "v2": "first",
}
"""What each variant does."""


def similarity(
    queries: Float[Tensor, "*n q e"],
    bases: Float[Tensor, "*n k e"],
    *,
    rectify: Literal["clamp", "halve"] = "clamp",
) -> Float[Tensor, "*n q k"]:
    """How much each query is like each base, from 0 to 1: the cosine, brought to that range.

    At least float32, whatever comes in. A vector of zeros is unlike everything.

    Args:
        queries: Embeddings of random crops.
        bases: Embeddings of base crops.
        rectify: ``clamp`` to [0, 1]; or ``halve``, ``(1 + cosine) / 2``.
    """
    with torch.autocast(queries.device.type, enabled=False):
        cosines = unit(queries) @ unit(bases).mT
        values = cosines.relu() if rectify == "clamp" else (1 + cosines).relu() / 2
        # Rounding takes cosines of equal vectors above 1.
        return values.clamp(max=1)


def prediction_loss(
    similarity: Float[Tensor, "*n q k"],
    overlap: Float[Tensor, "*n q k"],
    variant: Variant = "paper",
    *,
    epsilon: float = 1e-6,
) -> Float[Tensor, ""]:
    """How far predicted shares are from true ones; per volume, then averaged over volumes.

    With ``y`` the true and ``l`` the predicted share and ``d = |y - l|``:

    - ``paper``: the mean of ``-log(1 - d)`` over all pairs;
    - ``v0``: its mean where ``y > 0``, plus the mean of ``l^2`` where ``y = 0``;
    - ``v1``: as v0, the first mean weighted by ``y``;
    - ``v2``: as v1, with ``-log(1 - l)`` in place of ``l^2``.

    Args:
        similarity: Predicted shares; clamped to [0, 1].
        overlap: True shares; clamped to [0, 1]. No gradient is meant to reach them.
        variant: Which of the four.
        epsilon: Added inside the logarithms, which are then cut at 0: at ``d = 0`` the loss is
            exactly 0, at ``d = 1`` it is ``-log(epsilon)`` with a slope of ``1 / epsilon``.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        predicted = at_least_float32(similarity).clamp(0, 1)
        true = at_least_float32(overlap).clamp(0, 1)
        near = _surprise((true - predicted).abs(), epsilon)
        if variant == "paper":
            return near.mean()
        far = _surprise(predicted, epsilon) if variant == "v2" else predicted.square()
        weights = (true > 0).to(near) if variant == "v0" else true
        return (_weighted_mean(near, weights) + _weighted_mean(far, (true == 0).to(far))).mean()


def regularization_loss(
    bases: Float[Tensor, "*n k e"],
    variant: Variant = "paper",
    *,
    pair_gradient: PairGradient | None = None,
) -> Float[Tensor, ""]:
    """How alike the bases of a volume are, from 0 to 1: the mean over pairs, then over volumes.

    ``paper``: the absolute cosine; ``v0``, ``v1``, ``v2``: the square of its positive part. A
    single base is like nothing: 0. It is *added* to the loss, as in all public code; subtracted,
    it would reward bases that are all the same.

    Args:
        bases: Embeddings of base crops.
        variant: Which of the four.
        pair_gradient: Which base of a pair the gradient moves; ``None`` is the variant's own.
    """
    first = (pair_gradient or PAIR_GRADIENT[variant]) == "first"
    with torch.autocast(bases.device.type, enabled=False):
        directions = unit(bases)
        others = directions.detach() if first else directions
        cosines = (directions @ others.mT).triu(diagonal=1)
        penalties = cosines.abs() if variant == "paper" else cosines.relu().square()
        count = bases.shape[-2]
        return (penalties.sum(dim=(-2, -1)) / max(1, count * (count - 1) // 2)).mean()


def _surprise(gap: Tensor, epsilon: float) -> Tensor:
    return -torch.log((1 - gap + epsilon).clamp(max=1))


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean over the pairs of each volume; 0 where nothing has weight."""
    total = (values * weights).sum(dim=(-2, -1))
    return total / (weights.sum(dim=(-2, -1)) + 1e-6)
