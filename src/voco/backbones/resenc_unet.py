"""Residual encoder U-Net, the network of nnU-Net's ResEnc presets (Isensee et al., MICCAI 2024).

Written here so that no further library is needed. Parameters bear the names that
``ResidualEncoderUNet`` of `dynamic-network-architectures
<https://github.com/MIC-DKFZ/dynamic-network-architectures>`_ gives them, so weights go both ways.
That class lists many of its parameters several times; :func:`repeated_names` adds those names.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from voco.backbone import Backbone, BackboneConfig
from voco.nn.channels_last import laid_out
from voco.nn.convolution import use_own_convolutions
from voco.nn.instance_norm import InstanceNorm3d
from voco.shapes import Level, Volumes


class ResEncUNetConfig(BackboneConfig):
    """Settings of the residual encoder U-Net; the defaults are those of nnU-Net's ResEnc presets.

    The number of stages is free: three of them, as in ``features: [8, 16, 32]`` with ``blocks:
    [1, 1, 1]``, make a network for crops of 8 or 16 voxels that trains on a CPU in no time.
    """

    name: Literal["resenc_unet"] = "resenc_unet"
    """Selects this backbone."""
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of each stage, finest first; every stage but the first halves the resolution."""
    blocks: tuple[PositiveInt, ...] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each stage."""

    @model_validator(mode="after")
    def _one_count_per_stage(self) -> "ResEncUNetConfig":
        if len(self.features) < 2 or len(self.features) != len(self.blocks):
            raise ValueError(
                f"features {self.features} and blocks {self.blocks} must have one number for each "
                "stage, and there must be at least two stages"
            )
        return self

    def build(self, out_channels: int = 1) -> "ResEncUNet":
        """The backbone, with random weights from torch's current seed."""
        return ResEncUNet(self, out_channels)


