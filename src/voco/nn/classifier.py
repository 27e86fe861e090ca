"""Telling which of a number of things was done to a volume: a head, its loss, its health."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from voco.draws import Draws
from voco.nn.unit import at_least_float32


class Classifier(nn.Module):
    """Hidden layers (linear, ReLU, layer norm, dropout) and a linear layer to the classes.

    Dropout takes its random numbers from the step, as all that is random does.

    Args:
        widths: Features that come in, of each hidden layer, and the number of classes.
        dropout: Probability of zeroing a hidden feature in training, below 1.
    """

    def __init__(self, widths: Sequence[int], *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.LayerNorm(after))
            for before, after in pairwise(widths[:-1])
        )
        self.out = nn.Linear(widths[-2], widths[-1])

    def forward(self, rows: Float[Tensor, "n e"], draws: Draws) -> Float[Tensor, "n classes"]:
        """Logits.

        Args:
            rows: Features; the rows of a volume follow each other.
            draws: Of the step, for dropout.
        """
        for layer in self.hidden:
            rows = layer(rows)
            if self.training and self.dropout:
                kept = draws.uniform(*rows.shape) >= self.dropout
                rows = rows * (kept / (1 - self.dropout)).to(rows)
        return self.out(rows)


def classification_loss(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, "n"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats, in at least float32; ``log(classes)`` of equal logits."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(at_least_float32(logits), labels)


@torch.no_grad()
def answer_health(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, "n"]
) -> dict[str, Tensor]:
    """How often the answer is right.

    Returns:
        ``accuracy``; ``chance``, that of a blind guess; ``loss_chance``, the loss of one.
    """
    classes = logits.shape[1]
    return {
        "accuracy": (logits.argmax(dim=1) == labels).float().mean(),
        "chance": torch.full((), 1 / classes, device=logits.device),
        "loss_chance": torch.full((), math.log(classes), device=logits.device),
    }
