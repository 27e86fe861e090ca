"""Rubik++: turns of slabs, the two networks and what each learns from, losses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import Tiny, TinyConfig, step_at
from torch import nn

from voco.backbones.resenc_unet import ResEncUNetConfig
from voco.draws import Draws
from voco.methods.rubik import (
    Discriminator,
    Rubik,
    RubikConfig,
    deception_loss,
    disarranged,
    discriminator_loss,
    draw_slab_turns,
    judged,
    moved_share,
    restoration_loss,
    turn_slabs,
    verdict_health,
)


def rubik(**changes) -> Rubik:
    torch.manual_seed(0)
    settings = {"side": 8, "discriminator_channels": (4, 6)} | changes
    return RubikConfig(**settings).build(TinyConfig().build())


def cubes(count=2, side=8, channels=1):
    return torch.rand(count, channels, side, side, side)


def gradients(loss, module):
    """Of a loss, with zeros where it does not depend on a parameter."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)


# ---- turns of slabs ---------------------------------------------------------------------------

turns_of_cubes = st.integers(1, 4).flatmap(
    lambda slabs: st.tuples(
        st.integers(1, 3),
        st.lists(st.integers(0, 3), min_size=6 * slabs, max_size=6 * slabs).map(
            lambda quarters: torch.tensor(quarters).view(2, 3, slabs)
        ),
    )
)


@given(turns_of_cubes)
def test_the_opposite_turns_in_reverse_order_restore_the_cube(drawn):
    thickness, turns = drawn
    volumes = cubes(side=thickness * turns.shape[2], channels=2)
    restored = disarranged(volumes, turns)
    for axis in (2, 1, 0):
        restored = turn_slabs(restored, -turns[:, axis] % 4, axis)
    assert torch.equal(restored, volumes)


@given(turns_of_cubes)
def test_a_turned_cube_has_the_same_voxels(drawn):
    thickness, turns = drawn
    volumes = cubes(side=thickness * turns.shape[2])
    found = disarranged(volumes, turns)
    assert torch.equal(found.flatten(1).sort().values, volumes.flatten(1).sort().values)


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_a_slab_turns_about_its_axis_and_the_others_stay(axis, plane):
    volume = cubes(1)
    expected = volume.clone()
    slab = expected.narrow(2 + axis, 4, 2)
    slab.copy_(torch.rot90(slab.clone(), 3, [2 + side for side in plane]))
    assert torch.equal(turn_slabs(volume, torch.tensor([[0, 0, 3, 0]]), axis), expected)


def test_turns_about_x_come_before_those_about_y_and_those_before_z():
    volume = cubes(1)
    turns = torch.tensor([[[1, 0], [0, 2], [3, 1]]])
    expected = volume
    for axis in range(3):
        expected = turn_slabs(expected, turns[:, axis], axis)
    assert torch.equal(disarranged(volume, turns), expected)
    assert not torch.equal(disarranged(volume, turns.flip(1)), expected)


def test_as_many_slabs_turn_as_are_asked_for_and_all_turns_are_equally_likely():
    turns = draw_slab_turns(Draws(0, 0), 2000, 4, 3)
    assert ((turns > 0).sum(dim=2) == 3).all()
    shares = torch.stack([(turns == quarters).float().mean(dim=0) for quarters in range(4)])
    assert shares.flatten().tolist() == pytest.approx([1 / 4] * 48, abs=0.04)


@pytest.mark.parametrize(("slabs", "turned"), [(4, 1), (4, 2), (6, 3)])
def test_about_as_many_voxels_move_as_no_turn_leaves_alone(slabs, turned):
    turns = draw_slab_turns(Draws(0, 0), 200, slabs, turned)
    expected = 1 - (1 - turned / slabs) ** 3
    assert moved_share(turns, 12).item() == pytest.approx(expected, abs=0.02)


def test_more_than_half_of_the_voxels_move_in_every_cube():
    config = RubikConfig()
    turns = draw_slab_turns(Draws(0, 0), 100, config.slabs, config.turned_slabs)
    assert min(moved_share(row[None], 8).item() for row in turns) > 0.5


