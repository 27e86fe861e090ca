"""What a GPU gets through ``torch.compile``: every backbone as one graph, without a break."""

import subprocess
import sys

TRACED = """
import torch
from voco.backbones import (
    GenesisUNetConfig,
    ResEncUNetConfig,
    SwinUNETRConfig,
    UNETRConfig,
    UNetConfig,
)

for config, side in (
    (SwinUNETRConfig(feature_size=12, use_v2=True), 64),
    (UNetConfig(features=(4, 4, 4, 4, 4, 4)), 32),
    (ResEncUNetConfig(), 64),
    (UNETRConfig(), 96),
    (GenesisUNetConfig(), 32),
):
    backbone = config.build()
    found = torch._dynamo.explain(backbone.encode)(torch.rand(1, 1, side, side, side))
    print(config.name, found.graph_count, found.graph_break_count)
"""
"""A program of its own: the checks of shapes that tests switch on cannot be compiled."""

NAMES = ("swin_unetr", "unet", "resenc_unet", "unetr", "genesis_unet")


def test_every_backbone_is_one_graph_to_a_compiler():
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name} 1 0" for name in NAMES], done.stderr
