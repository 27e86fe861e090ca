"""Variance and covariance of embeddings over a batch (Bardes et al., VICReg, ICLR 2022).

Embeddings come in slots: statistics are taken over the rows of each slot. In at least float32 with
autocast off; finite in value and gradient for every finite input, a single row included.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from voco.nn.unit import at_least_float32


def standard_deviations(
    rows: Float[Tensor, "s n e"], epsilon: float = 1e-4
) -> Float[Tensor, "s e"]:
    """``sqrt(variance + epsilon)`` of each feature, unbiased; a single row has no variance."""
    with torch.autocast(rows.device.type, enabled=False):
        squares = _centred(rows).square().sum(dim=1)
        return torch.sqrt(squares / max(1, rows.shape[1] - 1) + epsilon)


def variance_loss(rows: Float[Tensor, "s n e"]) -> Float[Tensor, ""]:
    """How far standard deviations are below 1: the mean over features and slots (equation 1)."""
    return (1 - standard_deviations(rows)).relu().mean()


def covariance_loss(rows: Float[Tensor, "s n e"]) -> Float[Tensor, ""]:
    """Squares of all covariances of two features, over their number; mean of slots (equation 4)."""
    with torch.autocast(rows.device.type, enabled=False):
        centred = _centred(rows)
        count, features = centred.shape[1:]
        # Products of rows have the same sum of squares as products of features.
        products = centred @ centred.mT if count < features else centred.mT @ centred
        every = products.square().sum(dim=(1, 2))
        own = centred.square().sum(dim=1).square().sum(dim=1)
        return ((every - own).relu() / max(1, count - 1) ** 2 / features).mean()


def _centred(rows: Tensor) -> Tensor:
    rows = at_least_float32(rows)
    return rows - rows.mean(dim=1, keepdim=True)
