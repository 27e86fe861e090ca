"""Soft Dice of predicted shares and labels (Milletari et al., V-Net, 3DV 2016).

The denominator is the sum of the shares and of the labels, not of their squares.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def soft_dice(
    probabilities: Float[Tensor, "b k x y z"],
    labels: Int64[Tensor, "b x y z"],
    *,
    over: Literal["crop", "batch"],
    smooth: float,
) -> Float[Tensor, "rows k"]:
    """``(2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)`` of every class, in [0, 1].

    Args:
        probabilities: After softmax.
        labels: Class numbers.
        over: Sums over each crop (a row for each), or over the whole batch (one row).
        smooth: Voxels.
    """
    classes = torch.arange(probabilities.shape[1], device=labels.device).view(1, -1, 1, 1, 1)
    truth = labels[:, None] == classes
    voxels = (2, 3, 4)
    common = (probabilities * truth).sum(voxels)
    total = probabilities.sum(voxels) + truth.sum(voxels)
    if over == "batch":
        common, total = common.sum(0, keepdim=True), total.sum(0, keepdim=True)
    return (2 * common + smooth) / (total + smooth)
