"""What every backbone promises, whatever it is."""

import functools
import importlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tiny import TinyMaskedConfig

from voco.backbone import Backbone, BackboneConfig, MaskedBackbone
from voco.backbones import BackboneSettings, available
from voco.errors import ConfigError
from voco.nn.channels_last import channels_last

SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "swin_unetr": ({"feature_size": 12, "depths": (1, 1, 1, 1)}, (64, 32, 32)),
    "unet": ({"features": (4, 6, 8, 10, 12, 5)}, (32, 16, 16)),
    "unetr": (
        {
            "size": (32, 32, 48),
            "feature_size": 4,
            "hidden_size": 12,
            "mlp_dim": 8,
            "num_heads": 2,
        },
        (32, 32, 48),
    ),
    "resenc_unet": ({"features": (4, 6, 8), "blocks": (1, 2, 1)}, (8, 8, 12)),
    "genesis_unet": ({"features": (4, 6, 8, 10)}, (16, 16, 24)),
}
"""Settings that run in no time, and a size that the networks can just about take."""


def settings_of(name: str, **changes: Any) -> BackboneConfig:
    values = {"name": name, **SMALL[name][0], **changes}
    return TypeAdapter(BackboneSettings).validate_python(values)


def built(name: str, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    return settings_of(name, in_channels=2, **changes).build(out_channels=3)


cached = functools.cache(built)


def volumes_for(name: str) -> torch.Tensor:
    return torch.randn(1, 2, *SMALL[name][1], generator=torch.Generator().manual_seed(1))


every = pytest.mark.parametrize("name", available())


def test_every_backbone_is_tested_here():
    assert set(available()) == set(SMALL)


@every
def test_a_name_selects_its_settings_and_they_survive_a_round_trip(name: str):
    settings = settings_of(name)
    again = TypeAdapter(BackboneSettings).validate_json(settings.model_dump_json())
    assert again == settings
    assert again.name == name  # pyright: ignore[reportAttributeAccessIssue]


@every
def test_encoder_decoder_and_head_make_up_the_network_without_rest_or_overlap(name: str):
    backbone = built(name)
    for key in backbone.network.state_dict():
        owners = [
            (part, prefix)
            for part in ("encoder", "decoder", "head")
            for prefix in backbone.prefixes(part)
            if key.startswith(prefix)
        ]
        assert len(owners) == 1, (key, owners)


@every
def test_tokens_are_a_part_of_the_encoder(name: str):
    backbone = built(name)
    assert set(backbone.prefixes("tokens")) <= set(backbone.prefixes("encoder"))


ANOTHER_ORDER = {"swin_unetr", "unetr", "unet", "resenc_unet"}
"""Backbones that add up the library's numbers in another order, for speed."""


def assert_the_librarys(name: str, found: torch.Tensor, expected: torch.Tensor):
    """To the last bit; up to rounding where numbers are added up in another order."""
    if name in ANOTHER_ORDER:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, expected)


@every
def test_head_of_decode_of_encode_is_the_librarys_own_forward_pass(name: str):
    backbone, volumes = built(name).eval(), volumes_for(name)
    with torch.no_grad():
        expected = backbone.network(volumes)
        found = backbone.head(backbone.decode(backbone.encode(volumes)))
        assert torch.equal(backbone(volumes), found)
    assert_the_librarys(name, found, expected)
    assert expected.shape == (1, 3, *volumes.shape[2:])


