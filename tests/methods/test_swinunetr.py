"""Swin UNETR's pre-training: turns, corruption, what is copied, losses, settings."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import TinyConfig, TinyMaskedConfig, step_at

from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.swinunetr import (
    SwinUNETRPretraining,
    SwinUNETRPretrainingConfig,
    corrupted,
    draw_donors,
    restoration_loss,
)

SMALL = {"crop": (8, 8, 8), "width": 8, "swap_among": 2}


def pretraining(**changes) -> SwinUNETRPretraining:
    torch.manual_seed(0)
    return SwinUNETRPretrainingConfig(**(SMALL | changes)).build(TinyConfig().build())


def config_of(**changes) -> SwinUNETRPretrainingConfig:
    return SwinUNETRPretrainingConfig(**({"crop": (16, 16, 16)} | changes))


def levels(count, side=16):
    """Volumes of one intensity each: 10, 11, ..., far from any noise."""
    return (10 + torch.arange(float(count))).view(-1, 1, 1, 1, 1).expand(-1, 1, side, side, side)


# ---- turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plane", "axes"), [("yz", (2, 3)), ("xy", (1, 2))])
def test_each_view_is_the_volume_turned_by_its_label(plane, axes):
    method = pretraining(plane=plane)
    volumes = torch.rand(12, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    for volume, pair, labels in zip(volumes, views.clean, views.turns.tolist(), strict=True):
        for view, label in zip(pair, labels, strict=True):
            assert torch.equal(view, torch.rot90(volume, label, dims=axes))


def test_all_turns_are_equally_likely_and_the_views_turn_on_their_own():
    method = pretraining(most_dropped=0.0)
    turns = method.views(torch.zeros(400, 1, 8, 8, 8), step_at()).turns
    pairs = torch.bincount(4 * turns[:, 0] + turns[:, 1], minlength=16) / len(turns)
    assert pairs.tolist() == pytest.approx([1 / 16] * 16, abs=0.04)


def test_the_turns_are_the_labels():
    method = pretraining(most_dropped=0.0)
    volumes = torch.rand(4, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    answers = method._answers(views.corrupted.flatten(0, 1))
    expected = torch.nn.functional.cross_entropy(answers.turns, views.turns.flatten())
    torch.testing.assert_close(method(volumes, step_at()).losses["rotation"], expected)


# ---- corruption -------------------------------------------------------------------------------


def test_without_drops_the_views_are_clean():
    views = pretraining(most_dropped=0.0).views(torch.rand(2, 1, 8, 8, 8), step_at())
    assert torch.equal(views.corrupted, views.clean)


def test_about_13_percent_become_noise_and_up_to_13_show_another_crop():
    volumes = levels(60, side=32)
    views = [
        corrupted(volumes, Draws(0, number), config_of(crop=(32, 32, 32), swap_source="clean"))
        for number in range(3)
    ]
    view = torch.stack(views)
    noise = (view <= 1).float().mean()
    other = ((view > 1) & (view != volumes)).float().mean()
    # A crop draws itself one time in four, and noise that is copied over is seen no more.
    swapped = 0.75 * 0.13
    assert other.item() == pytest.approx(swapped, abs=0.015)
    assert noise.item() == pytest.approx(0.13 * (1 - swapped), abs=0.015)


def test_what_is_copied_comes_from_the_same_place_of_one_crop_of_the_group():
    ramp = torch.arange(16.0**3).view(1, 1, 16, 16, 16)
    volumes = 10_000 * (1 + torch.arange(8.0).view(-1, 1, 1, 1, 1)) + ramp
    config = config_of(swap_source="clean", swap_among=4)
    found = corrupted(volumes, Draws(1, 0), config)
    assert found.shape == volumes.shape
    donors = set()
    for at in range(8):
        crop, own = found[at, 0], volumes[at, 0]
        copied = (crop > 1) & (crop != own)
        sources = ((crop - ramp[0, 0])[copied] / 10_000 - 1).unique().tolist()
        assert len(sources) <= 1
        for source in sources:
            assert int(source) // 4 == at // 4
            donors.add((at, int(source)))
    assert len(donors) > 3


@pytest.mark.parametrize("source", ["partly_corrupted", "clean"])
def test_noise_is_copied_along_from_the_crop_before_and_never_from_a_clean_one(source):
    config = config_of(swap_among=2, swap_source=source, most_dropped=1.0, longest_edge_share=0.5)
    along, second = [], []
    for number in range(8):
        found = corrupted(levels(2), Draws(0, number), config)
        # The same noise in the same place of both crops.
        along.append(bool(((found[0] == found[1]) & (found[0] > 0) & (found[0] < 1)).any()))
        second.append(bool((found[1] == levels(2)[0]).any()))
    assert 0 < sum(second) < 8
    # Only the second has a crop before it that is corrupted already.
    assert along == (second if source == "partly_corrupted" else [False] * 8)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 1 << 30))
def test_crops_are_copied_within_their_group(count, among, seed):
    donors = draw_donors(Draws(seed, 0), count, among)
    assert torch.equal(donors // among, torch.arange(count) // among)
    assert donors.max() < count


def test_every_crop_of_a_group_is_as_likely_as_the_others_itself_included():
    donors = draw_donors(Draws(0, 0), 4000, 4)
    kinds = 4 * (torch.arange(4000) % 4) + donors % 4
    shares = torch.bincount(kinds, minlength=16) / 1000
    assert shares.tolist() == pytest.approx([0.25] * 16, abs=0.05)


def test_the_two_views_are_corrupted_on_their_own():
    views = pretraining(crop=(16, 16, 16)).views(levels(2) + 0, step_at())
    hit = (views.corrupted != views.clean)[0]
    assert not torch.equal(hit[0], hit[1])


def test_noise_reaches_the_ends_of_the_networks_input():
    found = corrupted(
        levels(1), Draws(0, 0), config_of(intensities=(-5.0, 5.0), shortest_edge_share=0.2)
    )
    noise = found[found < 9]
    assert noise.min() == -5
    assert noise.max() == 5


def test_a_batch_that_does_not_divide_into_groups_is_refused_in_training_alone():
    method = pretraining()
    with pytest.raises(ConfigError, match="swap_among"):
        method(torch.rand(3, 1, 8, 8, 8), step_at())
    outcome = method.eval()(torch.rand(3, 1, 8, 8, 8), step_at())
    assert torch.isfinite(outcome.losses["contrast"])


# ---- losses and health ------------------------------------------------------------------------


def test_every_voxel_counts_whether_it_was_corrupted_or_not():
    clean = torch.zeros(2, 1, 2, 2, 2)
    found = clean.clone()
    found[0, 0, 0, 0, 0] = -8
    assert restoration_loss(found, clean) == 0.5
    method = pretraining()
    volumes = torch.rand(2, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    painted = method._answers(views.corrupted.flatten(0, 1)).painted
    expected = (painted - views.clean.flatten(0, 1)).abs().mean()
    torch.testing.assert_close(method(volumes, step_at()).losses["reconstruction"], expected)


@pytest.mark.parametrize("size", [1e30, -1e30])
def test_restoration_of_huge_outputs_is_finite(size):
    found = torch.full((1, 1, 4, 4, 4), size, requires_grad=True)
    loss = restoration_loss(found, torch.zeros(1, 1, 4, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(found.grad).all()


def test_a_blind_network_pays_what_the_figures_say():
    method = pretraining(most_dropped=0.0, rotation_weight=2.0, contrast_weight=3.0)
    for parameter in method.heads.parameters():
        parameter.data.zero_()
    # A volume of 0 and 1 alike: as its mean, one half everywhere.
    volumes = torch.ones(2, 1, 8, 8, 8)
    volumes[:, :, :4] = 0
    method.heads.paint[-1].bias.data.fill_(0.5)
    outcome = method(volumes, step_at())
    losses = {name: loss.item() for name, loss in outcome.losses.items()}
    expected = {
        "reconstruction": 0.5,
        "rotation": 2 * math.log(4),
        "contrast": 3 * math.log(3),
    }
    assert losses == pytest.approx(expected)
    chances = {name: outcome.health[f"{name}_loss_chance"].item() for name in losses}
    assert chances == pytest.approx(expected)
    assert outcome.health["loss_chance"].item() == pytest.approx(sum(expected.values()))


def test_the_figures_say_how_much_was_corrupted_and_what_leaving_it_costs():
    health = pretraining(most_dropped=0.0)(torch.rand(2, 1, 8, 8, 8), step_at()).health
    assert health["corrupted_share"] == 0
    assert health["untouched_chance"] == 0
    health = pretraining()(torch.rand(2, 1, 8, 8, 8) + 5, step_at()).health
    assert 0 < health["corrupted_share"] < 0.6
    assert health["untouched_chance"] > health["corrupted_share"]


def test_of_a_network_with_tokens_only_what_makes_them_is_trained_and_handed_on():
    method = SwinUNETRPretrainingConfig(**SMALL).build(TinyMaskedConfig().build())
    assert method.trained_parts() == ("tokens",)
    network = method.handover().network
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"patch", "mix", "merge"}
    outcome = method(torch.rand(2, 1, 8, 8, 8), step_at())
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())


def test_a_task_without_weight_is_left_out_and_its_head_frozen():
    method = pretraining(rotation_weight=0, contrast_weight=0)
    outcome = method(torch.rand(2, 1, 8, 8, 8), step_at())
    assert set(outcome.losses) == {"reconstruction"}
    assert "rotation_accuracy" not in outcome.health
    trained = {name for name, p in method.heads.named_parameters() if p.requires_grad}
    assert all(name.startswith("paint.") for name in trained)


# ---- network and settings ---------------------------------------------------------------------


def test_decoder_and_output_layer_of_the_backbone_are_frozen():
    network = pretraining().handover().network
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"up.weight", "up.bias", "out.weight", "out.bias"}
    assert pretraining().trained_parts() == ("encoder",)


def test_the_settings_of_the_reference_are_the_defaults():
    config = SwinUNETRPretrainingConfig()
    assert (config.plane, config.swap_source, config.readout) == (
        *("yz", "partly_corrupted"),
        "corners",
    )
    assert (config.width, config.temperature, config.most_dropped) == (512, 0.5, 0.3)


def test_a_last_level_of_one_voxel_is_refused():
    with pytest.raises(ConfigError, match="single voxel"):
        pretraining(crop=(4, 4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (96, 96, 64)}, "not square in the plane yz"),
        ({"crop": (96, 64, 64), "plane": "xz"}, "not square in the plane xz"),
        ({"shortest_edge_share": 0.5}, "above longest_edge_share"),
        ({"intensities": (1.0, 0.0)}, "wrong order"),
        ({"most_dropped": 1.5}, "less than or equal to 1"),
        ({"reconstruction_weight": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        SwinUNETRPretrainingConfig(**changes)


def test_the_pictures_show_both_views_of_volumes_before_and_after():
    method = pretraining()
    titles = [panel.title for panel in method.show(torch.rand(2, 1, 8, 8, 8), step_at())]
    assert len(titles) == 12
    assert titles[:3] == ["corrupted 0, view 0", "restored 0, view 0", "clean 0, view 0"]


def test_it_learns_to_restore_and_to_tell_turns():
    method = pretraining(longest_edge_share=0.6, most_dropped=0.1)
    # Brighter towards one side in y and, less so, in z: a turn shows even in a corner.
    sides = torch.linspace(0, 1, 8)
    ramp = (sides[:, None] + 0.3 * sides).expand(4, 1, 8, 8, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(40):
        losses = method(ramp, step_at(number)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    outcome = method.eval()(ramp, step_at(1000))
    for name in ("reconstruction", "rotation"):
        assert outcome.losses[name] < 0.8 * outcome.health[f"{name}_loss_chance"], name