def test_voxels_that_turns_bring_back_have_not_moved():
    still = torch.zeros(1, 3, 2, dtype=torch.int64)
    assert moved_share(still, 4) == 0
    half = still.clone()
    half[0, 0, 1] = 1
    assert moved_share(half, 4) == 0.5
    # A slab of an odd side turns about its middle voxels.
    middle = torch.tensor([[[2], [0], [0]]])
    assert moved_share(middle, 3).item() == pytest.approx(24 / 27)


def test_the_target_is_untouched_and_the_input_is_the_target_turned():
    volumes = cubes(3)
    views = rubik().views(volumes, step_at())
    assert torch.equal(views.clean, volumes)
    assert torch.equal(views.turned, disarranged(volumes, views.turns))
    assert not torch.equal(views.turns[0], views.turns[1])


# ---- losses -----------------------------------------------------------------------------------


def test_losses_in_closed_form():
    ones, zeros = torch.ones(2, 1, 3, 3, 3), torch.zeros(2, 1, 3, 3, 3)
    assert deception_loss(zeros) == 1
    assert deception_loss(3 * ones) == 4
    assert discriminator_loss(ones, zeros) == 0
    assert discriminator_loss(zeros, ones) == 1
    assert discriminator_loss(3 * ones, zeros) == 2
    assert discriminator_loss(ones / 2, ones / 2) == deception_loss(ones / 2) == 1 / 4
    clean = zeros.clone()
    clean[0, 0, 0, 0, 0] = -4
    assert restoration_loss(zeros, clean).item() == pytest.approx(4 / 54)


def test_verdicts_too_large_to_be_squared_are_finite():
    for values in (torch.full((1, 1, 2, 2, 2), 3e38), torch.full((1, 1, 2, 2, 2), 6e4).half()):
        for loss in (deception_loss(-values), discriminator_loss(values, values)):
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)


def test_an_undecided_discriminator_costs_a_quarter_on_each_side_and_is_at_chance():
    method = rubik(adversarial_weight=3.0)
    nn.init.zeros_(method.discriminator.out.weight)
    nn.init.constant_(method.discriminator.out.bias, 0.5)
    losses, health = method(cubes(), step_at())
    assert losses["adversarial"].item() == pytest.approx(3 / 4)
    assert losses["discriminator"].item() == pytest.approx(1 / 4)
    assert health["discriminator_right"] == health["discriminator_right_chance"] == 0.5


@pytest.mark.parametrize("constant", [-1.0, 0.5, 2.0])
def test_who_always_says_the_same_is_right_in_half_of_the_cases(constant):
    verdicts = torch.full((2, 1, 3, 3, 3), constant)
    assert verdict_health(verdicts, verdicts)["discriminator_right"] == 0.5
    assert verdict_health(verdicts + 9, verdicts - 9)["discriminator_right"] == 1


def test_chance_is_what_giving_back_the_input_costs():
    volumes = cubes()
    for method, others in ((rubik(adversarial_weight=2.0), 0.75), (rubik(adversarial_weight=0), 0)):
        _, health = method(volumes, step_at())
        views = method.views(volumes, step_at())
        error = (views.turned - volumes).abs().mean().item()
        assert health["restoration_error_chance"].item() == pytest.approx(error)
        assert health["loss_chance"].item() == pytest.approx(100 * error + others)
        assert health["moved_share"] == moved_share(views.turns, 8)


def test_turning_a_constant_volume_costs_nothing():
    health = rubik()(torch.full((2, 1, 8, 8, 8), 0.3), step_at()).health
    assert health["restoration_error_chance"] == 0
    assert health["moved_share"] > 0.5


def test_weights_multiply_their_losses():
    volumes = cubes()
    once = rubik(restoration_weight=1.0)(volumes, step_at()).losses
    more = rubik(restoration_weight=7.0, adversarial_weight=5.0)(volumes, step_at()).losses
    torch.testing.assert_close(more["restoration"], 7 * once["restoration"])
    torch.testing.assert_close(more["adversarial"], 5 * once["adversarial"])
    torch.testing.assert_close(more["discriminator"], once["discriminator"])


