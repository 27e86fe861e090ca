"""Giving back what was damaged: the loss, and what guesses would cost."""

import torch
from jaxtyping import Float
from torch import Tensor

from voco.nn.unit import at_least_float32
from voco.shapes import Volumes

_ROUNDING = 1e-4
"""What resampling may add to the largest intensity."""


def restoration_loss(found: Volumes, clean: Volumes) -> Float[Tensor, ""]:
    """Mean squared error over *all* voxels, damaged or not; in at least float32."""
    with torch.autocast(found.device.type, enabled=False):
        return (at_least_float32(found) - at_least_float32(clean)).square().mean()


@torch.no_grad()
def restoration_health(damaged: Volumes, clean: Volumes) -> dict[str, Tensor]:
    """What guesses cost.

    Args:
        damaged: What the network sees; in [0, 1].
        clean: What it is to give back; meant to be in [0, 1].

    Returns:
        ``mean_chance``: the loss of naming the mean of each volume everywhere;
        ``untouched_chance``: of giving back what came in; ``outside_share``: of the voxels, those
        outside of [0, 1] by more than rounding.
    """
    mean = clean.mean(dim=(1, 2, 3, 4), keepdim=True)
    return {
        "mean_chance": restoration_loss(mean.expand_as(clean), clean),
        "untouched_chance": restoration_loss(damaged, clean),
        "outside_share": ((clean - 0.5).abs() > 0.5 + _ROUNDING).float().mean(),
    }
