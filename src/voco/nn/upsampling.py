"""From the coarsest features straight to voxels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from voco.nn.convolution import Conv3d
from voco.nn.instance_norm import InstanceNorm3d


def upsampler(widths: Sequence[int], channels: int) -> nn.Sequential:
    """Convolutions of 3x3x3 voxels, each followed by a doubling of the voxels along every axis.

    Between the two: instance norm, which takes a bias away, so there is none, and leaky ReLU. At
    the end a convolution of one voxel. Features of a single voxel cannot be normalised.

    Args:
        widths: Channels that come in, and that go out of each convolution.
        channels: Of the volume that comes out.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            Conv3d(before, after, 3, padding=1, bias=False),
            InstanceNorm3d(after),
            nn.LeakyReLU(0.01),
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        ]
    return nn.Sequential(*layers, nn.Conv3d(widths[-1], channels, 1))
