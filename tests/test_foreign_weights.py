"""Weights of others: small networks of the libraries, renamed to the layouts that are published."""

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import genesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.swin_unetr import PatchMerging, SwinUNETR
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import voco
from voco.backbone import Backbone
from voco.backbones.genesis_unet import GenesisUNetConfig
from voco.backbones.legacy_merging import LegacyPatchMerging
from voco.backbones.resenc_unet import ResEncUNetConfig, repeated_names
from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unet import UNetConfig
from voco.backbones.unetr import UNETRConfig
from voco.errors import WeightsError
from voco.nn.positions import resampled_code
from voco.weights import load_backbone, passport, settled, transfer
from voco.weights.families import FAMILIES
from voco.weights.fitting import spread

State = dict[str, Tensor]

HEADS = {"layer1.0.weight": torch.ones(3, 2), "layer3.0.bias": torch.ones(3)}
CUBE = (64, 32, 32)


def swin(*, v2: bool = True, legacy: bool = True, outputs: int = 2, seed: int = 1) -> SwinUNETR:
    """As the authors of a file built it, with their MONAI."""
    torch.manual_seed(seed)
    merging: Any = LegacyPatchMerging if legacy else "merging"
    return SwinUNETR(
        1, outputs, feature_size=12, depths=(1, 1, 1, 1), use_v2=v2, downsample=merging
    )


def config(**changes: Any) -> SwinUNETRConfig:
    return SwinUNETRConfig(feature_size=12, depths=(1, 1, 1, 1), **changes)


def state(network: nn.Module, *prefixes: str) -> State:
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return {n: t for n, t in tensors.items() if n.startswith(prefixes or ("",))}


def renamed(tensors: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    found = dict(tensors)
    for pattern, new in rules:
        found = {re.sub(pattern, new, name): tensor for name, tensor in found.items()}
    return found


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def volume(size: tuple[int, int, int] = CUBE, channels: int = 1) -> Tensor:
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(3))


ENCODER = ("swinViT.", "encoder")


def voco_v1() -> tuple[dict[str, Any], SwinUNETR]:
    network, student = swin(), swin(seed=2)
    tensors = prefixed("student.", state(student, *ENCODER) | prefixed("proj_head.", HEADS))
    tensors |= prefixed("teacher.", state(network, *ENCODER) | prefixed("proj_head.", HEADS))
    optimizer = torch.optim.AdamW(student.parameters(), amsgrad=True)
    return {"global_step": 1000, "state_dict": tensors, "optimizer": optimizer}, network


def voco_v2() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin()
    tensors = prefixed("module.backbone.", state(network, *ENCODER))
    tensors |= prefixed("module.student.", HEADS) | prefixed("module.teacher.", HEADS)
    return {"global_step": 5, "state_dict": tensors}, network


def voco_10k() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin()
    return renamed(state(network, *ENCODER), (r"^", "module."), ("swinViT", "swin_vit")), network


def vocomni() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin(outputs=21)
    return {"state_dict": state(network)}, network


def suprem() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin(v2=False)
    tensors = prefixed("module.backbone.", state(network))
    tensors |= prefixed("module.", {"organ_embedding": torch.ones(3, 4)})
    tensors |= prefixed(
        "module.", {"controller.weight": torch.ones(2), "GAP.0.bias": torch.ones(1)}
    )
    moments = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    return {"net": tensors, "optimizer": moments, "scheduler": {"a": 1}, "epoch": 800}, network


def nvidia_ssl() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin(v2=False)
    tensors = renamed(state(network, "swinViT."), ("swinViT", "module.swin_vit"))
    tensors |= {
        "module.rotation_head.weight": torch.ones(4, 2),
        "module.conv.0.bias": torch.ones(2),
    }
    facts = {"epoch": 3, "args": argparse.Namespace(lr=1e-3), "best": np.float64(0.5)}
    return {"state_dict": tensors, **facts}, network


def nvidia_swinvit() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin(v2=False)
    rules = (("swinViT", "module"), (r"mlp\.linear", "mlp.fc"))
    tensors = renamed(state(network, "swinViT."), *rules)
    return {"state_dict": tensors | {"module.norm.weight": torch.ones(2)}}, network


