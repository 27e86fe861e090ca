"""The 3D U-Net of Models Genesis (Zhou et al., MICCAI 2019; Medical Image Analysis 67, 2021).

Also that of SuPreM and of the CLIP-driven Universal Model, which start from it. Written here after
the public code (``MrGiovanni/ModelsGenesis``, ``pytorch/unet3d.py``), whose names the parameters
bear, so that weights go both ways.

Each level has two convolutions of 3x3x3, each followed by batch norm and ReLU; the first one of the
encoder's has half of the level's channels. Levels are joined by max pooling and by transposed
convolutions. What differs here:

- The output layer gives logits. The reference of Models Genesis ends in a sigmoid, which has no
  parameters; the method of that name has its own.
- The reference normalises over whatever it is given in evaluation too, so that a result depends on
  what else lies in the batch. Here a volume is normalised by itself, as the reference does where
  one volume, or one window, is given at a time; ``running_statistics`` takes those of the
  training instead, as torch's batch norm does.
- In training the batch is that of all processes. In the reference each GPU normalises its own part.
- Running statistics move in training alone; the reference's move in evaluation, too.
- Biases in front of a norm, which takes them away, are not trained.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import nn

from voco.backbone import Backbone, BackboneConfig
from voco.nn.batch_norm import BatchNorm
from voco.nn.convolution import use_own_convolutions
from voco.shapes import Level, Volumes

PUBLISHED_FEATURES = (64, 128, 256, 512)
"""Channels of the published network's levels, after which its parameters are named."""


class GenesisUNetConfig(BackboneConfig):
    """Settings of the U-Net of Models Genesis; the defaults are those of the published weights."""

    changeable: ClassVar = ("running_statistics",)
    name: Literal["genesis_unet"] = "genesis_unet"
    """Selects this backbone."""
    features: tuple[int, int, int, int] = PUBLISHED_FEATURES
    """Channels of the four levels, finest first; all even. Names of parameters stay the same."""
    running_statistics: bool = False
    """Whether evaluation normalises by the running statistics of the training, as torch's batch
    norm does. The published network does not: see above."""

    @field_validator("features")
    @classmethod
    def _can_be_halved(cls, features: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 2 or count % 2 for count in features):
            raise ValueError(
                "all must be even and at least 2, since a level's first convolution has half of "
                "its channels; (8, 16, 32, 64) is a small network that fits"
            )
        return features

    def build(self, out_channels: int = 1) -> "GenesisUNet":
        """The backbone, with random weights from torch's current seed."""
        return GenesisUNet(self, out_channels)


class GenesisUNet(Backbone):
    """The U-Net of Models Genesis: levels at 1, 2, 4 and 8 voxels.

    In training the volumes of a batch, that of all processes, are normalised together. Which levels
    an embedding pools is not settled by a reference; here it is all four.
    """

    network: "UNet3D"
    strides = (1, 2, 4, 8)
    embedding_levels = (0, 1, 2, 3)
    divisor = 8
    smallest = 16  # below, the coarsest level is one voxel, which alone has no variance
    mixes_volumes: ClassVar = True
    encoder_prefixes: ClassVar = ("down_tr64.", "down_tr128.", "down_tr256.", "down_tr512.")
    decoder_prefixes: ClassVar = ("up_tr256.", "up_tr128.", "up_tr64.")
    head_prefixes: ClassVar = ("out_tr.",)
    input_weights: ClassVar = ("down_tr64.ops.0.conv1.weight",)

    def __init__(self, config: GenesisUNetConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.out_channels = out_channels
        self.channels = config.features
        self.decoded_channels = config.features[0]
        self.library_arguments = {
            **config.model_dump(exclude={"name"}),
            "out_channels": out_channels,
        }
        network = UNet3D(**self.library_arguments)
        use_own_convolutions(network)
        self.network = network  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of the four levels."""
        return self.network.encode(volumes)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels at 4, 2 and 1 voxels."""
        return tuple(reversed(self.channels[:3]))

    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution."""
        return self.decode_stages(pyramid)[-1]

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features at 4, 2 and 1 voxels."""
        return self.network.decode(pyramid)

    def head(self, features: Level) -> Level:
        """A 1x1x1 convolution."""
        return self.network.out_tr(features)


class UNet3D(nn.Module):
    """Four levels down, three up, logits at full resolution.

    Args:
        in_channels: Channels of a volume.
        out_channels: Classes.
        features: Channels of each level, finest first.
        running_statistics: Whether evaluation normalises by those of the training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = PUBLISHED_FEATURES,
        *,
        running_statistics: bool = False,
    ) -> None:
        super().__init__()
        first, second, third, fourth = features
        running = running_statistics
        self.down_tr64 = _Down(in_channels, first, running=running)
        self.down_tr128 = _Down(first, second, running=running)
        self.down_tr256 = _Down(second, third, running=running)
        self.down_tr512 = _Down(third, fourth, running=running)
        self.up_tr256 = _Up(fourth, third, running=running)
        self.up_tr128 = _Up(third, second, running=running)
        self.up_tr64 = _Up(second, first, running=running)
        self.out_tr = _Output(first, out_channels)

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of each level, finest first."""
        pyramid = [self.down_tr64(volumes)]
        for down in (self.down_tr128, self.down_tr256, self.down_tr512):
            pyramid.append(down(F.max_pool3d(pyramid[-1], 2)))
        return pyramid

    def decode(self, pyramid: list[Level]) -> list[Level]:
        """Features after each stage of the decoder, coarsest first."""
        stages = [pyramid[-1]]
        ups = (self.up_tr256, self.up_tr128, self.up_tr64)
        for up, skip in zip(ups, reversed(pyramid[:-1]), strict=True):
            stages.append(up(stages[-1], skip))
        return stages[1:]

    def forward(self, volumes: Volumes) -> Level:
        """Logits at full resolution."""
        return self.out_tr(self.decode(self.encode(volumes))[-1])


class _Down(nn.Module):
    def __init__(self, narrow: int, wide: int, *, running: bool) -> None:
        super().__init__()
        half = wide // 2
        self.ops = nn.Sequential(
            _Conv(narrow, half, running=running), _Conv(half, wide, running=running)
        )

    def forward(self, features: Level) -> Level:
        return self.ops(features)


class _Up(nn.Module):
    """The coarser level, upsampled with as many channels, and the finer one beside it."""

    def __init__(self, coarse: int, fine: int, *, running: bool) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(coarse, coarse, kernel_size=2, stride=2)
        self.ops = nn.Sequential(
            _Conv(coarse + fine, fine, running=running), _Conv(fine, fine, running=running)
        )

    def forward(self, features: Level, skip: Level) -> Level:
        return self.ops(torch.cat([self.up_conv(features), skip], dim=1))


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, narrow: int, wide: int, *, running: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(narrow, wide, kernel_size=3, padding=1)
        # The norm takes the bias away. It is here for the sake of the names; its gradient is mere
        # rounding, which AdamW would magnify to full steps.
        assert self.conv1.bias is not None
        self.conv1.bias.requires_grad = False
        self.bn1 = BatchNorm(wide, running=running)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Level) -> Level:
        return self.activation(self.bn1(self.conv1(features)))


class _Output(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(channels, out_channels, kernel_size=1)

    def forward(self, features: Level) -> Level:
        return self.final_conv(features)