@every
def test_the_pyramid_has_the_channels_and_strides_it_declares(name: str):
    backbone, volumes = built(name), volumes_for(name)
    with torch.no_grad():
        pyramid = backbone.encode(volumes)
        decoded = backbone.decode(pyramid)
    shapes = [tuple(level.shape[1:]) for level in pyramid]
    assert shapes == [
        (channels, *(side // stride for side in volumes.shape[2:]))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert decoded.shape[1:] == (backbone.decoded_channels, *volumes.shape[2:])
    assert set(backbone.embedding_levels) <= set(range(len(pyramid)))


@pytest.mark.parametrize("name", ["unet", "resenc_unet", "unetr", "swin_unetr"])
def test_on_a_processor_no_layer_of_a_network_changes_the_layout(name: str):
    backbone = built(name)
    volumes = volumes_for(name).expand(2, -1, -1, -1, -1)
    with torch.no_grad():
        pyramid = backbone.encode(volumes)
        stages = backbone.decode_stages(pyramid)
    assert all(channels_last(level) for level in [pyramid[0], *stages])


@every
def test_the_decoder_shows_its_stages_from_coarse_to_what_it_gives(name: str):
    backbone, volumes = built(name).eval(), volumes_for(name)
    with torch.no_grad():
        pyramid = backbone.encode(volumes)
        stages = backbone.decode_stages(pyramid)
        assert torch.equal(stages[-1], backbone.decode(pyramid))
    strides = [volumes.shape[2] // stage.shape[2] for stage in stages]
    assert strides == sorted(strides, reverse=True)
    assert len(set(strides)) == len(backbone.channels) - 1
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (channels, *(side // stride for side in volumes.shape[2:]))
        for channels, stride in zip(backbone.stage_channels, strides, strict=True)
    ]


@every
def test_encoding_uses_the_encoder_and_all_of_it(name: str):
    backbone = built(name)
    pyramid = backbone.encode(volumes_for(name))
    pooled = [pyramid[level].square().mean() for level in backbone.embedding_levels]
    torch.stack(pooled).sum().backward()
    for key, parameter in backbone.network.named_parameters():
        in_use = key.startswith(backbone.encoder_prefixes) and parameter.requires_grad
        assert (parameter.grad is not None) == in_use, key


@every
def test_a_training_step_reaches_every_parameter_that_asks_for_a_gradient(name: str):
    backbone = built(name).train()
    backbone(volumes_for(name)).square().mean().backward()
    for key, parameter in backbone.network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert bool(torch.isfinite(parameter.grad).all()), key
        else:
            assert parameter.grad is None, key


@every
def test_in_evaluation_no_volume_changes_what_is_made_of_another(name: str):
    backbone, volumes = built(name).eval(), volumes_for(name)
    with torch.no_grad():
        together = backbone(torch.cat([volumes, 5 * volumes + 2]))
        torch.testing.assert_close(together[:1], backbone(volumes), rtol=1e-4, atol=1e-4)


@every
def test_in_training_volumes_are_mixed_only_if_that_is_declared(name: str):
    backbone, volumes = built(name).train(), volumes_for(name)
    with torch.no_grad():
        together = backbone(torch.cat([volumes, 5 * volumes + 2]))
        same = torch.allclose(together[:1], backbone(volumes), rtol=1e-4, atol=1e-4)
    assert same != backbone.mixes_volumes


@every
def test_the_least_size_can_be_trained_on(name: str):
    backbone = built(name).train()
    side = backbone.smallest
    size = backbone.fixed_size or (side, side, side)
    backbone.check_size(size)
    with torch.no_grad():
        assert backbone(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("name", ["unet", "swin_unetr", "resenc_unet", "genesis_unet"])
def test_one_step_below_the_least_size_cannot_be_trained_on(name: str):
    backbone = built(name).train()
    side = backbone.smallest - backbone.divisor
    with pytest.raises(ValueError, match=r"more than 1 (spatial element|value per channel)"):
        backbone(torch.randn(1, 2, side, side, side))


@every
@given(size=st.tuples(*[st.integers(1, 300)] * 3))
def test_a_refused_size_comes_with_one_that_fits(name: str, size: tuple[int, int, int]):
    backbone = cached(name)
    fits = all(side % backbone.divisor == 0 and side >= backbone.smallest for side in size)
    if fits and backbone.fixed_size in (None, size):
        backbone.check_size(size)
        return
    with pytest.raises(ConfigError, match=re.escape(str(size))) as refusal:
        backbone.check_size(size)
    x, y, z = re.findall(r"\((\d+), (\d+), (\d+)\)", str(refusal.value))[-1]
    backbone.check_size((int(x), int(y), int(z)))


@every
def test_the_library_class_alone_rebuilds_the_network_from_plain_values(name: str):
    backbone = built(name)
    kind = type(backbone.network)
    found = getattr(importlib.import_module(kind.__module__), kind.__qualname__)
    plain = found(**json.loads(json.dumps(backbone.library_arguments)))
    plain.load_state_dict(backbone.network.state_dict(), strict=True)
    volumes = volumes_for(name)
    with torch.no_grad():
        found, expected = backbone.eval()(volumes), plain.eval()(volumes)
    assert_the_librarys(name, found, expected)


@every
def test_the_same_seed_gives_the_same_weights(name: str):
    one, two = built(name).state_dict(), built(name).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@every
def test_settings_that_may_change_do_not_change_a_tensor(name: str):
    config = settings_of(name)
    usual = built(name).network.state_dict()
    for key in config.changeable:
        other: Any = True if isinstance(getattr(config, key), bool) else 0.25
        changed = built(name, **{key: other}).network.state_dict()
        assert {k: v.shape for k, v in changed.items()} == {k: v.shape for k, v in usual.items()}


# ---- hiding patches ---------------------------------------------------------------------------

LAST_MAP: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "swin_unetr": lambda backbone, volumes: backbone.network.swinViT(volumes)[4],
    "unetr": lambda backbone, volumes: backbone.encode(volumes)[-1],
}
"""The map of backbones that can hide patches, as the library makes it with nothing hidden."""

hiding = pytest.mark.parametrize("name", [*LAST_MAP, "tiny"])


def built_to_hide(name: str, **changes: Any) -> MaskedBackbone:
    torch.manual_seed(0)
    backbone = TinyMaskedConfig(in_channels=2).build() if name == "tiny" else built(name, **changes)
    assert isinstance(backbone, MaskedBackbone)
    return backbone.eval()


def hidden_part(name: str) -> tuple[MaskedBackbone, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A backbone, volumes, which of their patches are hidden, and a token."""
    backbone = built_to_hide(name)
    volumes = volumes_for(name) if name in SMALL else torch.randn(1, 2, 8, 8, 12)
    grid = [side // edge for side, edge in zip(volumes.shape[2:], backbone.patch, strict=True)]
    generator = torch.Generator().manual_seed(2)
    hidden = torch.rand(1, *grid, generator=generator) < 0.6
    assert hidden.any()
    assert not hidden.all()
    return backbone, volumes, hidden, torch.randn(backbone.embedding_width, generator=generator)


def per_voxel(hidden: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    return torch.kron(hidden.int(), torch.ones(1, *patch).int()).bool()


def test_every_backbone_that_can_hide_patches_is_tested_here():
    assert {n for n in available() if isinstance(cached(n), MaskedBackbone)} == set(LAST_MAP)


@hiding
def test_a_map_with_hidden_patches_has_the_form_of_the_last_level(name: str):
    backbone, volumes, hidden, token = hidden_part(name)
    with torch.no_grad():
        level = backbone.encode_masked(volumes, hidden, token)
    sides = (side // backbone.strides[-1] for side in volumes.shape[2:])
    assert level.shape == (1, backbone.channels[-1], *sides)


@pytest.mark.parametrize(
    ("name", "changes"), [("swin_unetr", {}), ("swin_unetr", {"use_v2": False}), ("unetr", {})]
)
def test_nothing_hidden_is_the_librarys_own_map(name: str, changes: dict[str, Any]):
    backbone, volumes = built_to_hide(name, **changes), volumes_for(name)
    grid = [side // edge for side, edge in zip(volumes.shape[2:], backbone.patch, strict=True)]
    none, token = torch.zeros(1, *grid, dtype=torch.bool), torch.ones(backbone.embedding_width)
    with torch.no_grad():
        found = backbone.encode_masked(volumes, none, token)
        assert_the_librarys(name, found, LAST_MAP[name](backbone, volumes))


@hiding
def test_nothing_of_a_hidden_patch_reaches_the_map(name: str):
    backbone, volumes, hidden, token = hidden_part(name)
    under = per_voxel(hidden, backbone.patch)[:, None]
    with torch.no_grad():
        before = backbone.encode_masked(volumes, hidden, token)
        other = torch.where(under, torch.randn(volumes.shape), volumes)
        assert torch.equal(backbone.encode_masked(other, hidden, token), before)
        other = torch.where(under, volumes, torch.randn(volumes.shape))
        assert not torch.equal(backbone.encode_masked(other, hidden, token), before)
        assert not torch.equal(backbone.encode_masked(volumes, hidden, token + 1), before)


@hiding
def test_the_voxels_of_a_hidden_patch_are_where_it_is_said_to_be(name: str):
    backbone, volumes, hidden, token = hidden_part(name)
    alone = torch.zeros_like(hidden)
    alone[0, 1, 0, -1] = True
    with torch.no_grad():
        before = backbone.encode_masked(volumes, alone, token)
        for at, changes in ((1, False), (0, True)):
            other = volumes.clone()
            x, y, z = backbone.patch
            other[:, :, at * x : (at + 1) * x, :y, -z:] += 5
            assert torch.equal(backbone.encode_masked(other, alone, token), before) != changes


@hiding
def test_hiding_trains_the_token_and_the_parameters_of_the_tokens_and_no_others(name: str):
    backbone, volumes, hidden, token = hidden_part(name)
    token.requires_grad_()
    level = backbone.encode_masked(volumes, hidden, token)
    (level * torch.randn(level.shape)).mean().backward()
    assert token.grad is not None
    assert token.grad.abs().max() > 0
    for key, parameter in backbone.network.named_parameters():
        in_use = key.startswith(backbone.prefixes("tokens")) and parameter.requires_grad
        assert (parameter.grad is not None) == in_use, key
