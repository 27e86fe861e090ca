"""S3D: what is hidden, how levels are filled, what is painted and handed on."""

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, TinyTokensConfig, step_at

from voco.backbones import ResEncUNetConfig, UNetConfig
from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.s3d import (
    S3D,
    Filler,
    S3DConfig,
    draw_seen,
    hidden_count,
    painting_health,
    reconstruction_loss,
)
from voco.nn.sparse import Seen

SMALL = {"crop": (8, 8, 8), "block": 4}
RESENC = ResEncUNetConfig(features=(4, 6, 8), blocks=(1, 2, 1))
UNET = UNetConfig(features=(4, 4, 6, 8, 10, 4))
FITTING = {"resenc_unet": (RESENC, 8, 2), "unet": (UNET, 32, 8)}
"""Small networks, with a side of a volume and of a block that suit them."""
fitting = pytest.mark.parametrize(("config", "side", "block"), FITTING.values(), ids=FITTING)


def s3d(backbone=None, **changes) -> S3D:
    torch.manual_seed(0)
    return S3DConfig(**(SMALL | changes)).build((backbone or TinyConfig()).build())


def volumes_for(method, count=2):
    return torch.rand(count, 1, *method.window, generator=torch.Generator().manual_seed(1))


def changed_where(volumes, places):
    return torch.where(places, volumes + 1, volumes)


