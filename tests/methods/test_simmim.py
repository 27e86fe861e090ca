"""SimMIM: how much is hidden, heads, losses, which networks it trains."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, TinyMaskedConfig, step_at

from voco.augment.masking import spread
from voco.backbones import SwinUNETRConfig, UNETRConfig
from voco.errors import ConfigError
from voco.methods.simmim import (
    SimMIM,
    SimMIMConfig,
    best_constant,
    linear_head,
    reconstruction_loss,
    uniform,
    upsampling_head,
)

SMALL = {"crop": (8, 8, 16), "cube": (4, 4, 4)}
SWIN = SwinUNETRConfig(feature_size=12, depths=(1, 1, 1, 1), use_v2=False)
VIT = UNETRConfig(size=(32, 32, 32), feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2)


def simmim(**changes) -> SimMIM:
    torch.manual_seed(0)
    return SimMIMConfig(**(SMALL | changes)).build(TinyMaskedConfig().build())


def volumes_for(method, count=2):
    return torch.rand(count, 1, *method.window, generator=torch.Generator().manual_seed(1))


# ---- what is hidden ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "ratio", "rounding", "hidden", "cubes"),
    [
        (96, 0.6, "up", 130, 216),
        (96, 0.6, "down", 129, 216),
        (96, 0.75, "down", 162, 216),
        (64, 0.6, "up", 39, 64),
    ],
)
def test_as_many_cubes_are_hidden_as_in_the_references(side, ratio, rounding, hidden, cubes):
    config = SimMIMConfig(crop=(side,) * 3, mask_ratio=ratio, rounding=rounding)
    assert config.hidden_cubes == hidden
    assert math.prod(config.grid) == cubes


def test_by_default_it_is_the_swin_unetr_reference():
    assert SimMIMConfig() == SimMIMConfig(
        crop=(96, 96, 96),
        cube=(16, 16, 16),
        mask_ratio=0.6,
        rounding="up",
        token_std=0.02,
        head="upsampling",
        error="absolute",
        counted="hidden",
    )


def test_views_hide_so_many_cubes_and_change_no_voxel():
    method = simmim()
    volumes = volumes_for(method)
    seen, hidden = method.views(volumes, step_at())
    assert torch.equal(seen, volumes)
    assert hidden.shape == (2, 2, 2, 4)
    assert hidden.sum(dim=(1, 2, 3)).tolist() == [10, 10]
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize("head", ["upsampling", "linear"])
def test_the_cubes_that_make_the_loss_are_those_the_network_does_not_see(head):
    method = simmim(head=head)
    volumes, step = volumes_for(method), step_at()
    hidden = method.views(volumes, step).hidden
    voxels = spread(hidden, (4, 4, 4))[:, None]
    other = torch.where(voxels, volumes + 1, volumes)
    found = [method._restored(v, hidden) for v in (volumes, other)]
    assert torch.equal(*found)
    expected = (found[0] - volumes).abs()[voxels].mean()
    torch.testing.assert_close(method(volumes, step).losses["reconstruction"], expected)
    other = torch.where(voxels, volumes, volumes + 1)
    assert not torch.equal(method._restored(other, hidden), found[0])


def test_where_all_voxels_count_the_loss_is_their_mean():
    method = simmim(counted="all", error="squared")
    volumes, step = volumes_for(method), step_at()
    found = method._restored(*method.views(volumes, step))
    expected = (found - volumes).square().mean()
    torch.testing.assert_close(method(volumes, step).losses["reconstruction"], expected)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_the_token_starts_with_the_spread_that_is_set(std):
    backbone = TinyMaskedConfig().build()
    backbone.embedding_width = 10_000
    backbone.network.patch = torch.nn.Conv3d(1, 10_000, 2, stride=2)
    backbone.network.mix = torch.nn.Conv3d(10_000, 5, 1)
    token = SimMIMConfig(**SMALL, token_std=std).build(backbone).mask_token
    assert token.std().item() == pytest.approx(std, rel=0.03)
    assert token.mean().item() == pytest.approx(0, abs=0.05 * std)


# ---- heads ------------------------------------------------------------------------------------


def test_the_upsampling_head_halves_768_channels_five_times():
    head = upsampling_head(768, 32, 1).to("meta")
    kernels = [layer for layer in head if isinstance(layer, torch.nn.Conv3d)]
    widths = [(kernel.in_channels, kernel.out_channels) for kernel in kernels]
    assert widths == [(768, 384), (384, 192), (192, 96), (96, 48), (48, 24), (24, 1)]
    assert [kernel.kernel_size[0] for kernel in kernels] == [3, 3, 3, 3, 3, 1]
    assert head(torch.zeros(1, 768, 3, 3, 3, device="meta")).shape == (1, 1, 96, 96, 96)


def test_the_linear_head_makes_the_voxels_of_a_place_from_that_place_alone():
    head = linear_head(6, 4, 2)
    level = torch.randn(1, 6, 2, 1, 3)
    before = head(level)
    assert before.shape == (1, 2, 8, 4, 12)
    level[:, :, 1, 0, 2] += 1
    changed = (head(level) != before).all(dim=1)[0]
    expected = torch.zeros(8, 4, 12, dtype=torch.bool)
    expected[4:, :, 8:] = True
    assert torch.equal(changed, expected)


def test_the_linear_head_orders_voxels_with_x_outermost_and_channels_before_all():
    head = linear_head(1, 2, 2)
    torch.nn.init.zeros_(head[0].weight)
    head[0].bias.data = torch.arange(16.0)
    found = head(torch.zeros(1, 1, 1, 1, 1))
    assert torch.equal(found, torch.arange(16.0).view(1, 2, 2, 2, 2))


# ---- losses and guesses -----------------------------------------------------------------------


def test_losses_in_closed_form():
    true = torch.tensor([1.0, -3, 5, 2]).view(1, 2, 1, 1, 2)
    found = torch.zeros_like(true)
    counted = torch.tensor([False, True]).view(1, 1, 1, 2)
    # The second voxel: -3 in the first channel, 2 in the second.
    assert reconstruction_loss(found, true, counted, "absolute") == (3 + 2) / 2
    assert reconstruction_loss(found, true, counted, "squared") == (9 + 4) / 2
    assert reconstruction_loss(found, true, ~counted, "absolute") == (1 + 5) / 2


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_a_loss_of_endless_predictions_is_finite(error):
    found = torch.full((1, 1, 2, 2, 2), torch.inf, dtype=torch.bfloat16)
    counted = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    loss = reconstruction_loss(found, torch.zeros_like(found), counted, error)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_no_other_constant_fits_what_is_seen_better(error):
    volumes = torch.rand(2, 2, 4, 4, 4) ** 3
    hidden = torch.rand(2, 4, 4, 4) < 0.5
    best = best_constant(volumes, hidden, error)
    least = reconstruction_loss(best, volumes, ~hidden, error)
    for step in (-0.02, 0.02):
        assert reconstruction_loss(best + step, volumes, ~hidden, error) > least
    other = torch.where(hidden[:, None], 7.0, volumes)
    assert torch.equal(best_constant(other, hidden, error), best)


def test_a_guess_costs_nothing_where_all_is_one_intensity():
    health = simmim()(torch.full((2, 1, 8, 8, 16), 0.3), step_at()).health
    assert health["loss_chance"] == 0
    assert health["uniform_share"] == 1
    health = simmim()(volumes_for(simmim()), step_at()).health
    assert health["loss_chance"].item() == pytest.approx(0.25, abs=0.02)
    assert health["uniform_share"] == 0


def test_a_cube_is_uniform_if_every_channel_is():
    volumes = torch.ones(1, 2, 4, 4, 8)
    volumes[0, 1] = -2
    volumes[0, 1, 3, 3, 3] = -1
    assert uniform(volumes, (4, 4, 4)).tolist() == [[[[False, True]]]]


# ---- networks and settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "part", "side", "head"),
    [(SWIN, "swinViT.", 64, "upsampling"), (VIT, "vit.", 32, "linear")],
    ids=["swin", "vit"],
)
def test_it_trains_and_hands_on_the_transformer_alone(backbone, part, side, head):
    method = SimMIMConfig(crop=(side,) * 3, head=head).build(backbone.build())
    outcome = method(volumes_for(method, 1), step_at())
    outcome.losses["reconstruction"].backward()
    assert method.trained_parts() == ("tokens",)
    handed = method.handover()
    assert handed.prefixes("tokens") == (part,)
    for name, parameter in handed.network.named_parameters():
        reached = parameter.grad is not None
        assert reached == (name.startswith(part) and "norm_cross_attn" not in name), name
        assert reached == parameter.requires_grad, name
    assert method.mask_token.grad.abs().max() > 0


def test_a_network_without_patches_is_refused_and_told_which_fit():
    with pytest.raises(ConfigError, match="swin_unetr, unetr"):
        SimMIMConfig(**SMALL).build(TinyConfig().build())


def test_cubes_that_are_no_whole_patches_are_refused_with_the_nearest_that_are():
    config = SimMIMConfig(crop=(24, 24, 24), cube=(3, 6, 12))
    with pytest.raises(ConfigError, match=r"\(2, 2, 2\) voxels.*nearest that fits is \(4, 6, 12\)"):
        config.build(TinyMaskedConfig().build())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (96, 96, 90)}, r"whole number of cubes of \(16, 16, 16\)"),
        ({"crop": (16, 16, 16)}, "hides 1 of 1 cubes"),
        ({"mask_ratio": 0.999}, "hides 216 of 216 cubes"),
        ({"mask_ratio": 0.001, "rounding": "down"}, "hides 0 of 216 cubes"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"error": "l1"}, "absolute"),
        ({"token_std": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        SimMIMConfig(**changes)


@pytest.mark.parametrize(("head", "error"), [("upsampling", "absolute"), ("linear", "squared")])
def test_it_learns_to_restore_what_is_hidden(head, error):
    method = simmim(head=head, error=error, mask_ratio=0.25)
    ramp = torch.linspace(0, 1, 16).expand(8, 1, 8, 8, 16).clone()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(60):
        loss = method(ramp, step_at(number)).losses["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outcome = method.eval()(ramp, step_at(1000))
    assert outcome.losses["reconstruction"] < outcome.health["loss_chance"] / 2