def test_another_range_of_intensities_means_the_same():
    volumes = cubes()
    narrow, wide = rubik(), rubik(intensities=(-5.0, 5.0))
    torch.testing.assert_close(wide._scaled(volumes * 10 - 5), volumes)
    ours, theirs = narrow(volumes, step_at()).health, wide(volumes * 10 - 5, step_at()).health
    for name in ("restoration_error_chance", "loss_chance", "outside_share"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
    assert ours["outside_share"] == 0
    assert narrow(volumes * 10 - 5, step_at()).health["outside_share"] > 0.5


def test_target_and_output_are_cut_to_the_range():
    method, volumes = rubik(), cubes() * 1e6 - 5e5
    assert sorted(method._scaled(volumes).unique().tolist()) == [0, 1]
    found = method._restored(volumes)
    assert found.amin() >= 0
    assert found.amax() <= 1


def test_intensities_far_outside_are_finite():
    outcome = rubik()(cubes() * 1e9 - 5e8, step_at())
    assert all(torch.isfinite(value) for part in outcome for value in part.values())


# ---- the two networks -------------------------------------------------------------------------


def test_the_discriminator_is_the_patchgan_with_batch_norm_of_torch():
    ours = Discriminator(1, (4, 6))
    theirs = nn.Sequential(
        nn.Conv3d(2, 4, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.LeakyReLU(0.2),
        nn.Conv3d(4, 6, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm3d(6),
        nn.LeakyReLU(0.2),
        nn.Conv3d(6, 1, 1),
    )
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        with torch.no_grad():
            other.copy_(own)
    volumes, turned = cubes(3), cubes(3)
    expected = theirs(torch.cat([volumes, turned], dim=1))
    torch.testing.assert_close(ours(volumes, turned), expected, atol=1e-5, rtol=1e-4)


def test_the_default_discriminator_judges_one_place_for_sixteen_voxels_along_each_side():
    network, volumes = Discriminator(1, RubikConfig().discriminator_channels), cubes(1, side=32)
    assert network(volumes, volumes).shape == (1, 1, 2, 2, 2)


def test_verdicts_depend_on_the_turned_cube_beside():
    network, volumes = Discriminator(1, (4, 6)), cubes()
    assert not torch.allclose(network(volumes, cubes()), network(volumes, cubes()), atol=1e-3)


def test_deceiving_and_telling_apart_see_the_same_verdicts():
    verdicts = judged(Discriminator(1, (4, 6)), cubes(), cubes(), cubes())
    assert torch.equal(verdicts.deceived, verdicts.restored)


def test_each_network_learns_from_its_own_losses_alone():
    method = rubik()
    losses = method(cubes(), step_at()).losses
    network = nn.ModuleList([method.backbone, method.head])
    for name in ("restoration", "adversarial"):
        assert all((part == 0).all() for part in gradients(losses[name], method.discriminator))
        assert any((part != 0).any() for part in gradients(losses[name], network))
    assert all((part == 0).all() for part in gradients(losses["discriminator"], network))
    own = gradients(losses["discriminator"], method.discriminator)
    assert all((part != 0).any() for part in own)


def test_one_backward_pass_gives_the_gradients_of_two_separate_ones():
    method, volumes = rubik(), cubes()
    torch.stack(list(method(volumes, step_at()).losses.values())).sum().backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}

    def restored_anew():
        views = method.views(volumes, step_at())
        return method._restored(views.turned), views.turned

    method.zero_grad()
    with torch.no_grad():
        restored, turned = restored_anew()
    verdicts = [method.discriminator(image, turned) for image in (volumes, restored)]
    ((verdicts[0] - 1).square().mean() + verdicts[1].square().mean()).div(2).backward()
    expected = {name: p.grad.clone() for name, p in method.discriminator.named_parameters()}

    method.zero_grad()
    method.discriminator.requires_grad_(False)
    restored, turned = restored_anew()
    deceived = (method.discriminator(restored, turned) - 1).square().mean()
    (100 * (restored - volumes).abs().mean() + deceived).backward()

    for name, gradient in found.items():
        key = name.removeprefix("discriminator.")
        other = expected[key] if key != name else method.get_parameter(name).grad
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


def test_the_discriminator_works_in_float32_whatever_the_precision():
    method, seen = rubik(), []
    method.discriminator.out.register_forward_hook(
        lambda _module, _given, out: seen.append(out.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        method(cubes(), step_at())
    assert set(seen) == {torch.float32}


def test_without_weight_there_is_no_discriminator_and_the_rest_is_the_same():
    volumes = cubes()
    bare, whole = rubik(adversarial_weight=0.0), rubik()
    assert bare.discriminator is None
    assert {*whole.state_dict()} - {*bare.state_dict()} == {
        f"discriminator.{name}" for name in whole.discriminator.state_dict()
    }
    ours, theirs = bare(volumes, step_at()), whole(volumes, step_at())
    assert {*ours.losses} == {"restoration"}
    assert torch.equal(ours.losses["restoration"], theirs.losses["restoration"])
    assert {*theirs.health} - {*ours.health} == {
        "discriminator_right",
        "discriminator_right_chance",
    }


@pytest.mark.parametrize("finest_skip", [True, False])
def test_the_decoder_sees_the_finest_level_only_if_it_may(finest_skip):
    method = rubik(finest_skip=finest_skip)
    method(cubes(), step_at()).losses["restoration"].backward()
    finest, coarser = method.backbone.network.up.weight.grad.split([4, 14], dim=1)
    assert bool((finest != 0).any()) == finest_skip
    assert (coarser != 0).any()


class Beside(Tiny):
    """The tiny network with a convolution whose features go to the decoder and nowhere else."""

    encoder_prefixes = (*Tiny.encoder_prefixes, "beside.")

    def __init__(self, config, out_channels):
        super().__init__(config, out_channels)
        self.network.beside = nn.Conv3d(1, 4, 1)

    def encode(self, volumes):
        return [self.network.beside(volumes), *super().encode(volumes)[1:]]


@pytest.mark.parametrize("finest_skip", [True, False])
def test_what_leads_to_the_finest_level_alone_is_frozen_with_its_path_closed(finest_skip):
    backbone = Beside(TinyConfig(), 1)
    method = RubikConfig(side=8, adversarial_weight=0.0, finest_skip=finest_skip).build(backbone)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    output = {"backbone.network.out.weight", "backbone.network.out.bias"}
    beside = {"backbone.network.beside.weight", "backbone.network.beside.bias"}
    assert frozen == (output if finest_skip else output | beside)


def test_every_channel_is_restored_and_judged():
    torch.manual_seed(0)
    config = RubikConfig(side=8, discriminator_channels=(4, 6))
    method = config.build(TinyConfig(in_channels=2).build())
    volumes = cubes(channels=2)
    assert method._restored(volumes).shape == volumes.shape
    assert method.discriminator.layers[0].conv.in_channels == 4
    assert all(torch.isfinite(loss) for loss in method(volumes, step_at()).losses.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 98}, "no multiple of slabs 4"),
        ({"turned_slabs": 5}, "above slabs 4"),
        ({"slabs": 1}, "greater than or equal to 2"),
        ({"side": 8}, "needs 16"),
        ({"intensities": (1.0, 1.0)}, "not below the largest"),
        ({"restoration_weight": 0.0}, "greater than 0"),
        ({"discriminator_channels": ()}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        RubikConfig(**changes)


def test_a_cube_too_short_for_a_discriminator_may_be_restored_without_one():
    assert RubikConfig(side=8, adversarial_weight=0.0).side == 8


def test_it_learns_to_restore_while_the_discriminator_learns_to_tell():
    torch.manual_seed(0)
    backbone = ResEncUNetConfig(features=(4, 8, 16), blocks=(1, 1, 1)).build()
    method = RubikConfig(side=8, discriminator_channels=(4, 6)).build(backbone)
    ramp = torch.linspace(0, 1, 8).view(8, 1, 1).expand(4, 1, 8, 8, 8).contiguous()
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.5, 0.999))
    first = method(ramp, step_at()).losses["discriminator"]
    for number in range(30):
        losses = method(ramp, step_at(number)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    losses, health = method.eval()(ramp, step_at(1000))
    assert health["restoration_error"] < health["restoration_error_chance"] / 3
    assert losses["discriminator"] < first / 2
