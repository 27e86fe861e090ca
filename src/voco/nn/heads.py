"""Heads between a backbone's features and a loss."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voco.nn.gather import mean_over_processes


class BatchStandardisation(nn.Module):
    """Each feature to zero mean and unit variance over the batch: batch norm without memory.

    No scale, no shift, no running statistics: evaluation uses the statistics of its batch too.
    In training the batch is that of *all* processes, so that two processes compute what one would
    compute of both halves. In evaluation it is the process's own, since others may not take part.
    A single row becomes zeros. Computed in float32.

    Args:
        epsilon: Added to the variance.
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """Standardised rows, in the type they came in."""
        with torch.autocast(rows.device.type, enabled=False):
            values = rows.to(torch.promote_types(rows.dtype, torch.float32))
            centred = values - self._mean(values)
            variance = self._mean(centred.square())
            return (centred * torch.rsqrt(variance + self.epsilon)).to(rows.dtype)

    def _mean(self, rows: Tensor) -> Tensor:
        mean = rows.mean(dim=0)
        return mean_over_processes(mean) if self.training else mean


def projector(widths: Sequence[int], std: float | None = None) -> nn.Sequential:
    """Linear layers with standardisation and ReLU between them; the last one is bare.

    A bias in front of a standardisation would be taken away by it, so there is none.

    Args:
        widths: Features that come in, of each hidden layer, and that go out.
        std: Standard deviation of normally distributed weights, with biases of zero; ``None``
            starts as torch does.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), BatchStandardisation(), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1]))
    if std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