# ---- what is hidden ---------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "hidden"), [(160, 750), (96, 162), (64, 48)])
def test_as_many_blocks_are_hidden_as_in_the_reference(side, hidden):
    config = S3DConfig(crop=(side, side, side))
    seen = draw_seen(Draws(0, 0), 3, config.grid, config.ratios)
    assert seen.shape == (3, *[side // 16] * 3)
    assert (~seen).flatten(1).sum(dim=1).tolist() == [hidden] * 3


def test_the_share_of_hidden_blocks_is_rounded_down():
    assert [hidden_count(8, ratio) for ratio in (0.1, 0.125, 0.74, 0.75, 0.99)] == [0, 1, 5, 6, 7]


def test_every_block_is_hidden_as_often_as_the_others():
    seen = torch.cat([draw_seen(Draws(0, at), 50, (2, 2, 2), (0.75, 0.75)) for at in range(20)])
    assert (~seen).float().mean(dim=0).flatten().tolist() == pytest.approx([0.75] * 8, abs=0.06)


def test_volumes_of_a_batch_hide_different_blocks():
    seen = draw_seen(Draws(0, 0), 4, (4, 4, 4), (0.75, 0.75))
    assert len(seen.flatten(1).unique(dim=0)) == 4


def test_a_variable_ratio_is_one_for_all_volumes_and_processes_and_varies_with_the_step():
    shares = []
    for number in range(200):
        parts = [
            draw_seen(Draws(0, number, rank=rank, world=2), 2, (4, 4, 4), (0.6, 0.9))
            for rank in range(2)
        ]
        counts = (~torch.cat(parts)).flatten(1).sum(dim=1)
        assert len(counts.unique()) == 1
        shares.append(counts[0].item() / 64)
    assert min(shares) >= int(0.6 * 64) / 64
    assert max(shares) <= 0.9
    assert sum(shares) / 200 == pytest.approx(0.75 - 0.5 / 64, abs=0.02)


@fitting
@pytest.mark.parametrize("efficient", [False, True])
def test_nothing_hidden_reaches_the_decoder(config, side, block, efficient):
    method = s3d(config, crop=(side,) * 3, block=block, efficient=efficient)
    volumes, seen = volumes_for(method), Seen(method.views(volumes_for(method), step_at()).seen)
    other = changed_where(volumes, ~seen.voxels(method.window))
    one, two = (method._pyramid(v, seen) for v in (volumes, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(method._painted(volumes, seen), method._painted(other, seen))


@fitting
def test_as_in_the_reference_an_unmasked_input_shows_a_rim_of_what_is_hidden(config, side, block):
    method = s3d(config, crop=(side,) * 3, block=block, mask_input=False)
    volumes, seen = volumes_for(method), Seen(method.views(volumes_for(method), step_at()).seen)
    other = changed_where(volumes, ~seen.voxels(method.window))
    one, two = (method._pyramid(v, seen) for v in (volumes, other))
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_dense_variant_sees_zeros_where_blocks_are_hidden():
    method = s3d(variant="dense")
    volumes, seen = volumes_for(method), Seen(method.views(volumes_for(method), step_at()).seen)
    expected = method.backbone.encode(volumes * seen.voxels(method.window))
    found = method._pyramid(volumes, seen)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not list(method.fillers.parameters())


# ---- filling ----------------------------------------------------------------------------------


def test_the_finest_level_is_normalised_where_it_is_seen_and_the_token_elsewhere():
    blocks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    blocks[0, 0] = True
    seen = Seen(blocks)
    visible = seen.voxels((4, 4, 4)).expand(1, 3, 4, 4, 4)
    features = seen.only(torch.randn(1, 3, 4, 4, 4) * 4 + 7)
    filler = Filler(3, hidden=True, normalised=True, convolved=False)
    found = filler(features, seen)
    hidden = found[~visible].view(3, -1)
    assert torch.equal(hidden, filler.token.detach()[:, None].expand_as(hidden))
    kept = found[visible].view(3, -1)
    torch.testing.assert_close(kept.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.square().mean(dim=1), torch.ones(3), atol=1e-4, rtol=0)


def test_an_efficient_filler_adds_the_token_where_nothing_is_seen():
    blocks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    blocks[0, 0] = True
    seen = Seen(blocks)
    features = seen.only(torch.randn(1, 3, 4, 4, 4))
    filler = Filler(3, hidden=True, normalised=False, convolved=False)
    token = filler.token.detach().view(1, 3, 1, 1, 1)
    assert torch.equal(filler(features, seen), features + token * ~seen.voxels((4, 4, 4)))


def test_tokens_start_within_one_standard_deviation():
    token = Filler(10_000, hidden=True, normalised=False, convolved=False).token
    assert token.abs().max() <= 0.02
    assert token.mean().item() == pytest.approx(0, abs=5e-4)
    # Of a normal distribution cut at one standard deviation: 0.54 of it.
    assert token.std().item() == pytest.approx(0.54 * 0.02, abs=3e-4)


def test_fillers_have_the_size_of_the_references():
    with torch.device("meta"):
        method = S3DConfig().build(ResEncUNetConfig().build())
    sizes = {name: p.numel() for name, p in method.fillers.named_parameters()}
    convs = sum(count for name, count in sizes.items() if ".conv." in name)
    tokens = {name: count for name, count in sizes.items() if name.endswith("token")}
    assert convs / 1e6 == pytest.approx(7.85, abs=0.01)
    # The reference's 1120 without the 320 of the level at 32 voxels, of which all is seen.
    assert list(tokens.values()) == [32, 64, 128, 256, 320]
    assert sum(sizes.values()) == convs + 1120 - 320


def test_a_level_coarser_than_the_blocks_has_no_token():
    method = s3d(block=2)
    assert [filler.token is None for filler in method.fillers] == [False, False, True]
    assert all(filler.token is None or filler.token.requires_grad for filler in method.fillers)


# ---- losses -----------------------------------------------------------------------------------


def test_the_loss_in_closed_form():
    hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0] = True
    true = torch.zeros(2, 2, 2, 2, 2)
    true[0, 0, 0, 0, 0] = 4.0
    true[1, 1, 1] = 100.0  # is seen
    assert reconstruction_loss(torch.zeros_like(true), true, hidden) == 16 / (2 * 2 * 4)


def test_hidden_voxels_alone_have_a_gradient():
    hidden = torch.rand(2, 1, 4, 4, 4) < 0.5
    found = torch.randn(2, 1, 4, 4, 4, requires_grad=True)
    reconstruction_loss(found, torch.randn(2, 1, 4, 4, 4), hidden).backward()
    assert torch.equal(found.grad != 0, hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_huge_outputs_is_finite_and_in_float32(dtype):
    hidden = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    found = torch.full((1, 1, 2, 2, 2), 1e30, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = reconstruction_loss(found, torch.zeros(1, 1, 2, 2, 2), hidden)
    assert loss.dtype == torch.float32
    assert loss == 1e8


def test_the_loss_is_that_of_the_painted_blocks():
    method = s3d(RESENC)
    volumes, step = volumes_for(method), step_at()
    shown, blocks = method.views(volumes, step)
    found = method._painted(shown, Seen(blocks))
    hidden = ~Seen(blocks).voxels(method.window)
    expected = (found[hidden] - shown[hidden]).square().mean()
    torch.testing.assert_close(method(volumes, step).losses["reconstruction"], expected)


def test_painting_the_mean_of_what_is_seen_costs_the_distance_from_it():
    hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0] = True
    volumes = torch.zeros(2, 1, 2, 2, 2)
    volumes[0, :, 1], volumes[0, :, 0] = 1.0, 3.0
    health = painting_health(volumes, hidden)
    assert health["loss_chance"] == (3 - 1) ** 2 / 2
    assert health["hidden_share"] == 0.5


@pytest.mark.parametrize("value", [0.0, 0.7, -900.0])
def test_a_constant_volume_can_be_guessed(value):
    method = s3d(RESENC, block=2)
    outcome = method(torch.full((2, 1, 8, 8, 8), value), step_at())
    assert outcome.health["loss_chance"].item() == pytest.approx(0, abs=1e-6)
    outcome.losses["reconstruction"].backward()
    for parameter in method.parameters():
        assert not parameter.requires_grad or torch.isfinite(parameter.grad).all()


@fitting
def test_mixed_precision_and_large_intensities_are_finite(config, side, block):
    method = s3d(config, crop=(side,) * 3, block=block)
    for factor in (1.0, 1e9):
        with torch.autocast("cpu", torch.bfloat16):
            loss = method(volumes_for(method) * factor, step_at()).losses["reconstruction"]
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in method.named_parameters():
            assert not parameter.requires_grad or torch.isfinite(parameter.grad).all(), name


# ---- network and settings ---------------------------------------------------------------------


@fitting
def test_names_and_parameters_of_the_network_stay_the_librarys(config, side, block):
    fresh = config.build().network
    method = s3d(config, crop=(side,) * 3, block=block)
    method(volumes_for(method), step_at()).losses["reconstruction"].backward()
    network = method.handover().network
    assert list(network.state_dict()) == list(fresh.state_dict())
    count = sum(parameter.numel() for parameter in fresh.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert not any(module._forward_hooks for module in network.modules())


@fitting
def test_all_of_encoder_and_decoder_is_trained(config, side, block):
    method = s3d(config, crop=(side,) * 3, block=block)
    method(volumes_for(method), step_at()).losses["reconstruction"].backward()
    backbone = method.backbone
    for name, parameter in backbone.network.named_parameters():
        trained = not name.startswith(backbone.head_prefixes)
        assert (parameter.grad is not None) == parameter.requires_grad == trained, name
    assert all(parameter.grad is not None for parameter in method.fillers.parameters())


def test_the_encoder_is_handed_on_and_the_decoder_if_asked_for():
    assert s3d().trained_parts() == ("encoder",)
    assert s3d(hand_on_decoder=True).trained_parts() == ("encoder", "decoder")


def test_every_channel_is_painted():
    torch.manual_seed(0)
    method = S3DConfig(**SMALL).build(TinyConfig(in_channels=2).build())
    assert method.head.out_channels == 2
    assert torch.isfinite(method(torch.rand(2, 2, 8, 8, 8), step_at()).losses["reconstruction"])


def test_a_network_with_other_layers_is_refused_and_told_which_fit():
    with pytest.raises(ConfigError, match=r"also has Linear.*resenc_unet, unet.*dense"):
        s3d(TinyTokensConfig())
    dense = s3d(TinyTokensConfig(), variant="dense")
    assert torch.isfinite(dense(volumes_for(dense), step_at()).losses["reconstruction"])


def test_a_block_that_does_not_fit_the_strides_is_refused():
    with pytest.raises(ConfigError, match=r"method.block 6 .* \[1, 2, 4\]"):
        s3d(crop=(24, 24, 24), block=6)
    s3d(crop=(24, 24, 24), block=6, variant="dense")


@pytest.mark.parametrize(
    "changes",
    [{"mask_ratio": 0.05}, {"mask_ratio": 0.9}, {"largest_mask_ratio": 0.9}, {"block": 8}],
)
def test_ratios_that_leave_too_little_to_hide_or_see_are_refused(changes):
    with pytest.raises(ConfigError, match="at least 1 must be hidden and 2 seen"):
        s3d(**changes)


def test_one_seen_block_is_enough_where_norms_are_dense():
    assert s3d(variant="dense", mask_ratio=0.9).config.ratios == (0.9, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (8, 8, 10)}, r"nearest that can is \(8, 8, 8\)"),
        ({"mask_ratio": 0.8, "largest_mask_ratio": 0.7}, "below mask_ratio"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"variant": "dense", "mask_input": False}, "needs mask_input"),
        ({"variant": "dense", "efficient": True}, "fills nothing in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        S3DConfig(**(SMALL | changes))


def test_pictures_show_what_is_seen_and_paint_the_rest():
    method = s3d()
    panels = {panel.title: panel.image for panel in method.show(volumes_for(method), step_at())}
    assert list(panels) == [
        f"{name} {at}" for at in range(2) for name in ("seen", "painted", "volume")
    ]


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [(TinyConfig(), {}), (RESENC, {"efficient": True}), (RESENC, {"variant": "dense"})],
    ids=["sparse", "efficient", "dense"],
)
def test_it_learns_to_paint_what_is_hidden(backbone, changes):
    method = s3d(backbone, mask_ratio=0.5, flip_probability=0.0, **changes)
    ramp = torch.linspace(0, 1, 8).expand(4, 1, 8, 8, 8).clone()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(25):
        loss = method(ramp, step_at(number)).losses["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outcome = method.eval()(ramp, step_at(1000))
    assert outcome.losses["reconstruction"] < outcome.health["loss_chance"] / 3
