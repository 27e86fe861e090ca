"""Heads between a backbone's features and a loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voco.nn.gather import mean_over_processes

Ending = Literal["bias", "bare", "standardised"]
"""How a head ends: in a linear layer with a bias, in one without, or in a standardisation."""


class BatchStandardisation(nn.Module):
    """Each feature to zero mean and unit variance over the batch: batch norm without memory.

    No running statistics: evaluation uses the statistics of its batch too.
    In training the batch is that of *all* processes, so that two processes compute what one would
    compute of both halves. In evaluation it is the process's own, since others may not take part.
    A single row becomes zeros. Computed in float32.

    Args:
        epsilon: Added to the variance.
        features: Learns a scale and a shift for each of so many features; ``None`` learns none.
    """

    def __init__(self, epsilon: float = 1e-5, features: int | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.scale = None if features is None else nn.Parameter(torch.ones(features))
        self.shift = None if features is None else nn.Parameter(torch.zeros(features))

    def forward(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """Standardised rows, in the type they came in."""
        with torch.autocast(rows.device.type, enabled=False):
            values = rows.to(torch.promote_types(rows.dtype, torch.float32))
            centred = values - self._mean(values)
            variance = self._mean(centred.square())
            out = centred * torch.rsqrt(variance + self.epsilon)
            if self.scale is not None and self.shift is not None:
                out = out * self.scale + self.shift
            return out.to(rows.dtype)

    def _mean(self, rows: Tensor) -> Tensor:
        mean = rows.mean(dim=0)
        return mean_over_processes(mean) if self.training else mean


def projector(
    widths: Sequence[int],
    std: float | None = None,
    *,
    ending: Ending = "bias",
    learnt: bool = False,
) -> nn.Sequential:
    """Linear layers with standardisation and ReLU between them.

    A bias in front of a standardisation would be taken away by it, so there is none.

    Args:
        widths: Features that come in, of each hidden layer, and that go out.
        std: Standard deviation of normally distributed weights, with biases of zero; ``None``
            starts as torch does.
        ending: What follows the last ReLU; a standardisation there learns nothing.
        learnt: Whether the standardisations between layers learn a scale and a shift.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        norm = BatchStandardisation(features=after if learnt else None)
        layers += [nn.Linear(before, after, bias=False), norm, nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=ending == "bias"))
    if ending == "standardised":
        layers.append(BatchStandardisation())
    if std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
