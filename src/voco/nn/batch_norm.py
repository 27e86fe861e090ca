"""Batch norm over the batch of all processes, and in evaluation over each volume by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voco.nn.gather import mean_over_processes, world_size
from voco.nn.unit import at_least_float32
from voco.shapes import Level

_AXES = (0, 2, 3, 4)
"""All of a map but its channels."""


class BatchNorm(nn.Module):
    """Each channel to zero mean and unit variance, then scaled and shifted as was learnt.

    In training the batch is that of *all* processes, so that two processes compute what one would
    compute of both halves: torch's ``BatchNorm3d`` and, of several processes, its
    ``SyncBatchNorm``, which there is for GPUs alone. Every process must have as many volumes, of
    one size, and all must take part.

    In evaluation a volume is normalised by itself, as a batch of one would be: what a network
    makes of it then depends on no other volume. ``running`` takes the running statistics instead,
    as torch does.

    The tensors bear torch's names. Running statistics are kept in training, never in evaluation.

    Args:
        channels: Of the maps.
        running: Whether evaluation takes the running statistics.
        epsilon: Added to the variance.
        momentum: Share of a running statistic that each step replaces.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        running: bool = False,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.running, self.epsilon, self.momentum = running, epsilon, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Level) -> Level:
        """Normalised maps, in the type they came in.

        Raises:
            ValueError: If there is a single value to normalise, which has no variance.
        """
        if not self.training and not self.running:
            return F.instance_norm(features, weight=self.weight, bias=self.bias, eps=self.epsilon)
        if self.training:
            self.num_batches_tracked.add_(1)
            if world_size() > 1:
                return self._over_processes(features)
        return F.batch_norm(
            features,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.epsilon,
        )

    def _over_processes(self, features: Level) -> Level:
        with torch.autocast(features.device.type, enabled=False):
            values = at_least_float32(features)
            mean = mean_over_processes(values.mean(dim=_AXES))
            centred = values - _spread(mean)
            variance = mean_over_processes(centred.square().mean(dim=_AXES))
            self._remember(mean, variance, world_size() * values[:, 0].numel())
            scale = self.weight * torch.rsqrt(variance + self.epsilon)
            return (centred * _spread(scale) + _spread(self.bias)).to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics; that of the variance is without bias, as in torch."""
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)


def _spread(channels: Tensor) -> Tensor:
    return channels.view(-1, 1, 1, 1)
