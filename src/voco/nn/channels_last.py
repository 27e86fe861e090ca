"""Channels last: the layout of features that convolutions on a processor take fastest.

The channels of a voxel lie side by side in memory. Torch's convolutions bring features into a
layout like it and back, each one anew, unless they have it; what transformers make has it to begin
with. Torch's own instance norm is slow there, and adds up the voxels of a volume one by one, by
which float32 loses four digits: the functions here are what an instance norm is made of.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from voco.shapes import Level

_PARTS = 64
"""Parts that the voxels of a volume are added up in."""

Each = Float[Tensor, "b c"]
"""A number for every channel of every volume."""


def laid_out(features: Level) -> Level:
    """The same features, channels last on a processor; elsewhere as torch has them by itself.

    So they are where a graph is made of them, since a compiler sees to layouts, and other programs
    know no norms but torch's.
    """
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return features.contiguous()
    if features.shape[1] > 1:
        return features.contiguous(memory_format=torch.channels_last_3d)
    # One channel has both layouts at once; its stride is what tells a convolution which is meant.
    features = features.contiguous()
    volume, _, x, y, z = features.stride()
    return features.as_strided(features.shape, (volume, 1, x, y, z))


def channels_last(features: Level) -> bool:
    """Whether features have this layout, and not torch's usual one as well."""
    last = features.is_contiguous(memory_format=torch.channels_last_3d)
    return last and not features.is_contiguous()


def moments(features: Level) -> tuple[Each, Each]:
    """Mean and variance over the voxels of channels-last features, in float32 at least."""
    channels, voxels = features.shape[1], features[0, 0].numel()
    parts = math.gcd(voxels, _PARTS)
    precise = torch.promote_types(features.dtype, torch.float32)
    zeros = features.new_zeros(parts * channels, dtype=precise)
    found = [
        torch.batch_norm_update_stats(rows, zeros, zeros, 0.0)
        for rows in features.movedim(1, -1).reshape(len(features), -1, parts * channels)
    ]
    means, variances = (
        torch.stack(kind).double().view(-1, parts, channels) for kind in zip(*found, strict=True)
    )
    variance = variances.mean(dim=1) + means.var(dim=1, correction=0)
    return means.mean(dim=1).to(precise), variance.to(precise)


def products(features: Level, one: Float[Tensor, "b 1 x y z"]) -> Each:
    """Sums over the voxels of every channel times another one, of the same type.

    Of channels-last features in parts, each of them a row times a matrix as it lies in memory: many
    times faster than a matrix times a column, and more exact.
    """
    volumes, channels = features.shape[:2]
    if not channels_last(features):
        return (features.flatten(2) @ one.flatten(2).mT)[:, :, 0]
    parts = volumes * math.gcd(one[0].numel(), _PARTS)
    rows = features.movedim(1, -1).reshape(parts, -1, channels)
    return (one.reshape(parts, 1, -1) @ rows).view(volumes, -1, channels).sum(dim=1)


def standardised(
    features: Level,
    mean: Each,
    variance: Each,
    epsilon: float,
    weight: Float[Tensor, "c"] | None = None,
    bias: Float[Tensor, "c"] | None = None,
) -> Level:
    """``(features - mean) / sqrt(variance + epsilon) * weight + bias``, channels last."""
    out, unused = torch.empty_like(features), mean.new_empty(0)
    for number, (volume, result) in enumerate(zip(features.split(1), out.split(1), strict=True)):
        torch.native_batch_norm(
            volume,
            weight,
            bias,
            mean[number],
            variance[number],
            training=False,
            momentum=0.0,
            eps=epsilon,
            out=(result, unused, unused),
        )
    return out


def standardised_backward(
    gradient: Level, features: Level, mean: Each, scale: Each, weight: Each
) -> tuple[Level, Each, Each]:
    """Gradients at the features, and at weight and bias as if every volume had its own.

    Args:
        gradient: At what was standardised, in any layout.
        features: Channels last.
        mean: Of the features.
        scale: One over the square root of their variance and epsilon.
        weight: Of every channel of every volume.
    """
    gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
    # Its mean does not reach the features, and would drown what does: the gradient of a mean over
    # voxels, say, is the same at all of them. So it is taken away first, with all digits.
    average = gradient.mean(dim=(2, 3, 4), dtype=mean.dtype)
    gradient = standardised(gradient, average, torch.ones_like(average), 0.0)
    at_features = torch.empty_like(features)
    at_weight, at_bias = torch.empty_like(weight), average * features[0, 0].numel()
    unused = torch.empty_like(mean[0])
    for number in range(len(features)):
        only = slice(number, number + 1)
        torch.ops.aten.native_batch_norm_backward.out(
            gradient[only],
            features[only],
            weight[number],
            None,
            None,
            mean[number],
            scale[number],
            True,  # noqa: FBT003 (as in training: mean and scale depend on the features)
            0.0,
            [True, True, True],
            out0=at_features[only],
            out1=at_weight[number],
            out2=unused,
        )
    return at_features, at_weight, at_bias