class ResEncUNet(Backbone):
    """The residual encoder U-Net: one level per stage, each at twice the voxels of the one before.

    Which levels an embedding pools is not settled by a reference; here it is all of them.
    """

    network: "ResidualEncoderUNet"
    encoder_prefixes: ClassVar = ("encoder.",)
    decoder_prefixes: ClassVar = ("decoder.stages.", "decoder.transpconvs.")
    head_prefixes: ClassVar = ("decoder.seg_layers.",)
    input_weights: ClassVar = ("encoder.stem.convs.0.conv.weight",)

    def __init__(self, config: ResEncUNetConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.out_channels = out_channels
        count = len(config.features)
        self.channels = config.features
        self.strides = tuple(2**stage for stage in range(count))
        self.decoded_channels = config.features[0]
        self.embedding_levels = tuple(range(count))
        self.divisor = 2 ** (count - 1)
        self.smallest = 2 * self.divisor  # one voxel at the coarsest level cannot be normalised
        self.library_arguments = {
            "in_channels": config.in_channels,
            "out_channels": out_channels,
            "features": config.features,
            "blocks": config.blocks,
        }
        network = ResidualEncoderUNet(**self.library_arguments)
        use_own_convolutions(network)
        self.network = network  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of every stage."""
        return self.network.encoder(laid_out(volumes))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage but the coarsest, which is the encoder's alone."""
        return tuple(reversed(self.channels[:-1]))

    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution."""
        return self.decode_stages(pyramid)[-1]

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features of every stage but the coarsest, which is the encoder's alone."""
        return self.network.decoder(pyramid)

    def head(self, features: Level) -> Level:
        """A 1x1x1 convolution."""
        return self.network.decoder.seg_layers[-1](features)


class ResidualEncoderUNet(nn.Module):
    """Residual encoder, plain decoder with one convolution per stage, logits at full resolution.

    Args:
        in_channels: Channels of a volume.
        out_channels: Classes.
        features: Channels of each stage, finest first.
        blocks: Residual blocks of each stage.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(in_channels, features, blocks)
        self.decoder = _Decoder(features, out_channels)
        self.apply(_initialise)

    def forward(self, volumes: Volumes) -> Level:
        """Logits at full resolution."""
        return self.decoder.seg_layers[-1](self.decoder(self.encoder(volumes))[-1])


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, features: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = _Convs(in_channels, features[0])
        widths = [features[0], *features]
        self.stages = nn.Sequential(
            *(
                _Stage(narrow, wide, count, stride=1 if stage == 0 else 2)
                for stage, ((narrow, wide), count) in enumerate(
                    zip(pairwise(widths), blocks, strict=True)
                )
            )
        )

    def forward(self, volumes: Volumes) -> list[Level]:
        features = self.stem(volumes)
        pyramid: list[Level] = []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class _Decoder(nn.Module):
    """Coarsest stage first, as the names count. Only the last output layer is in use.

    The others are for losses at coarser levels; they keep their place so that the names agree.
    """

    def __init__(self, features: Sequence[int], out_channels: int) -> None:
        super().__init__()
        steps = list(pairwise(reversed(features)))
        self.stages = nn.ModuleList(_Convs(2 * fine, fine) for _, fine in steps)
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2) for coarse, fine in steps
        )
        self.seg_layers = nn.ModuleList(
            nn.Conv3d(fine, out_channels, kernel_size=1) for _, fine in steps
        )
        self.seg_layers[:-1].requires_grad_(requires_grad=False)

    def forward(self, pyramid: list[Level]) -> list[Level]:
        features = [pyramid[-1]]
        skips = reversed(pyramid[:-1])
        for up, stage, skip in zip(self.transpconvs, self.stages, skips, strict=True):
            features.append(stage(torch.cat([up(features[-1]), skip], dim=1)))
        return features[1:]


class _Stage(nn.Module):
    def __init__(self, narrow: int, wide: int, count: int, stride: int) -> None:
        super().__init__()
        first = _Block(narrow, wide, stride)
        self.blocks = nn.Sequential(first, *(_Block(wide, wide, 1) for _ in range(count - 1)))

    def forward(self, features: Level) -> Level:
        return self.blocks(features)


class _Block(nn.Module):
    """Two convolutions beside an average-pooled, projected identity (ResNet-D, He et al. 2019)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Conv(narrow, wide, stride=stride)
        self.conv2 = _Conv(wide, wide, activated=False)
        self.nonlin2 = _leaky()
        skip: list[nn.Module] = []
        if stride != 1:
            skip.append(nn.AvgPool3d(stride))
        if narrow != wide:
            skip.append(_Conv(narrow, wide, kernel=1, bias=False, activated=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, features: Level) -> Level:
        return self.nonlin2(self.conv2(self.conv1(features)) + self.skip(features))


class _Convs(nn.Module):
    """A list of one convolution: the reference allows more, its presets have one."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_Conv(narrow, wide))

    def forward(self, features: Level) -> Level:
        return self.convs(features)


class _Conv(nn.Module):
    """Convolution, instance norm, and leaky ReLU if ``activated``."""

    def __init__(
        self,
        narrow: int,
        wide: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(narrow, wide, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = InstanceNorm3d(wide, eps=1e-5, affine=True)
        self.nonlin = _leaky() if activated else nn.Identity()

    def forward(self, features: Level) -> Level:
        return self.nonlin(self.norm(self.conv(features)))


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(negative_slope=1e-2, inplace=True)


def _initialise(module: nn.Module) -> None:
    """Kaiming-normal weights, zero biases, and residual blocks that start as their skip."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _Block) and module.conv2.norm.weight is not None:
        nn.init.zeros_(module.conv2.norm.weight)


def repeated_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under every name that ``dynamic-network-architectures`` lists them by.

    There each convolution and norm appears a second time as ``all_modules.0`` and
    ``all_modules.1``, and the whole encoder once more below the decoder.
    """
    named = dict(tensors)
    for name, tensor in tensors.items():
        owner, _, kind = name.rpartition(".")
        parent, _, module = owner.rpartition(".")
        index = {"conv": 0, "norm": 1}.get(module)
        if index is not None:
            named[f"{parent}.all_modules.{index}.{kind}"] = tensor
    encoder = {name: tensor for name, tensor in named.items() if name.startswith("encoder.")}
    return named | {f"decoder.{name}": tensor for name, tensor in encoder.items()}
