"""The networks that can be pre-trained, one per file; chosen by ``name``."""

from typing import Annotated, get_args

from pydantic import Field

from voco.backbones.genesis_unet import GenesisUNetConfig
from voco.backbones.resenc_unet import ResEncUNetConfig
from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unet import UNetConfig
from voco.backbones.unetr import UNETRConfig

__all__ = [
    "BackboneSettings",
    "GenesisUNetConfig",
    "ResEncUNetConfig",
    "SwinUNETRConfig",
    "UNETRConfig",
    "UNetConfig",
    "available",
]

_Kinds = SwinUNETRConfig | UNetConfig | UNETRConfig | ResEncUNetConfig | GenesisUNetConfig

BackboneSettings = Annotated[_Kinds, Field(discriminator="name")]
"""Settings of any backbone."""


def available() -> tuple[str, ...]:
    """Names of all backbones."""
    return tuple(kind.model_fields["name"].default for kind in get_args(_Kinds))
