"""Against the libraries' own networks and published sizes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from voco.backbone import Backbone, BackboneConfig
from voco.backbones.genesis_unet import GenesisUNetConfig
from voco.backbones.resenc_unet import ResEncUNetConfig, repeated_names
from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unet import UNetConfig
from voco.backbones.unetr import UNETRConfig


def weightless(config: BackboneConfig, out_channels: int = 1) -> Backbone:
    if isinstance(config, SwinUNETRConfig):  # reads numbers while it is built
        return config.build(out_channels)
    with torch.device("meta"):
        return config.build(out_channels)


def millions(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("config", "outputs", "expected"),
    [
        (SwinUNETRConfig(), 14, 72.76),
        (SwinUNETRConfig(feature_size=24), 14, 18.35),
        (SwinUNETRConfig(feature_size=24, use_v2=False), 14, 15.70),
        (UNetConfig(), 14, 5.75),
        (UNETRConfig(), 14, 92.80),
        (ResEncUNetConfig(), 1, 102.35),
        (GenesisUNetConfig(), 1, 19.07),
    ],
)
def test_standard_settings_have_the_known_number_of_parameters(
    config: BackboneConfig, outputs: int, expected: float
):
    assert millions(weightless(config, outputs).network) == pytest.approx(expected, abs=0.011)


def test_the_encoder_of_the_base_swin_unetr_has_the_size_of_vocos():
    backbone = weightless(SwinUNETRConfig())
    sizes = {name: p.numel() for name, p in backbone.network.named_parameters()}
    encoder = sum(n for name, n in sizes.items() if name.startswith(backbone.encoder_prefixes))
    assert encoder / 1e6 == pytest.approx(53.16, abs=0.01)


def test_patch_merging_sees_each_of_the_eight_octants_once():
    # Up to MONAI 1.4 two octants came twice and two never, under the same names.
    from monai.networks.nets.swin_unetr import PatchMerging

    merging = PatchMerging(dim=1)
    merging.add_module("norm", nn.Identity())
    merging.add_module("reduction", nn.Identity())
    octants = merging(torch.arange(8.0).reshape(1, 2, 2, 2, 1)).flatten()
    assert sorted(octants.tolist()) == list(range(8))


def test_the_residual_encoder_unet_has_the_names_and_shapes_of_the_reference():
    reference = json.loads((Path(__file__).parent / "resenc_unet.json").read_text())
    tensors = weightless(ResEncUNetConfig()).network.state_dict()
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == reference["tensors"]
    every = sorted(f"{n} {list(t.shape)}" for n, t in repeated_names(tensors).items())
    assert len(every) == reference["count_of_all_names"]
    assert hashlib.sha256("\n".join(every).encode()).hexdigest() == reference["sha256_of_all_names"]


def test_the_residual_encoder_unet_computes_what_the_reference_does():
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="needs dynamic-network-architectures (pip install --no-deps, in a place of its own)",
    )
    config = ResEncUNetConfig(in_channels=2, features=(4, 6, 8, 8), blocks=(1, 2, 1, 2))
    theirs = unet.ResidualEncoderUNet(
        2, 4, list(config.features), nn.Conv3d, 3, [1, 2, 2, 2], list(config.blocks), 3, 1,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    ours = config.build(3)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(repeated_names(ours.network.state_dict()), strict=True)
    volumes = torch.randn(2, 2, 16, 32, 16)
    with torch.no_grad():
        assert torch.equal(ours(volumes), theirs(volumes))