def disruptive() -> tuple[dict[str, Any], SwinUNETR]:
    network = swin(v2=False)
    rules = ((r"swinViT\.(layers\d)\.0\.", r"encoder.\1.0.0."), ("swinViT", "encoder"))
    tensors = renamed(state(network, "swinViT."), *rules)
    tensors |= {"encoder.mask_token": torch.ones(1), "encoder.norm.weight": torch.ones(2)}
    return {"model": tensors | {"out.conv.conv.weight": torch.ones(1)}}, network


MAKERS: dict[str, tuple[Callable[[], tuple[dict[str, Any], SwinUNETR]], bool]] = {
    "voco-v1": (voco_v1, True),
    "voco-v2": (voco_v2, True),
    "voco-backbone": (voco_10k, True),
    "vocomni": (vocomni, True),
    "suprem": (suprem, False),
    "swin-ssl": (nvidia_ssl, False),
    "nvidia-swinvit": (nvidia_swinvit, False),
    "disruptive-autoencoders": (disruptive, False),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, SwinUNETR, bool]:
    make, v2 = MAKERS[request.param]
    content, network = make()
    file = tmp_path_factory.mktemp("published") / "weights.pt"
    torch.save(content, file)
    return request.param, file, network.eval(), v2


# --- Swin UNETR -------------------------------------------------------------------------------


def test_a_published_layout_is_recognised_with_its_settings_and_its_merging(
    published: tuple[str, Path, SwinUNETR, bool],
):
    family, file, _, v2 = published
    found = passport(file)
    assert (found.kind, found.layout, found.backbone) == ("published", family, "swin_unetr")
    assert found.merging == "legacy"
    told = {"feature_size": 12, "in_channels": 1, "use_v2": v2, "depths": (1, 1, 1, 1)}
    assert told.items() <= found.settings.items()
    (fit,) = found.fits
    assert fit.fits
    assert fit.share == 1.0
    assert fit.tensors[0] == fit.tensors[1] > 50
    assert re.search(r"(\d+) of \1 tensors, 100 % of the (encoder|transformer)", str(found))


def test_a_network_of_a_published_file_computes_what_its_authors_computed(
    published: tuple[str, Path, SwinUNETR, bool],
):
    _, file, network, v2 = published
    backbone = config(use_v2=v2, merging="legacy").build(2).eval()
    accounting = transfer(backbone, file)
    assert accounting.share == 1.0
    with torch.no_grad():
        theirs = network.swinViT(volume(), True)
        ours = backbone.network.swinViT(volume(), True)
        fixed = config(use_v2=v2, merging="fixed").build(2).eval()
        transfer(fixed, file)
        wrong = fixed.network.swinViT(volume(), True)
    for one, two in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, two)
    # The other merging loads as well and computes something else, from the first merging on.
    torch.testing.assert_close(theirs[0], wrong[0])
    assert F.cosine_similarity(theirs[4].flatten(), wrong[4].flatten(), dim=0) < 0.95


def test_every_tensor_of_a_published_file_is_taken_or_left_out_with_a_reason(
    published: tuple[str, Path, SwinUNETR, bool],
):
    _, file, _, v2 = published
    accounting = transfer(config(use_v2=v2, merging="legacy").build(2), file)
    left = [name for _, names in accounting.left_out for name in names]
    count = len(accounting.loaded) + len(accounting.unused) + len(left)
    assert count == passport(file).tensors
    assert all(reason for reason, _ in accounting.left_out)
    assert not any("not known" in reason for reason, _ in accounting.left_out)


def test_voco_load_builds_the_network_of_a_published_file(
    published: tuple[str, Path, SwinUNETR, bool],
):
    family, file, network, _ = published
    loaded = voco.load(file).eval()
    assert isinstance(loaded, SwinUNETR)
    whole = family == "vocomni"
    with torch.no_grad():
        one = network(volume()) if whole else network.swinViT(volume())[4]
        two = loaded(volume()) if whole else loaded.swinViT(volume())[4]
    torch.testing.assert_close(one, two)


