"""MONAI's residual blocks of UNETR and Swin UNETR, run with less memory traffic; the same numbers.

Parameters, their names and their values stay MONAI's. On a processor features are channels last
(:mod:`voco.nn.channels_last`), and norms keep their outputs alone (:mod:`voco.nn.instance_norm`).
"""

from typing import Any

import torch
from torch import nn

from voco.nn.channels_last import laid_out
from voco.nn.instance_norm import instance_norm, norm_and_leaky_relu, scaled_norm
from voco.shapes import Level


def basic_block(block: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's UnetrBasicBlock)
    """Two convolutions with norms and a way around them."""
    return _residual(block.layer, features)


def up_block(block: Any, features: Level, skip: Level) -> Level:  # noqa: ANN401 (UnetrUpBlock)
    """A transposed convolution, joined with the skip connection, and a residual block."""
    return _residual(
        block.conv_block, torch.cat([block.transp_conv(laid_out(features)), laid_out(skip)], dim=1)
    )


def _residual(block: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's UnetResBlock)
    if not (_plain_norm(block.norm1) and isinstance(block.lrelu, nn.LeakyReLU)):
        return block(features)
    features = laid_out(features)
    epsilon, slope = block.norm1.eps, block.lrelu.negative_slope
    inner = norm_and_leaky_relu(block.conv1(features), epsilon, slope)
    around, gain = features, None
    if block.downsample and features.shape[1] == 1:
        around, gain = scaled_norm(features, block.conv3.conv.weight.flatten(), epsilon)
    elif block.downsample:
        around = instance_norm(block.conv3(features), epsilon)
    return norm_and_leaky_relu(block.conv2(inner), epsilon, slope, around, gain)


def _plain_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.InstanceNorm3d) and not norm.affine and not norm.track_running_stats
