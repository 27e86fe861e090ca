"""SwinMM: what is hidden, orientations, losses in closed form, settings."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import TinyConfig, TinyMaskedConfig, step_at

from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.swinmm import (
    SwinMM,
    SwinMMConfig,
    Views,
    draw_hidden,
    exchanged,
    hidden_loss,
    mutual_loss,
    standardised,
)

SMALL = {"side": 8, "block": 4, "width": 8}


def swinmm(**changes) -> SwinMM:
    torch.manual_seed(0)
    return SwinMMConfig(**(SMALL | changes)).build(TinyConfig().build())


def volumes_for(count=2):
    return torch.rand(count, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def chequered(shape):
    """Every other voxel along z."""
    return (torch.arange(shape[-1]) % 2 == 0).expand(shape)


# ---- what is hidden ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masking", "ratio", "blocks"),
    [
        ("as_named", 0.5, 32),
        ("reference", 0.5, 32),
        ("as_named", 0.25, 16),
        ("reference", 0.25, 48),
    ],
)
def test_so_many_of_64_blocks_are_hidden(masking, ratio, blocks):
    config = SwinMMConfig(masking=masking, mask_ratio=ratio)
    hidden = draw_hidden(Draws(0, 0), 1, config)
    assert hidden.shape == (1, 2, 64, 64, 64)
    cubes = hidden.unflatten(2, (4, 16)).unflatten(4, (4, 16)).unflatten(6, (4, 16))
    assert torch.equal(cubes.amin(dim=(3, 5, 7)), cubes.amax(dim=(3, 5, 7)))
    assert cubes.amax(dim=(3, 5, 7)).sum(dim=(2, 3, 4)).tolist() == [[blocks, blocks]]


@pytest.mark.parametrize(
    ("masking", "cost"), [("as_named", 1.0), ("reference", 0.75 / 0.25)], ids=str
)
def test_a_uniform_error_of_1_costs_1_or_what_the_inverted_ratio_makes_of_it(masking, cost):
    config = SwinMMConfig(side=8, block=2, masking=masking, mask_ratio=0.25)
    hidden = draw_hidden(Draws(0, 0), 3, config)[:, :, None]
    found = torch.ones(3, 2, 1, 8, 8, 8)
    loss = hidden_loss(found, torch.zeros_like(found), hidden, config.divisor)
    assert loss.item() == pytest.approx(cost)


def test_the_ratio_that_was_used_costs_the_same_either_way():
    both = [SwinMMConfig(masking=masking) for masking in ("as_named", "reference")]
    assert [(c.hidden_blocks, c.divisor) for c in both] == [(32, 0.5)] * 2


def test_every_block_is_hidden_as_often_as_the_others_and_each_view_has_its_own():
    config = SwinMMConfig(**SMALL)
    hidden = draw_hidden(Draws(0, 0), 1000, config)[..., ::4, ::4, ::4].flatten(2).float()
    assert hidden.mean(dim=(0, 1)).tolist() == pytest.approx([0.5] * 8, abs=0.05)
    assert (hidden[:, 0] != hidden[:, 1]).any(dim=1).float().mean() > 0.9


def test_the_network_sees_nothing_of_what_is_hidden_and_all_of_the_rest():
    method = swinmm()
    views = method.views(volumes_for() + 1, step_at())
    hidden = views.hidden[:, :, None]
    assert (views.masked[hidden] == 0).all()
    assert torch.equal(views.masked[~hidden], views.clean[~hidden])


# ---- turns and orientations -------------------------------------------------------------------


def test_each_view_is_the_volume_turned_by_its_label_in_the_plane_of_y_and_z():
    volumes = volumes_for(8)
    views = swinmm().views(volumes, step_at())
    for volume, pair, labels in zip(volumes, views.clean, views.turns.tolist(), strict=True):
        for view, label in zip(pair, labels, strict=True):
            assert torch.equal(view, torch.rot90(volume, label, dims=(2, 3)))
    assert views.turns.unique().tolist() == [0, 1, 2, 3]


def test_the_other_orientation_has_x_exchanged_with_y_or_z_and_twice_is_as_before():
    cubes = volumes_for()
    found = exchanged(cubes, torch.tensor([1, 2]))
    assert torch.equal(found[0], cubes[0].transpose(1, 2))
    assert torch.equal(found[1], cubes[1].transpose(1, 3))
    assert torch.equal(exchanged(found, torch.tensor([1, 2])), cubes)


def test_both_exchanges_are_equally_likely_and_there_always_is_one():
    axes = swinmm().views(torch.zeros(400, 1, 8, 8, 8), step_at()).axes
    shares = torch.bincount(axes.flatten(), minlength=3) / axes.numel()
    assert shares.tolist() == pytest.approx([0, 0.5, 0.5], abs=0.05)


def test_four_passes_are_made_and_both_paintings_are_in_the_orientation_of_the_view():
    method = swinmm()
    views = method.views(volumes_for(3), step_at())
    seen = []
    method.heads.register_forward_pre_hook(lambda _, levels: seen.append(len(levels[0])))
    answers, _, other = method._answers(views)
    assert seen == [12]
    # Heads beside the painting answer the views as they are alone.
    assert len(answers.turns) == len(answers.rows) == 6
    masked, axes = views.masked.flatten(0, 1), views.axes.flatten()
    level = method.backbone.encode(exchanged(masked, axes))[-1]
    expected = exchanged(method.heads(level).painted, axes).unflatten(0, (3, 2))
    torch.testing.assert_close(other, expected)


# ---- losses -----------------------------------------------------------------------------------


def test_targets_are_standardised_over_the_whole_cube():
    cubes = torch.rand(2, 2, 2, 6, 6, 6) * 9 - 3
    cubes[0, 0, 0] = 4.0
    found = standardised(cubes)
    assert torch.equal(found[0, 0, 0], torch.zeros(6, 6, 6))
    others = found.flatten(0, 2)[1:].flatten(1)
    torch.testing.assert_close(others.mean(dim=1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(others.square().mean(dim=1), torch.ones(7), atol=1e-4, rtol=0)


def test_errors_count_where_voxels_are_hidden_alone():
    true = torch.zeros(1, 1, 2, 2, 4)
    hidden = chequered((1, 1, 2, 2, 4))
    found = torch.where(hidden, 2.0, 100.0)
    assert hidden_loss(found, true, hidden, 0.5) == 4
    assert hidden_loss(torch.where(hidden, true, found), true, hidden, 0.5) == 0


def test_both_views_are_painted_and_compared_with_their_targets_in_both_orientations():
    method = swinmm()
    volumes = volumes_for()
    outcome = method(volumes, step_at())
    views = method.views(volumes, step_at())
    _, plain, other = method._answers(views)
    targets = standardised(views.clean)
    for name, found in (("reconstruction", plain), ("reconstruction_exchanged", other)):
        squares = (found - targets).square() * views.hidden[:, :, None]
        # Views joined as channels, as the reference has it.
        expected = squares.flatten(1, 2).mean() / 0.5
        torch.testing.assert_close(outcome.losses[name], expected)
    raw = swinmm(standardise=False)(volumes, step_at()).losses["reconstruction"]
    squares = (plain - views.clean).square() * views.hidden[:, :, None]
    torch.testing.assert_close(raw, squares.mean() / 0.5)


@pytest.mark.parametrize("size", [1e30, -1e30])
def test_losses_of_huge_outputs_are_finite(size):
    found = torch.full((1, 1, 4, 4, 4), size, requires_grad=True)
    loss = hidden_loss(found, torch.zeros(1, 1, 4, 4, 4), chequered((1, 1, 4, 4, 4)), 0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(found.grad).all()


def test_a_blind_network_pays_what_the_figures_say():
    method = swinmm(rotation_weight=2.0, contrast_weight=3.0, reconstruction_weight=0.5)
    for parameter in method.heads.parameters():
        parameter.data.zero_()
    outcome = method(volumes_for(), step_at())
    losses = {name: loss.item() for name, loss in outcome.losses.items()}
    assert losses["rotation"] == pytest.approx(2 * math.log(4))
    assert losses["contrast"] == pytest.approx(3 * math.log(3))
    assert losses["mutual"] == 0
    # It paints 0, the mean of the standardised cube: half of one, as is the weight.
    for name in ("reconstruction", "reconstruction_exchanged"):
        assert losses[name] == pytest.approx(0.5, abs=0.05)
    chances = {name: outcome.health[f"{name}_loss_chance"].item() for name in losses}
    assert chances == pytest.approx(losses, abs=0.02)
    total = outcome.health["loss_chance"].item()
    assert total == pytest.approx(sum(chances.values()))


# ---- painting alike ---------------------------------------------------------------------------


def views_of(turns, hidden) -> Views:
    clean = torch.zeros(*hidden.shape[:2], 1, *hidden.shape[2:])
    return Views(clean, clean, hidden, turns, torch.ones_like(turns))


def painted(count=2):
    return torch.rand(2, count, 2, 1, 4, 4, 4).unbind(0)


def test_by_default_the_first_view_alone_has_to_be_painted_alike():
    plain, other = painted()
    hidden = chequered((2, 2, 4, 4, 4))
    views = views_of(torch.zeros(2, 2).long(), hidden)
    loss = mutual_loss(plain, other, views, SwinMMConfig())
    expected = ((other - plain)[:, 0].square() * hidden[:, :1]).mean() / 0.5
    torch.testing.assert_close(loss, expected)
    changed = other.clone()
    changed[:, 1] += 1
    assert mutual_loss(plain, changed, views, SwinMMConfig()) == loss
    both = mutual_loss(plain, changed, views, SwinMMConfig(mutual="both"))
    squares = (changed - plain).square() * hidden[:, :, None]
    torch.testing.assert_close(both, squares.mean() / 0.5)


def test_both_paintings_learn_from_each_other():
    plain, other = (part.requires_grad_() for part in painted())
    views = views_of(torch.zeros(2, 2).long(), chequered((2, 2, 4, 4, 4)))
    mutual_loss(plain, other, views, SwinMMConfig()).backward()
    torch.testing.assert_close(plain.grad, -other.grad)
    assert plain.grad[:, 0].abs().sum() > 0


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 100))
def test_across_views_paintings_that_agree_with_one_volume_cost_nothing(first, second, seed):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(1, 4, 4, 4, generator=generator)
    pair = [torch.rot90(volume, k, dims=(2, 3)) for k in (first, second)]
    plain = torch.stack(pair)[None]
    hidden = torch.rand(1, 2, 4, 4, 4, generator=generator) < 0.5
    views = views_of(torch.tensor([[first, second]]), hidden)
    config = SwinMMConfig(mutual="across")
    assert mutual_loss(plain, plain, views, config) == 0
    # One voxel wrong, in the frame of the first view, costs if it is hidden from both.
    other = plain.clone()
    aligned = torch.zeros(1, 4, 4, 4)
    aligned[0, 1, 2, 0] = 3.0
    other[0, 1] += torch.rot90(aligned, second - first, dims=(2, 3))
    common = hidden[0, 0] & torch.rot90(hidden[0, 1], first - second, dims=(1, 2))
    expected = 9.0 / common.sum() if common[1, 2, 0] else 0.0
    torch.testing.assert_close(
        mutual_loss(plain, other, views, config), torch.as_tensor(float(expected))
    )


def test_across_views_that_hide_nothing_in_common_cost_nothing():
    plain, other = painted(1)
    hidden = chequered((1, 2, 4, 4, 4)).clone()
    hidden[:, 1] = ~hidden[:, 1]
    views = views_of(torch.zeros(1, 2).long(), hidden)
    assert mutual_loss(plain, other, views, SwinMMConfig(mutual="across")) == mutual_loss(
        plain, other, views, SwinMMConfig()
    )


# ---- network and settings ---------------------------------------------------------------------


def test_decoder_and_output_layer_of_the_backbone_are_frozen():
    network = swinmm().handover().network
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"up.weight", "up.bias", "out.weight", "out.bias"}
    assert swinmm().trained_parts() == ("encoder",)


def test_of_a_network_with_tokens_only_what_makes_them_is_trained_and_handed_on():
    method = SwinMMConfig(**SMALL).build(TinyMaskedConfig().build())
    assert method.trained_parts() == ("tokens",)
    network = method.handover().network
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"patch", "mix", "merge"}
    outcome = method(torch.rand(2, 1, 8, 8, 8), step_at())
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())


def test_a_task_without_weight_is_left_out():
    weights = {f"{name}_weight": 0 for name in ("rotation", "contrast", "mutual")}
    outcome = swinmm(**weights)(volumes_for(), step_at())
    assert set(outcome.losses) == {"reconstruction", "reconstruction_exchanged"}
    assert not {"rotation_accuracy", "pair_accuracy"} & set(outcome.health)


def test_a_last_level_of_one_voxel_is_refused():
    with pytest.raises(ConfigError, match="single voxel"):
        swinmm(side=4, block=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 60}, "does not divide"),
        ({"mask_ratio": 0.001}, "hides 0 of 64"),
        ({"mask_ratio": 0.999, "masking": "reference"}, "hides 0 of 64"),
        ({"side": 16}, "at least one"),
        ({"mutual": "none"}, "first"),
        ({"reconstruction_weight": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        SwinMMConfig(**changes)


def test_the_pictures_show_both_views_of_volumes_before_and_after():
    titles = [panel.title for panel in swinmm().show(volumes_for(), step_at())]
    assert len(titles) == 16
    assert titles[:2] == ["seen 0, view 0", "painted 0, view 0"]


def test_it_learns_to_paint_what_is_hidden():
    method = swinmm(block=2)
    ramp = torch.linspace(0, 1, 8).view(8, 1, 1).expand(4, 1, 8, 8, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(60):
        losses = method(ramp, step_at(number)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    outcome = method.eval()(ramp, step_at(1000))
    for name in ("reconstruction", "reconstruction_exchanged"):
        assert outcome.losses[name] < 0.7 * outcome.health[f"{name}_loss_chance"], name
