"""GVSL: what is damaged and moved, heads, losses in closed form, settings."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.augment.deform import bent, mapped, own_places, sampled
from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.gvsl import (
    GVSL,
    AffineHead,
    FlowHead,
    GVSLConfig,
    affine_map,
    damage,
    folded_share,
    local_correlation,
    painted,
    registration_loss,
    restoration_head,
    smoothness_loss,
)

HARMLESS = {"shuffle_probability": 0.0, "curve_probability": 0.0, "paint_probability": 0.0}
SMALL = {"crop": (8, 8, 8), "affine_width": 8, "flow_width": 8, "shuffle_blocks": 20}
STILL = {**HARMLESS, "move_probability": 0.0}


def config_of(**changes) -> GVSLConfig:
    return GVSLConfig(**(SMALL | changes))


def gvsl(**changes) -> GVSL:
    torch.manual_seed(0)
    return config_of(**changes).build(TinyConfig().build())


def volumes_of(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def weighed_gradients(method, volumes):
    torch.stack(list(method(volumes, step_at()).losses.values())).sum().backward()
    return {name: parameter.grad for name, parameter in method.named_parameters()}


# ---- damage -----------------------------------------------------------------------------------


def test_boxes_of_noise_have_sides_of_a_tenth_to_a_fifth_and_keep_off_the_border():
    config = config_of(most_boxes=1, paint_probability=1.0)
    seen = []
    for volume in painted(torch.full((200, 1, 40, 30, 50), 5.0), Draws(0, 0), config):
        inside = (volume[0] != 5).nonzero()
        edges = inside.amax(dim=0) - inside.amin(dim=0) + 1
        assert edges.prod() == len(inside)
        assert (inside.amin(dim=0) >= 3).all()
        assert (inside.amax(dim=0) < torch.tensor([37, 27, 47])).all()
        seen.append(edges)
    edges = torch.stack(seen)
    assert edges.amin(dim=0).tolist() == [4, 3, 5]
    assert edges.amax(dim=0).tolist() == [7, 5, 9]


def test_boxes_go_on_by_chance_until_there_are_thirty():
    volumes = torch.full((400, 1, 20, 20, 20), 5.0)
    clean = (painted(volumes, Draws(0, 0), config_of()) == 5).flatten(1)
    # None at all with a probability of 1/20.
    assert clean.all(dim=1).float().mean() == pytest.approx(0.05, abs=0.03)
    always = (painted(volumes, Draws(0, 0), config_of(paint_probability=1.0)) != 5).flatten(1)
    assert (always.sum(dim=1) > 30 * 8 / 2).float().mean() > 0.9
    assert always.sum(dim=1).max() <= 30 * 27


def test_noise_is_even_between_0_and_1():
    found = painted(torch.full((4, 1, 40, 40, 40), 5.0), Draws(0, 0), config_of())
    noise = found[found != 5]
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.var() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("order", ["shared", "own"])
def test_blocks_that_are_shuffled_have_a_twentieth_of_the_side(order):
    only = {"curve_probability": 0.0, "paint_probability": 0.0, "shuffle_probability": 1.0}
    config = config_of(**only, shuffle_blocks=1, shuffle_order=order)
    volumes = torch.arange(60.0 * 40 * 39).view(1, 1, 60, 40, 39).expand(20, -1, -1, -1, -1)
    found = damage(volumes, Draws(0, 0), config)
    for row in (found != volumes)[:, 0]:
        moved = row.nonzero()
        spread = moved.amax(dim=0) - moved.amin(dim=0) + 1
        assert (spread <= torch.tensor([3, 2, 1])).all()  # 39 / 20 is rounded down
        assert len(moved) > 1


def test_one_order_is_shared_by_all_blocks_of_a_volume_unless_each_has_its_own():
    only = {"curve_probability": 0.0, "paint_probability": 0.0, "shuffle_probability": 1.0}
    volumes = torch.arange(40.0**3).view(1, 1, 40, 40, 40)
    # Blocks that overlap show a part of their order only; with few blocks, most are whole.
    for order, fewest, most in (("shared", 1, 1), ("own", 5, 30)):
        config = config_of(**only, shuffle_blocks=30, shuffle_order=order)
        offsets = (damage(volumes, Draws(1, 0), config) - volumes)[0, 0]
        starts = (offsets != 0).nonzero()
        orders = {
            tuple(offsets[x : x + 2, y : y + 2, z : z + 2].flatten().tolist())
            for x, y, z in starts.tolist()
            if _is_block(offsets, x, y, z)
        }
        assert fewest <= len(orders) <= most


def _is_block(offsets, x, y, z):
    """Whether the 2x2x2 voxels from here on are all there is around, and were only shuffled."""
    inside = offsets[x : x + 2, y : y + 2, z : z + 2]
    around = offsets[max(0, x - 2) : x + 4, max(0, y - 2) : y + 4, max(0, z - 2) : z + 4]
    whole = inside.count_nonzero() == around.count_nonzero()
    return bool(inside.shape == (2, 2, 2) and whole and inside.sum() == 0)


def test_curves_rise_so_that_the_order_of_intensities_stays():
    only = {"shuffle_probability": 0.0, "paint_probability": 0.0, "curve_probability": 1.0}
    ramp = torch.linspace(0, 1, 512).view(1, 1, 8, 8, 8).expand(50, -1, -1, -1, -1)
    found = damage(ramp, Draws(0, 0), config_of(**only)).flatten(1)
    assert (found.diff() >= 0).all()
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == 1).all()
    assert (found - ramp.flatten(1)).abs().amax(dim=1).median() > 0.05


def test_harmless_settings_damage_nothing():
    volumes = volumes_of(3, 1, 8, 8, 8)
    views = gvsl(**STILL).views(volumes, step_at())
    assert torch.equal(views.damaged, volumes)
    assert torch.equal(views.clean, volumes)


# ---- pairs and motion -------------------------------------------------------------------------


def test_the_other_of_each_volume_is_the_next_and_of_the_last_the_first():
    method = gvsl(**STILL)
    volumes = volumes_of(4, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    other = method._others(volumes, views.places)
    assert torch.equal(other, volumes[torch.tensor([1, 2, 3, 0])])


def test_damaged_clean_and_other_are_moved_alike():
    method = gvsl(**HARMLESS)
    volumes = volumes_of(2, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    assert torch.equal(views.damaged, views.clean)
    assert (views.clean - volumes).abs().max() > 0.1
    torch.testing.assert_close(views.clean, sampled(volumes, views.places))
    other = method._others(volumes, views.places)
    torch.testing.assert_close(other, sampled(volumes.flip(0), views.places))


def test_what_is_damaged_is_moved_after_it_was_damaged():
    method = gvsl(paint_probability=1.0)
    volumes = volumes_of(2, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    damaged = damage(volumes, step_at().draws.child(1), method.config)
    torch.testing.assert_close(views.damaged, sampled(damaged, views.places))
    assert not torch.equal(views.damaged, views.clean)


def test_beyond_a_moved_volume_is_the_least_intensity():
    method = gvsl(**HARMLESS, intensities=(-5.0, 5.0), motion={"shift_share": 1.0})
    volumes = torch.full((4, 1, 8, 8, 8), 5.0)
    seen = []
    encode = method.backbone.encode
    method.backbone.encode = lambda given: seen.append(given) or encode(given)
    method(volumes, step_at())
    assert seen[0].min() == -5
    assert seen[0].max().item() == pytest.approx(5, abs=1e-4)


def test_a_single_volume_is_refused_in_training_alone():
    method = gvsl()
    with pytest.raises(ConfigError, match="2 or more"):
        method(volumes_of(1, 1, 8, 8, 8), step_at())
    outcome = gvsl(**STILL).eval()(volumes_of(1, 1, 8, 8, 8), step_at())
    # It is its own partner, and is as like it as noise in 9 x 9 x 9 voxels can tell.
    assert outcome.health["correlation_chance"].item() == pytest.approx(1, abs=1e-3)


# ---- heads ------------------------------------------------------------------------------------


def test_heads_have_as_many_parameters_as_the_reference():
    # 32.44 million in all, of which 23.54 are the U-Net with 512 and 32 channels.
    config = GVSLConfig()
    heads = [AffineHead(512, config), FlowHead(32, config.flow_width)]
    heads.append(restoration_head(32, config.restoration_width, 1))
    counts = [sum(p.numel() for p in head.parameters()) for head in heads]
    assert counts == [8_852_751, 35_955, 13_889]
    assert sum(counts) / 1e6 == pytest.approx(32.44 - 23.54, abs=0.005)


def test_outputs_of_zero_mean_that_nothing_is_moved():
    for units in ("sides", "reference"):
        matrices, shifts = affine_map(torch.zeros(2, 15), config_of(shift_units=units))
        assert torch.equal(matrices, torch.eye(3).expand(2, 3, 3))
        assert torch.equal(shifts, torch.zeros(2, 3))


@pytest.mark.parametrize("size", [1.0, 1e30])
def test_turns_scales_and_shears_have_their_limits(size):
    amounts = torch.zeros(4, 15)
    amounts[0, 2], amounts[1, 4], amounts[2, 9], amounts[3, 3] = size, size, size, -size
    matrices, _ = affine_map(amounts, config_of())
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    torch.testing.assert_close(
        matrices[0], torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    )
    torch.testing.assert_close(matrices[1].diagonal(), torch.tensor([1.0, 1.25, 1.0]))
    torch.testing.assert_close(matrices[3].diagonal(), torch.tensor([0.75, 1.0, 1.0]))
    assert matrices[2, 0, 1].item() == pytest.approx(math.tan(math.radians(10)))
    assert matrices[2, 1, 0] == 0


def test_an_output_of_1_shifts_by_a_share_of_the_side_or_by_half_a_voxel_as_in_the_reference():
    amounts = torch.zeros(2, 15)
    amounts[0, 6:9], amounts[1, 6:9] = 1.0, -30.0
    sides = config_of(crop=(80, 60, 40), shift_share=0.1)
    assert affine_map(amounts, sides)[1].tolist() == [
        pytest.approx([8, 6, 4]),
        pytest.approx([-8, -6, -4]),
    ]
    cube = config_of(crop=(40, 40, 40), shift_units="reference")
    assert affine_map(amounts, cube)[1][0].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert affine_map(amounts, cube)[1][1].tolist() == pytest.approx([-15, -15, -15])
    # Where x and z differ, each is divided by the side of the other.
    oblong = config_of(crop=(80, 60, 40), shift_units="reference")
    assert affine_map(amounts, oblong)[1][0].tolist() == pytest.approx([1, 0.5, 0.25])


def test_a_gradient_reaches_the_affine_head_unless_it_is_detached():
    volumes = volumes_of(2, 1, 8, 8, 8)
    method = gvsl()
    grads = weighed_gradients(method, volumes)
    for name in ("affine.amounts.weight", "affine.convolutions.0.weight"):
        assert grads[name].abs().max() > 0
    detached = gvsl(affine="detached")
    grads = weighed_gradients(detached, volumes)
    assert grads["affine.amounts.weight"] is None
    assert not any(p.requires_grad for p in detached.affine.parameters())
    assert grads["backbone.network.deep.weight"].abs().max() > 0


def test_a_detached_affine_head_computes_what_a_learnt_one_would():
    volumes = volumes_of(2, 1, 8, 8, 8)
    learnt, detached = (gvsl(affine=kind)(volumes, step_at()) for kind in ("learnt", "detached"))
    for name, loss in learnt.losses.items():
        assert torch.equal(loss, detached.losses[name])


def test_b_is_warped_by_the_flow_and_then_by_the_affine_map():
    method = gvsl(**STILL)
    amounts = torch.linspace(-0.4, 0.5, 15)
    with torch.no_grad():
        method.affine.amounts.weight.zero_()
        method.affine.amounts.bias.copy_(amounts)
        method.flow.out.weight.zero_()
        method.flow.out.bias.copy_(torch.tensor([1.0, 0.0, -0.5]))
    damaged, other = volumes_of(1, 1, 8, 8, 8), volumes_of(1, 1, 8, 8, 8, seed=1)
    found = method._found(damaged, other)
    own = own_places((8, 8, 8), other)
    matrices, shifts = affine_map(amounts[None], method.config)
    torch.testing.assert_close(found.mapped, sampled(other, mapped(own, matrices, shifts)))
    flow = torch.tensor([1.0, 0.0, -0.5]).view(1, 3, 1, 1, 1).expand(1, 3, 8, 8, 8)
    torch.testing.assert_close(found.flow, flow)
    expected = sampled(other, mapped(bent(own, flow), matrices, shifts))
    torch.testing.assert_close(found.warped, expected)


def test_without_flow_and_map_b_stays_as_it_is_unless_coordinates_are_those_of_the_reference():
    other = volumes_of(2, 1, 8, 8, 8)
    for coordinates, exact in (("exact", True), ("reference", False)):
        method = gvsl(**STILL, coordinates=coordinates)
        with torch.no_grad():
            for layer in (method.affine.amounts, method.flow.out):
                layer.weight.zero_()
                layer.bias.zero_()
            found = method._found(other, other)
        torch.testing.assert_close(found.mapped, other, atol=1e-5, rtol=0)
        assert torch.allclose(found.warped, other, atol=1e-5) == exact
        # Only half of an outermost voxel is seen in the reference's coordinates, in a corner 1/8.
        if not exact:
            corner = other[0, 0, 0, 0, 0] / 8
            assert found.warped[0, 0, 0, 0, 0].item() == pytest.approx(corner.item(), abs=1e-5)


# ---- losses and health ------------------------------------------------------------------------


def test_the_correlation_is_that_of_the_window():
    first, second = volumes_of(1, 1, 9, 9, 9), volumes_of(1, 1, 9, 9, 9, seed=1)
    second = 0.5 * first + second
    expected = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] ** 2
    found = local_correlation(first, second)[0, 0, 4, 4, 4]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_beyond_the_border_windows_count_zeros():
    # Of two constant volumes, a corner's window has 125 ones among 729: fully correlated.
    ones = torch.ones(1, 1, 12, 12, 12)
    found = local_correlation(ones, 3 * ones)[0, 0]
    assert found[0, 0, 0].item() == pytest.approx(1, abs=1e-6)
    assert (found[4:8, 4:8, 4:8] == 0).all()


def test_empty_volumes_have_nothing_to_correlate():
    zeros, some = torch.zeros(1, 1, 8, 8, 8), volumes_of(1, 1, 8, 8, 8)
    assert registration_loss(zeros, zeros) == 1
    assert registration_loss(some, zeros) == 1


@given(st.floats(0.2, 3), st.floats(-2, 2), st.booleans())
def test_brightness_contrast_and_inversion_do_not_matter_inside(gain, offset, inverted):
    volumes = volumes_of(1, 1, 9, 9, 9)
    changed = volumes * (-gain if inverted else gain) + offset
    inside = local_correlation(volumes, changed)[..., 4, 4, 4]
    assert inside.item() == pytest.approx(1, abs=1e-4)


def test_the_registration_loss_is_0_for_equal_volumes_and_is_the_same_both_ways():
    first, second = volumes_of(2, 1, 10, 9, 8), volumes_of(2, 1, 10, 9, 8, seed=1)
    assert registration_loss(first, first).item() == pytest.approx(0, abs=1e-3)
    ours, theirs = registration_loss(first, second), registration_loss(second, first)
    assert ours.item() == pytest.approx(theirs.item())
    assert 0.5 < ours < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e30])
def test_the_registration_loss_is_between_0_and_1_with_finite_gradients(size, dtype):
    # Nearly constant and large: in float32, rounding would make such variances negative.
    nearly = (1 + 1e-6 * volumes_of(1, 1, 10, 10, 10)) * size
    warped, fixed = nearly.to(dtype).requires_grad_(), nearly.flip(2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = registration_loss(warped, fixed)
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 <= loss <= 1
    assert torch.isfinite(warped.grad).all()


def test_a_flow_that_grows_along_an_axis_costs_its_slope_squared():
    flow = torch.zeros(2, 3, 5, 6, 7)
    assert smoothness_loss(flow + 3) == 0
    # One of three components and one of three axes.
    flow[:, 1] = 2 * torch.arange(6.0)[:, None]
    assert smoothness_loss(flow).item() == pytest.approx(4 / 9)


def test_a_flow_that_mirrors_folds_everywhere_and_one_that_shifts_nowhere():
    own = own_places((5, 6, 7), torch.zeros(1))
    assert folded_share(torch.full((2, 3, 5, 6, 7), 0.7)) == 0
    mirrored = torch.zeros(1, 3, 5, 6, 7)
    mirrored[:, 1] = -2 * own[:, 1]
    assert folded_share(mirrored) == 1
    # Turned about by half, which mirrors two axes, nothing is inside out.
    turned = mirrored.clone()
    turned[:, 0] = -2 * own[:, 0]
    assert folded_share(turned) == 0
    flat = torch.zeros(1, 3, 5, 6, 7)
    flat[:, 2] = -own[:, 2]
    assert folded_share(flat) == 1
    # Of the steps from voxel to voxel along x, one goes back.
    once = torch.zeros(1, 3, 5, 6, 7)
    once[:, 0, 2:] = -1.5
    assert folded_share(once).item() == pytest.approx(1 / 4)


def test_weights_are_in_the_losses_and_a_weight_of_0_leaves_one_out():
    volumes = volumes_of(2, 1, 8, 8, 8)
    one = gvsl()(volumes, step_at()).losses
    names = ("registration", "smoothness", "restoration")
    assert set(one) == set(names)
    for name in names:
        three = gvsl(**{f"{name}_weight": 3.0})(volumes, step_at()).losses
        for other in names:
            torch.testing.assert_close(three[other], one[other] * (3 if other == name else 1))
    alone = gvsl(smoothness_weight=0.0, restoration_weight=0.0)
    assert set(alone(volumes, step_at()).losses) == {"registration"}
    assert alone.restoration is None
    assert "untouched_chance" not in alone(volumes, step_at()).health


def test_the_losses_compare_with_the_moved_undamaged_volume():
    method = gvsl(paint_probability=1.0, restoration_weight=2.0)
    volumes = volumes_of(2, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    found = method._found(views.damaged, method._others(volumes, views.places))
    losses = method(volumes, step_at()).losses
    expected = 2 * (found.restored - views.clean).square().mean()
    torch.testing.assert_close(losses["restoration"], expected)
    torch.testing.assert_close(losses["registration"], registration_loss(found.warped, views.clean))


def test_health_tells_what_registration_gained():
    method = gvsl(**STILL)
    volumes = volumes_of(2, 1, 8, 8, 8)
    outcome = method(volumes, step_at())
    before = registration_loss(volumes.flip(0), volumes)
    torch.testing.assert_close(outcome.health["correlation_chance"], 1 - before)
    torch.testing.assert_close(outcome.health["correlation"], 1 - outcome.losses["registration"])
    with torch.no_grad():
        for layer in (method.affine.amounts, method.flow.out):
            layer.weight.zero_()
            layer.bias.zero_()
    health = method(volumes, step_at()).health
    for name in ("correlation", "correlation_affine"):
        torch.testing.assert_close(health[name], health["correlation_chance"])
    assert health["flow_voxels"] == health["folded_share"] == 0
    assert health["untouched_chance"] == 0


def test_huge_outputs_of_the_heads_are_finite():
    for units in ("sides", "reference"):
        method = gvsl(shift_units=units)
        with torch.no_grad():
            for layer in (method.affine.amounts, method.flow.out, method.restoration[-1]):
                layer.bias.fill_(1e30)
        outcome = method(volumes_of(2, 1, 8, 8, 8), step_at())
        total = torch.stack(list(outcome.losses.values())).sum()
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(figure) for figure in outcome.health.values())
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in grads)


# ---- network and settings ---------------------------------------------------------------------


def test_another_range_of_intensities_means_the_same():
    volumes = volumes_of(2, 1, 8, 8, 8)
    one, other = gvsl(), gvsl(intensities=(-5.0, 5.0))
    views, wide = one.views(volumes, step_at()), other.views(volumes * 10 - 5, step_at())
    for ours, theirs in zip(views, wide, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert one(volumes * 10 - 5, step_at()).health["outside_share"] > 0.3
    assert other(volumes * 10 - 5, step_at()).health["outside_share"] == 0


def test_every_channel_is_restored_and_registered():
    torch.manual_seed(0)
    method = config_of().build(TinyConfig(in_channels=2).build())
    volumes = volumes_of(2, 2, 8, 8, 8)
    views = method.views(volumes, step_at())
    found = method._found(views.damaged, method._others(volumes, views.places))
    assert found.restored.shape == found.warped.shape == (2, 2, 8, 8, 8)


def test_decoder_and_encoder_are_handed_over_and_heads_stay():
    method = gvsl()
    assert method.trained_parts() == ("encoder", "decoder")
    network = method.handover().network
    assert network.up.weight.requires_grad
    assert not network.out.weight.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intensities": (1.0, 1.0)}, "not below the largest"),
        ({"affine_width": 12}, "multiple of 8"),
        ({"restoration_width": 6}, "multiple of 4"),
        ({"registration_weight": 0}, "greater than 0"),
        ({"affine": "frozen"}, "detached"),
        ({"shuffle_share": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        GVSLConfig(**changes)


def test_it_learns_to_bring_one_volume_onto_another():
    method = gvsl(**STILL, crop=(12, 12, 12))
    own = own_places((12, 12, 12), torch.zeros(1))
    centres = torch.tensor([[-1.5, 0.0, 0.0], [1.5, 0.0, 0.0]]).view(2, 3, 1, 1, 1)
    volumes = torch.exp(-(own - centres).square().sum(dim=1, keepdim=True) / 8)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for number in range(40):
        losses = method(volumes, step_at(number)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    outcome = method.eval()(volumes, step_at(1000))
    assert outcome.health["correlation"] > outcome.health["correlation_chance"] + 0.1
    assert outcome.losses["restoration"] < outcome.health["mean_chance"] / 2
