"""What a GPU gets through ``torch.compile``: each part of a backbone as one graph, unbroken."""

import subprocess
import sys

TRACED = """
import torch
from voco.backbone import MaskedBackbone, TokenBackbone
from voco.backbones import (
    GenesisUNetConfig,
    ResEncUNetConfig,
    SwinUNETRConfig,
    UNETRConfig,
    UNetConfig,
)

for config, side in (
    (SwinUNETRConfig(feature_size=12, depths=(2, 1, 1, 1), use_checkpoint=True), 64),
    (UNetConfig(features=(4, 4, 4, 4, 4, 4)), 32),
    (ResEncUNetConfig(features=(4, 4, 8), blocks=(1, 2, 1)), 16),
    (UNETRConfig(), 96),
    (GenesisUNetConfig(), 32),
):
    backbone = config.build()
    volumes = torch.rand(1, 1, side, side, side)

    def traced(part, *given):
        torch._dynamo.reset()
        found = torch._dynamo.explain(getattr(backbone, part))(*given)
        print(config.name, part, found.graph_count, found.graph_break_count)

    traced("encode", volumes)
    with torch.no_grad():
        pyramid = backbone.encode(volumes)
    traced("decode", pyramid)
    if isinstance(backbone, MaskedBackbone):
        hidden = torch.rand(1, *(side // edge for edge in backbone.patch)) < 0.5
        traced("encode_masked", volumes, hidden, torch.zeros(backbone.embedding_width))
    if isinstance(backbone, TokenBackbone):
        traced("tokens", volumes, torch.arange(7)[None])
"""
"""A program of its own: the checks of shapes that tests switch on cannot be compiled."""

PARTS = (
    "swin_unetr encode",
    "swin_unetr decode",
    "swin_unetr encode_masked",
    "unet encode",
    "unet decode",
    "resenc_unet encode",
    "resenc_unet decode",
    "unetr encode",
    "unetr decode",
    "unetr encode_masked",
    "unetr tokens",
    "genesis_unet encode",
    "genesis_unet decode",
)


def test_every_part_of_every_backbone_is_one_graph_to_a_compiler():
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{part} 1 0" for part in PARTS], done.stderr
