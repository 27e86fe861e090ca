"""The networks that can be pre-trained, one per file; chosen by ``name``."""

from voco.backbones.unet import UNetConfig

BackboneSettings = UNetConfig
"""Settings of any backbone."""


def available() -> tuple[str, ...]:
    """Names of all backbones."""
    return ("unet",)
