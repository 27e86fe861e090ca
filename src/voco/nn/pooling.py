"""From pyramids of features to one vector per crop, or per voxel."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from voco.shapes import Level, Shape3, Volumes

_VOXELS_AT_ONCE = 3 * 64**3
"""Least voxels that go through a network together on a CPU: three crops of 64 cubed. More are no
faster and take more memory (``docs/performance.md``)."""


def split_for_caches(crops: Volumes) -> Sequence[Float[Tensor, "_ c _ _ _"]]:
    """Crops in pieces that a CPU's caches hold, none of them a remainder; all of them elsewhere.

    A remainder of one crop would be slow: torch has no fast convolution for small batches of one.
    """
    if crops.device.type == "cuda":
        return [crops]
    at_once = max(1, _VOXELS_AT_ONCE // crops[0, 0].numel())
    return crops.tensor_split(max(1, len(crops) // at_once))


def level_means(pyramid: list[Level], levels: Sequence[int]) -> Float[Tensor, "n e"]:
    """Levels of a pyramid averaged over space and joined; at least float32."""
    return torch.cat([level_mean(pyramid[level]) for level in levels], dim=1)


def level_mean(level: Level) -> Float[Tensor, "n c"]:
    """The average of a level over space; at least float32."""
    return _Mean.apply(level)


class _Mean(torch.autograd.Function):
    """The average over space, at least float32; its gradient is one number that all voxels share.

    Torch writes that number to every voxel, in another layout than that of the features, so that
    what comes next reads two layouts at once: eight times as slow on a processor.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # noqa: ANN401
        ctx.of, ctx.type = features.shape, features.dtype
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features.mean(dim=(2, 3, 4), dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> Tensor:
        each = (gradients[0] / ctx.of[2:].numel()).to(ctx.type)
        return each[:, :, None, None, None].expand(ctx.of)


def hypercolumns(
    pyramid: list[Level], voxels: Int64[Tensor, "n 3"], size: Shape3
) -> Float[Tensor, "n e"]:
    """All levels of the pyramid of one volume, read at some of its voxels and joined; float32.

    Hypercolumns are of Hariharan et al. (CVPR 2015). Levels are interpolated linearly between the
    middles of their voxels, and are constant beyond the outermost ones.

    Args:
        pyramid: Of a batch of one.
        voxels: Voxels of the volume, along x, y and z.
        size: Voxels of the volume.
    """
    where = 2 * (voxels + 0.5) / voxels.new_tensor(size) - 1
    grid = where.flip(-1).view(1, -1, 1, 1, 3)  # the last axis comes first there
    columns = [
        F.grid_sample(level.float(), grid.float(), padding_mode="border", align_corners=False)
        for level in pyramid
    ]
    return torch.cat([column[0, :, :, 0, 0] for column in columns]).mT