def test_the_teacher_is_taken_from_a_state_of_voco_v1_and_that_is_said(tmp_path: Path):
    content, teacher = voco_v1()
    torch.save(content, tmp_path / "v1.pt")
    backbone = config(merging="legacy").build()
    accounting = transfer(backbone, tmp_path / "v1.pt")
    name = "encoder10.layer.conv1.conv.weight"
    assert torch.equal(backbone.network.state_dict()[name], teacher.state_dict()[name])
    assert "student: the teacher is its running mean" in str(accounting)
    assert "projection head" in str(accounting)
    assert passport(tmp_path / "v1.pt").beside == {"global_step": 1000}
    assert any("AdamW" in name for name in passport(tmp_path / "v1.pt").unread)


def test_settings_leave_the_merging_to_the_weights_unless_they_name_one(tmp_path: Path):
    content, _ = voco_10k()
    torch.save(content, tmp_path / "voco.pt")
    assert settled(config(), tmp_path / "voco.pt").merging == "legacy"
    assert settled(config(merging="fixed"), tmp_path / "voco.pt").merging == "fixed"
    assert settled(config(), None).merging is None
    with pytest.raises(WeightsError, match=r"Set backbone\.merging to 'legacy'"):
        transfer(config().build(), tmp_path / "voco.pt")
    accounting = transfer(config(merging="fixed").build(), tmp_path / "voco.pt")
    assert "merging is 'fixed' as asked for, though such files expect 'legacy'" in str(accounting)


def test_a_plain_file_of_monai_must_be_told_its_merging_unless_it_is_old(tmp_path: Path):
    network = swin(legacy=False).eval()
    torch.save(state(network), tmp_path / "new.pt")
    assert passport(tmp_path / "new.pt").merging is None
    assert "set backbone.merging" in str(passport(tmp_path / "new.pt"))
    with pytest.raises(WeightsError, match=r"1\.5 changed how Swin UNETR merges"):
        voco.load(tmp_path / "new.pt")
    loaded = voco.load(tmp_path / "new.pt", merging="fixed").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(volume()), network(volume()))


def test_a_file_without_the_marks_of_newer_torch_is_older_than_monai_1_5(tmp_path: Path):
    import zipfile

    torch.save(state(swin()), tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w", zipfile.ZIP_STORED) as old,
    ):
        for name in new.namelist():
            if not name.endswith(("byteorder", "serialization_id")):
                old.writestr(name, new.read(name))
    assert passport(tmp_path / "new.pt").merging is None
    assert passport(tmp_path / "old.pt").merging == "legacy"


