"""3D U-Net: MONAI's ``BasicUNet`` (after Falk et al., Nature Methods 16, 2019).

"3D U-Net" names many networks. This one has five levels of two 3x3x3 convolutions each, max
pooling, transposed convolutions, instance norm and leaky ReLU (slope 0.1).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator

from voco.backbone import Backbone, BackboneConfig
from voco.nn.channels_last import laid_out
from voco.nn.convolution import use_own_convolutions
from voco.nn.instance_norm import use_own_norms
from voco.shapes import Level, Volumes

if TYPE_CHECKING:
    from monai.networks.nets.basic_unet import BasicUNet, UpCat


class UNetConfig(BackboneConfig):
    """Settings of the 3D U-Net (MONAI BasicUNet)."""

    name: Literal["unet"] = "unet"
    """Selects this backbone."""
    features: tuple[int, int, int, int, int, int] = (32, 32, 64, 128, 256, 32)
    """Channels of the five levels, finest first, and of the decoder at full resolution."""

    @field_validator("features")
    @classmethod
    def _can_be_halved(cls, features: tuple[int, ...]) -> tuple[int, ...]:
        if min(features) < 1 or any(count % 2 for count in features[2:5]):
            raise ValueError(
                "all must be at least 1, and the third to the fifth even, since going up halves "
                "them; (8, 8, 16, 32, 64, 8) is a small network that fits"
            )
        return features

    def build(self, out_channels: int = 1) -> "UNet":
        """The backbone, with random weights from torch's current seed."""
        return UNet(self, out_channels)


class UNet(Backbone):
    """MONAI's ``BasicUNet``: levels at 1, 2, 4, 8 and 16 voxels.

    The papers of VoCo leave open which levels of a U-Net an embedding pools; here it is all five.
    """

    network: "BasicUNet"
    strides = (1, 2, 4, 8, 16)
    embedding_levels = (0, 1, 2, 3, 4)
    divisor = 16
    smallest = 32  # below, the coarsest level is one voxel, which has no variance to normalise
    encoder_prefixes: ClassVar = ("conv_0.", "down_1.", "down_2.", "down_3.", "down_4.")
    decoder_prefixes: ClassVar = ("upcat_4.", "upcat_3.", "upcat_2.", "upcat_1.")
    head_prefixes: ClassVar = ("final_conv.",)
    input_weights: ClassVar = ("conv_0.conv_0.conv.weight",)

    def __init__(self, config: UNetConfig, out_channels: int) -> None:
        super().__init__()
        from monai.networks.nets.basic_unet import BasicUNet  # noqa: PLC0415 (takes seconds)

        self.config = config
        self.out_channels = out_channels
        self.channels = config.features[:5]
        self.decoded_channels = config.features[5]
        self.library_arguments = {
            "spatial_dims": 3,
            "in_channels": config.in_channels,
            "out_channels": out_channels,
            "features": config.features,
        }
        network = BasicUNet(**self.library_arguments)
        use_own_norms(network)
        use_own_convolutions(network)
        self.network = network  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of the five levels."""
        net = self.network
        pyramid = [net.conv_0(laid_out(volumes))]
        for down in (net.down_1, net.down_2, net.down_3, net.down_4):
            pyramid.append(down(pyramid[-1]))
        return pyramid

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels at 8, 4, 2 and 1 voxels."""
        return (*reversed(self.channels[1:4]), self.decoded_channels)

    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution."""
        return self.decode_stages(pyramid)[-1]

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features at 8, 4, 2 and 1 voxels."""
        net = self.network
        stages = [pyramid[4]]
        for level, up in ((3, net.upcat_4), (2, net.upcat_3), (1, net.upcat_2), (0, net.upcat_1)):
            stages.append(_raised(up, stages[-1], pyramid[level]))
        return stages[1:]

    def head(self, features: Level) -> Level:
        """A 1x1x1 convolution."""
        return self.network.final_conv(features)


def _raised(up: "UpCat", deep: Level, skip: Level) -> Level:
    """MONAI's step of the decoder, without its check of types, at which a compiler stops."""
    raised = up.upsample(deep)
    short = [skip.shape[axis] - raised.shape[axis] for axis in (4, 3, 2)]
    if any(short):
        raised = F.pad(raised, [end for side in short for end in (0, side)], "replicate")
    return up.convs(torch.cat([skip, raised], dim=1))