@pytest.mark.parametrize("sides", [(4, 4, 4), (5, 4, 3)])
def test_legacy_merging_takes_two_neighbours_twice_and_two_never(sides: tuple[int, int, int]):
    torch.manual_seed(0)
    legacy, fixed = LegacyPatchMerging(2), PatchMerging(2)
    fixed.load_state_dict(legacy.state_dict())
    seen: dict[str, set[tuple[int, ...]]] = {}
    for name, merge in (("legacy", legacy), ("fixed", fixed)):
        patches = torch.randn(1, *sides, 2, requires_grad=True)
        merge(patches)[0, 0, 0, 0].sum().backward()
        assert patches.grad is not None
        seen[name] = {tuple(place[1:4]) for place in patches.grad.nonzero().tolist()}
        assert merge(patches).shape == (1, *(-(-side // 2) for side in sides), 4)
    assert len(seen["fixed"]) == 8
    assert seen["fixed"] - seen["legacy"] == {(1, 1, 0), (0, 1, 1)}


def test_a_run_that_started_from_legacy_weights_goes_on_as_legacy(tmp_path: Path):
    from test_weights import exported

    backbone = config(merging="legacy").build(2)
    exported(tmp_path, backbone, trained=("encoder", "decoder", "head"))
    assert settled(config(), tmp_path).merging == "legacy"
    again = load_backbone(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(volume()), backbone.eval()(volume()))
    with pytest.raises(WeightsError, match="merged in the way 'legacy', asked for is 'fixed'"):
        transfer(config().build(2), tmp_path)


# --- UNETR ------------------------------------------------------------------------------------

VIT = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
SMALL_UNETR = UNETRConfig(size=(32, 32, 32), feature_size=2, **VIT)


def vit(**changes: Any) -> ViT:
    torch.manual_seed(1)
    arguments = {"in_channels": 1, "img_size": (32, 32, 32), "patch_size": (16, 16, 16), **VIT}
    return ViT(**{**arguments, **changes}).eval()


def tokens_of(network: ViT) -> Tensor:
    with torch.no_grad():
        return network(volume((32, 32, 32)))[0]


def without_idle(tensors: State) -> State:
    return {n: t for n, t in tensors.items() if "norm_cross_attn" not in n}


def timm_names(tensors: State) -> State:
    return renamed(
        without_idle(tensors),
        (r"patch_embedding\.patch_embeddings", "patch_embed.proj"),
        (r"patch_embedding\.position_embeddings", "pos_embed"),
        (r"attn\.out_proj", "attn.proj"),
        (r"mlp\.linear", "mlp.fc"),
    )


def check_tokens(file: Path, config: UNETRConfig, expected: Tensor) -> str:
    backbone = config.build().eval()
    accounting = transfer(backbone, file, expected_share=1.0)
    assert accounting.part == "transformer"
    assert accounting.tensors[0] == accounting.tensors[1]
    with torch.no_grad():
        torch.testing.assert_close(backbone.network.vit(volume((32, 32, 32)))[0], expected)
    return str(accounting)


def test_a_vit_of_monais_tutorial_is_the_transformer_of_unetr(tmp_path: Path):
    network = vit()
    heads = {"conv3d_transpose.weight": torch.ones(2), "conv3d_transpose_1.bias": torch.ones(1)}
    stale = {"blocks.0.cross_attn.q.weight": torch.ones(2, 2)}
    torch.save({"state_dict": without_idle(state(network)) | heads | stale}, tmp_path / "vit.pt")
    said = check_tokens(tmp_path / "vit.pt", SMALL_UNETR, tokens_of(network))
    assert "never used" in said
    assert "2 left out (head of the pre-training)" in said
    assert passport(tmp_path / "vit.pt").layout == "monai-vit"


def test_a_linear_patch_embedding_becomes_the_convolution_that_it_is(tmp_path: Path):
    network = vit(proj_type="perceptron", in_channels=2)
    torch.save(state(network), tmp_path / "vit.pt")
    backbone = UNETRConfig(**{**SMALL_UNETR.model_dump(), "in_channels": 2}).build().eval()
    assert "became a convolution" in str(transfer(backbone, tmp_path / "vit.pt"))
    volumes = volume((32, 32, 32), channels=2)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network.vit(volumes)[0], network(volumes)[0])


@pytest.mark.parametrize("prefix", ["encoder.", ""])
def test_a_masked_autoencoder_with_timms_names_is_the_transformer_of_unetr(
    tmp_path: Path, prefix: str
):
    network = vit(qkv_bias=True)
    tensors = timm_names(state(network))
    if prefix:  # SelfMedMAE keeps the code of the encoder outside of it
        code = tensors.pop("pos_embed")
        tensors = prefixed(prefix, tensors) | {"encoder_pos_embed": code}
    else:  # as in the two-dimensional original: a place for the class token
        code = torch.cat([torch.zeros(1, 1, 24), tensors["pos_embed"]], dim=1)
        tensors["pos_embed"] = code
    tensors |= {f"{prefix}cls_token": torch.ones(1, 1, 24), "mask_token": torch.ones(1, 1, 8)}
    tensors |= {"decoder_pos_embed": torch.ones(1, 8, 8), "decoder.norm.weight": torch.ones(8)}
    tensors |= {"decoder_norm.weight": torch.ones(8)}
    torch.save({"model": prefixed("module.", tensors)}, tmp_path / "mae.pth")
    wanted = UNETRConfig(**{**SMALL_UNETR.model_dump(), "qkv_bias": True})
    said = check_tokens(tmp_path / "mae.pth", wanted, tokens_of(network))
    assert "class token: the network has none" in said
    found = passport(tmp_path / "mae.pth")
    assert found.layout == "mae-vit"
    assert {"hidden_size": 24, "mlp_dim": 48, "qkv_bias": True}.items() <= found.settings.items()


def test_a_whole_unetr_of_monai_computes_the_same(tmp_path: Path):
    torch.manual_seed(1)
    network = UNETR(1, 2, (32, 32, 32), feature_size=2, **VIT).eval()
    torch.save(without_idle(state(network)), tmp_path / "unetr.pt")
    backbone = SMALL_UNETR.build(2).eval()
    transfer(backbone, tmp_path / "unetr.pt", fresh=())
    with torch.no_grad():
        torch.testing.assert_close(backbone(volume((32, 32, 32))), network(volume((32, 32, 32))))


def test_position_codes_are_stretched_over_another_size(tmp_path: Path):
    network = vit(img_size=(48, 48, 48))
    torch.save(state(network), tmp_path / "vit.pt")
    backbone = SMALL_UNETR.build()
    said = str(transfer(backbone, tmp_path / "vit.pt"))
    assert "position codes resized from 3 x 3 x 3 to 2 x 2 x 2" in said
    code = network.patch_embedding.position_embeddings[0]
    expected = resampled_code(code, (3, 3, 3), (2, 2, 2))
    torch.testing.assert_close(
        backbone.network.state_dict()["vit.patch_embedding.position_embeddings"][0], expected
    )


def test_tables_of_relative_positions_are_stretched_to_our_window(tmp_path: Path):
    tensors = state(swin(legacy=False), *ENCODER)
    smooth = torch.linspace(-1, 1, 7)
    plane = (smooth[:, None, None] + 2 * smooth[None, :, None] - smooth).flatten()
    for name, tensor in list(tensors.items()):
        if name.endswith("bias_table"):  # of windows of 4: offsets from -3 to 3 along each axis
            tensors[name] = plane[:, None].repeat(1, tensor.shape[1])
        if name.endswith("relative_position_index"):
            tensors[name] = torch.zeros(64, 64, dtype=torch.int64)
    torch.save(tensors, tmp_path / "small.pt")
    backbone = config(merging="legacy").build()
    accounting = transfer(backbone, tmp_path / "small.pt")
    assert "position codes resized from 7 x 7 x 7 to 13 x 13 x 13" in str(accounting)
    table = backbone.network.state_dict()[
        "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    ].reshape(13, 13, 13, 3)
    torch.testing.assert_close(table[6, 6, 6], torch.zeros(3), atol=1e-6, rtol=0)
    steps = table[3:10, 6, 6, 0].diff()  # within the old grid a plane stays a plane
    torch.testing.assert_close(steps, steps[0].expand_as(steps))


# --- convolutional networks -------------------------------------------------------------------


def test_a_residual_encoder_u_net_of_nnssl_is_ours(tmp_path: Path):
    torch.manual_seed(1)
    source = ResEncUNetConfig(features=(2, 4), blocks=(1, 2)).build(2).eval()
    listed = repeated_names(source.network.state_dict())
    content = {
        "network_weights": listed,
        "nnssl_adaptation_plan": {"key_to_encoder": "encoder.stages", "a": None},
        "citations": ["one"],
        "current_epoch": 1000,
    }
    torch.save(content, tmp_path / "openmind.pth")
    found = passport(tmp_path / "openmind.pth")
    assert (found.layout, found.key) == ("resenc", "network_weights")
    assert found.settings["blocks"] == (1, 2)
    assert found.beside["current_epoch"] == 1000
    target = ResEncUNetConfig(features=(2, 4), blocks=(1, 2)).build(2).eval()
    accounting = transfer(target, tmp_path / "openmind.pth", fresh=())
    assert "the encoder, listed once more" in str(accounting)
    small = volume((8, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(target(small), source(small))
        torch.testing.assert_close(
            voco.load(tmp_path / "openmind.pth").eval()(small), source(small)
        )


def test_of_two_values_of_a_tensor_the_trained_one_is_taken(tmp_path: Path):
    torch.manual_seed(1)
    source = ResEncUNetConfig(features=(2, 4), blocks=(1, 1)).build()
    listed = repeated_names(state(source.network, "encoder."))
    listed = {n: t for n, t in listed.items() if not n.startswith("decoder.")}
    trained = {n: t + 1 if ".all_modules." in n else t for n, t in listed.items()}
    torch.save({"network_weights": trained}, tmp_path / "s3d.pth")
    target = ResEncUNetConfig(features=(2, 4), blocks=(1, 1)).build()
    said = str(transfer(target, tmp_path / "s3d.pth"))
    assert "have two values; that of all_modules is taken" in said
    name = "encoder.stem.convs.0.conv.weight"
    assert torch.equal(target.network.state_dict()[name], listed[name] + 1)


def test_a_basic_u_net_of_monai_is_ours(tmp_path: Path):
    torch.manual_seed(1)
    features = (2, 2, 2, 2, 2, 2)
    network = BasicUNet(3, 1, 2, features).eval()
    torch.save({"model": {f"net.{n}": t for n, t in state(network).items()}}, tmp_path / "unet.pt")
    found = passport(tmp_path / "unet.pt")
    assert (found.layout, found.stripped, found.outputs) == ("monai-basic-unet", "net.", 2)
    target = UNetConfig(features=features).build(2).eval()
    transfer(target, tmp_path / "unet.pt", fresh=())
    small = volume((32, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(target(small), network(small))


# --- Models Genesis ---------------------------------------------------------------------------

SMALL_GENESIS = GenesisUNetConfig(features=genesis.SMALL)


def models_genesis(outputs: int = 1) -> tuple[dict[str, Any], State]:
    """As its program writes ``Genesis_Chest_CT.pt``."""
    tensors = genesis.tensors(outputs=outputs)
    weights = [nn.Parameter(torch.zeros(2))]
    weights[0].grad = torch.ones(2)
    optimizer = torch.optim.SGD(weights, 1.0, momentum=0.9)
    optimizer.step()
    content = {
        "state_dict": prefixed("module.", tensors),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    return content, tensors


def suprem_unet() -> tuple[dict[str, Any], State]:
    """As SuPreM's program writes ``supervised_suprem_unet_2100.pth``: heads for an output layer."""
    tensors = {n: t for n, t in genesis.tensors().items() if not n.startswith("out_tr.")}
    heads = {
        "organ_embedding": torch.ones(3, 4),
        "text_to_vision.weight": torch.ones(2, 4),
        "controller.weight": torch.ones(2),
        "precls_conv.0.weight": torch.ones(4),
        "GAP.3.bias": torch.ones(1),
    }
    content = {
        "net": prefixed("module.", prefixed("backbone.", tensors) | heads),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "scheduler": {"last_epoch": 2100},
        "epoch": 2100,
    }
    return content, tensors


@pytest.mark.parametrize(
    ("layout", "make"), [("models-genesis", models_genesis), ("suprem-unet", suprem_unet)]
)
def test_a_u_net_of_models_genesis_computes_what_its_authors_computed(
    tmp_path: Path, layout: str, make: Callable[[], tuple[dict[str, Any], State]]
):
    content, tensors = make()
    torch.save(content, tmp_path / "weights.pt")
    found = passport(tmp_path / "weights.pt")
    assert (found.layout, found.backbone) == (layout, "genesis_unet")
    assert found.settings["features"] == genesis.SMALL
    assert found.fits[0].fits
    assert found.fits[0].tensors == (56, 56)
    assert "56 of 56 tensors, 100 % of the encoder" in str(found)
    assert "--backbone.name genesis_unet --backbone.features 4 6 8 10" in str(found)
    backbone = SMALL_GENESIS.build(3)
    accounting = transfer(backbone, tmp_path / "weights.pt", expected_share=1.0)
    assert accounting.tensors == (56, 56)
    # The output layer, of another number of classes or not there at all, is new.
    assert accounting.new == ("out_tr.final_conv.weight", "out_tr.final_conv.bias")
    assert len(accounting.loaded) == 104
    small = volume((16, 16, 24))
    with torch.no_grad():
        made = backbone.eval().decode(backbone.encode(small))
        torch.testing.assert_close(made, genesis.decoded(tensors, small), rtol=1e-4, atol=1e-5)
    state = backbone.network.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in accounting.loaded)
    assert {"down_tr64.ops.0.bn1.running_mean", "up_tr64.ops.1.bn1.running_var"} < {
        *accounting.loaded
    }


def test_voco_load_gives_models_genesis_with_its_output_layer(tmp_path: Path):
    content, tensors = models_genesis(outputs=2)
    torch.save(content, tmp_path / "genesis.pt")
    assert passport(tmp_path / "genesis.pt").outputs == 2
    network = voco.load(tmp_path / "genesis.pt").eval()
    small = volume((16, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(
            network(small), genesis.logits(tensors, small), rtol=1e-4, atol=1e-5
        )


def test_heads_of_suprem_are_left_out_and_named(tmp_path: Path):
    torch.save(suprem_unet()[0], tmp_path / "suprem.pth")
    accounting = transfer(SMALL_GENESIS.build(), tmp_path / "suprem.pth")
    ((reason, names),) = accounting.left_out
    assert "heads that make a layer for each organ" in reason
    assert len(names) == 5


def test_a_file_of_an_older_torch_lacks_counters_and_loads(tmp_path: Path):
    content, tensors = models_genesis()
    content["state_dict"] = {
        n: t for n, t in content["state_dict"].items() if "num_batches" not in n
    }
    torch.save(content, tmp_path / "genesis.pt")
    backbone = SMALL_GENESIS.build()
    accounting = transfer(backbone, tmp_path / "genesis.pt", fresh=())
    assert accounting.tensors == (48, 48)
    assert torch.equal(
        backbone.network.state_dict()["up_tr64.ops.0.bn1.running_var"],
        tensors["up_tr64.ops.0.bn1.running_var"],
    )


def test_running_means_that_are_missing_are_named(tmp_path: Path):
    content, _ = models_genesis()
    del content["state_dict"]["module.down_tr128.ops.1.bn1.running_mean"]
    torch.save(content, tmp_path / "genesis.pt")
    with pytest.raises(WeightsError, match=r"1 missing: down_tr128\.ops\.1\.bn1\.running_mean"):
        transfer(SMALL_GENESIS.build(), tmp_path / "genesis.pt")


ELSEWHERE = {
    "plain-conv-unet": ["encoder.stages.0.0.convs.0.conv.weight"],
    "primus": ["eva.blocks.0.attn.q_proj.weight", "down_projection.proj.weight"],
}


@pytest.mark.parametrize("layout", list(ELSEWHERE))
def test_a_network_that_is_not_here_is_named_and_refused(tmp_path: Path, layout: str):
    torch.save({name: torch.ones(2) for name in ELSEWHERE[layout]}, tmp_path / "w.pt")
    found = passport(tmp_path / "w.pt", ["unet"])
    assert found.layout == layout
    assert not found.fits[0].fits
    for attempt in (voco.load, lambda path: transfer(UNetConfig().build(), path)):
        with pytest.raises(WeightsError, match="No backbone here has this architecture"):
            attempt(tmp_path / "w.pt")


def test_every_layout_is_tested_here():
    tested = {*MAKERS, *ELSEWHERE, "monai-swin-unetr", "monai-unetr", "monai-vit", "mae-vit"}
    tested |= {"resenc", "monai-basic-unet", "models-genesis", "suprem-unet"}
    assert {family.name for family in FAMILIES} == tested


# --- input channels ---------------------------------------------------------------------------


@given(
    old=st.integers(1, 4),
    new=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_equal_channels_give_the_response_that_equal_channels_gave(old: int, new: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, old, 2, 2, 2, generator=rng)
    image = torch.randn(1, 1, 4, 4, 4, generator=rng)
    before = F.conv3d(image.expand(-1, old, -1, -1, -1), weight)
    after = F.conv3d(image.expand(-1, new, -1, -1, -1), spread(weight, new))
    torch.testing.assert_close(after, before)


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "swin_unetr": lambda channels: config(in_channels=channels, merging="legacy").build(),
    "unetr": lambda channels: SMALL_UNETR.model_copy(update={"in_channels": channels}).build(),
    "unet": lambda channels: UNetConfig(features=(2, 2, 2, 2, 2, 2), in_channels=channels).build(),
    "resenc_unet": lambda channels: ResEncUNetConfig(
        features=(2, 4), blocks=(1, 1), in_channels=channels
    ).build(),
    "genesis_unet": lambda channels: SMALL_GENESIS.model_copy(
        update={"in_channels": channels}
    ).build(),
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_network_of_four_channels_starts_as_that_of_one(tmp_path: Path, name: str):
    one, four = BACKBONES[name](1).eval(), BACKBONES[name](4).eval()
    save_file(state(one.network), tmp_path / "one.safetensors")
    said = str(transfer(four, tmp_path / "one.safetensors", fresh=()))
    assert "1 input channel made 4" in said
    volumes = volume(CUBE if name == "swin_unetr" else (32, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(
            four(volumes.expand(-1, 4, -1, -1, -1)), one(volumes), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_backbone_names_all_weights_that_read_its_channels(name: str):
    one, four = (BACKBONES[name](count).network.state_dict() for count in (1, 4))
    assert {n for n in one if one[n].shape != four[n].shape} == {*BACKBONES[name](1).input_weights}


# --- what is not right ------------------------------------------------------------------------


def test_a_layout_that_is_nearly_known_says_what_it_is_like_and_lacks(tmp_path: Path):
    tensors = {n: t for n, t in voco_v1()[0]["state_dict"].items() if n.startswith("student.")}
    tensors = renamed(tensors, ("swinViT", "swin"))
    torch.save({"odd": torch.ones(1), **tensors}, tmp_path / "near.pt")
    found = passport(tmp_path / "near.pt")
    assert found.kind == "unknown"
    assert "names begin with 'student.swin.'" in found.nearest
    with pytest.raises(WeightsError, match="It is most like"):
        transfer(config(merging="fixed").build(), tmp_path / "near.pt")
    with pytest.raises(WeightsError, match="layout that is not known"):
        voco.load(tmp_path / "near.pt")


def test_what_is_missing_from_the_likest_layout_is_named(tmp_path: Path):
    save_file({"down_tr64.ops.0.conv1.weight": torch.ones(1)}, tmp_path / "near.safetensors")
    found = passport(tmp_path / "near.safetensors")
    assert "most like 'models-genesis'" in found.nearest
    assert "no name begins with down_tr512." in found.nearest


def test_a_file_of_something_else_altogether_is_unknown(tmp_path: Path):
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    found = passport(tmp_path / "other.safetensors", ["unet", "unetr"])
    assert "fc.weight" in found.nearest
    assert [fit.fits for fit in found.fits] == [False, False]


def test_weights_of_another_network_are_refused_with_its_name_and_settings(tmp_path: Path):
    torch.save(suprem()[0], tmp_path / "suprem.pth")
    with pytest.raises(WeightsError, match="use_v2 is False, asked for is True"):
        transfer(config(merging="legacy").build(), tmp_path / "suprem.pth")
    with pytest.raises(WeightsError, match="name is 'swin_unetr', asked for is 'unetr'"):
        transfer(SMALL_UNETR.build(), tmp_path / "suprem.pth")
    assert [fit.said for fit in passport(tmp_path / "suprem.pth", ["unetr"]).fits] == [
        "the file is of 'swin_unetr'"
    ]


def test_a_published_file_that_lacks_a_tensor_is_refused_and_the_tensor_named(tmp_path: Path):
    content, _ = voco_10k()
    del content["module.encoder2.layer.conv1.conv.weight"]
    torch.save(content, tmp_path / "voco.pt")
    with pytest.raises(WeightsError, match=r"1 missing: encoder2\.layer\.conv1\.conv\.weight"):
        transfer(config(merging="legacy").build(), tmp_path / "voco.pt")
    assert not passport(tmp_path / "voco.pt").fits[0].fits


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trapped",))


def test_a_published_file_with_code_in_it_is_refused_and_the_code_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({**voco_v1()[0], "args": _Trap()}, "voco.pt")
    with pytest.raises(WeightsError, match=r"\((posix|nt)\.mkdir\) that could run code"):
        passport(Path("voco.pt"))
    assert not Path("trapped").exists()


def test_a_passport_is_plain_enough_for_json(published: tuple[str, Path, SwinUNETR, bool]):
    from dataclasses import asdict

    found = json.loads(json.dumps(asdict(passport(published[1]))))
    assert found["layout"] == published[0]
    assert len(found["sha256"]) == 64
