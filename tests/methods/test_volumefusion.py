"""Volume fusion: what is mixed where, the losses in closed form, settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.errors import ConfigError
from voco.methods.volumefusion import (
    VolumeFusion,
    VolumeFusionConfig,
    cross_entropy,
    dice_loss,
    draw_boxes,
    draw_cells,
    fuse,
    fusion_health,
    partners,
)

PLAIN = {
    "flip_probability": 0.0,
    "turn_probability": 0.0,
    "noise_probability": 0.0,
    "brightness_probability": 0.0,
    "contrast_probability": 0.0,
    "low_resolution_probability": 0.0,
    "gamma_probability": 0.0,
    "inverted_gamma_probability": 0.0,
}
SMALL = {"window": (8, 8, 8), "crop": (8, 8, 8), "least_edge": 2}


def fusion(**changes) -> VolumeFusion:
    torch.manual_seed(0)
    return VolumeFusionConfig(**(SMALL | changes)).build(TinyConfig().build())


def config_of(**changes) -> VolumeFusionConfig:
    return VolumeFusionConfig(**({"window": (32, 24, 16), "crop": (32, 24, 16)} | changes))


def sure_of(labels, classes=5):
    """Logits that leave no doubt."""
    return F.one_hot(labels, classes).movedim(-1, 1) * 100.0


# ---- what is mixed ----------------------------------------------------------------------------


def test_the_mixture_is_foreground_where_the_class_is_highest_and_background_where_it_is_0():
    foreground, background = torch.full((1, 1, 1, 1, 5), 8.0), torch.zeros(1, 1, 1, 1, 5)
    fused = fuse(foreground, background, torch.arange(5).view(1, 1, 1, 5), 4)
    assert fused.flatten().tolist() == [0, 2, 4, 6, 8]


def test_a_volume_is_mixed_with_its_neighbour_and_with_nothing_else():
    method = fusion(appearance=PLAIN, blur_probability=0)
    volumes = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    for number, other in enumerate((1, 0, 3, 2)):
        assert (views.background[number] == number).all()
        assert (views.foreground[number] == other).all()
    expected = views.background + (views.foreground - views.background) * views.labels[:, None] / 4
    torch.testing.assert_close(views.fused, expected)


def test_the_last_of_an_odd_number_stays_alone():
    assert partners(5).tolist() == [1, 0, 3, 2, 4]
    assert partners(1).tolist() == [0]


def test_an_odd_batch_is_refused_in_training_alone():
    method = fusion()
    with pytest.raises(ConfigError, match="even number"):
        method(torch.rand(3, 1, 8, 8, 8), step_at())
    assert torch.isfinite(method.eval()(torch.rand(3, 1, 8, 8, 8), step_at()).losses["ce"])


def test_two_crops_of_the_same_window_can_be_mixed():
    method = fusion(sources="crops", window=(16, 16, 8), appearance=PLAIN, blur_probability=0)
    ramp = torch.arange(16.0)[:, None, None] + 100 * torch.arange(16.0)[:, None]
    volumes = (
        ramp.expand(3, 1, 16, 16, 8) + 10_000 * torch.arange(3.0).view(3, 1, 1, 1, 1)
    ).clone()
    views = method.views(volumes, step_at())
    apart = views.foreground - views.background
    # Of one volume: the crops differ by where they start, which is the same for all voxels.
    assert torch.equal(apart, apart[:, :, :1, :1, :1].expand_as(apart))
    assert apart.abs().max() < 1000
    assert (apart[:, 0, 0, 0, 0] != 0).any()


def test_foreground_and_background_are_changed_on_their_own():
    method = fusion(appearance=PLAIN | {"flip_probability": 0.5}, blur_probability=0)
    ramp = torch.arange(512.0).view(1, 1, 8, 8, 8).expand(6, -1, -1, -1, -1)
    views = method.views(ramp, step_at())
    assert len(torch.cat([views.foreground, views.background]).unique(dim=0)) > 4


# ---- where it is mixed ------------------------------------------------------------------------


def test_a_single_box_has_edges_within_their_range():
    config = config_of(least_boxes=1, most_boxes=1, least_edge=4)
    seen = []
    for labels in draw_boxes(step_at().draws, 200, config):
        inside = labels.nonzero()
        edges = inside.amax(dim=0) - inside.amin(dim=0) + 1
        assert edges.prod() == len(inside)
        assert labels[labels > 0].unique().numel() == 1
        seen.append(edges)
    edges = torch.stack(seen)
    assert edges.amin(dim=0).tolist() == [4, 4, 4]
    assert edges.amax(dim=0).tolist() == [20, 15, 10]


def test_later_boxes_lie_on_top():
    config = config_of(least_boxes=2, most_boxes=2, least_edge=16, most_edge_share=1.0)
    for labels in draw_boxes(step_at().draws, 50, config):
        # The last box is whole; what is left of the first is not always. Of one class, they merge.
        kinds = labels.unique()
        boxes = 0
        for kind in kinds[kinds > 0]:
            inside = (labels == kind).nonzero()
            edges = inside.amax(dim=0) - inside.amin(dim=0) + 1
            boxes += int(edges.prod() == len(inside))
        assert boxes >= 1 or len(kinds) == 2


@pytest.mark.parametrize("draw", [draw_boxes, draw_cells])
@pytest.mark.parametrize("draw_zero", [False, True])
def test_all_classes_are_drawn(draw, draw_zero):
    labels = draw(step_at().draws, 20, config_of(draw_zero=draw_zero, coefficients=3))
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert labels.shape == (20, 32, 24, 16)


def test_a_grid_without_gaps_leaves_only_its_remainder_free():
    config = config_of(least_edge=8, most_edge=8, cell_share=1.0)
    labels = draw_cells(step_at().draws, 10, config)
    assert (labels > 0).all()
    cells = labels.unflatten(1, (4, 8)).unflatten(3, (3, 8)).unflatten(5, (2, 8))
    assert torch.equal(cells.amin(dim=(2, 4, 6)), cells.amax(dim=(2, 4, 6)))
    free = draw_cells(step_at().draws, 50, config_of(least_edge=7, most_edge=7, cell_share=1.0))
    assert torch.equal((free > 0).sum(dim=(1, 2, 3)), torch.full((50,), 28 * 21 * 14))
    assert len((free > 0).unique(dim=0)) > 20


def test_the_share_of_cells_that_are_mixed_is_as_set():
    config = config_of(least_edge=2, most_edge=2)
    share = (draw_cells(step_at().draws, 20, config) > 0).float().mean()
    assert share == pytest.approx(0.7, abs=0.02)


# ---- losses and health ------------------------------------------------------------------------


def test_a_network_that_knows_nothing_pays_the_logarithm_of_the_classes():
    labels = draw_boxes(step_at().draws, 2, config_of())
    logits = torch.zeros(2, 5, 32, 24, 16)
    assert cross_entropy(logits, labels).item() == pytest.approx(math.log(5), rel=1e-5)


def test_dice_of_a_blind_guess_is_in_closed_form():
    labels = torch.arange(5).view(1, 5, 1, 1)
    # Five voxels, one of each class, each guessed with 1/5: 2 * 0.2 / (1 + 1).
    assert dice_loss(torch.zeros(1, 5, 5, 1, 1), labels, 1e-9).item() == pytest.approx(0.8)


def test_a_network_that_is_right_pays_nothing():
    labels = draw_boxes(step_at().draws, 2, config_of())
    assert cross_entropy(sure_of(labels), labels) == 0
    assert dice_loss(sure_of(labels), labels, 1e-5).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1e30, -1e30])
def test_losses_of_huge_logits_are_finite(size):
    logits = torch.full((1, 5, 4, 4, 4), size)
    logits[:, 0] *= -1
    logits.requires_grad_()
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    loss = cross_entropy(logits, labels) + dice_loss(logits, labels, 1e-5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_weights_are_in_the_losses_and_a_weight_of_0_leaves_one_out():
    volumes = torch.rand(2, 1, 8, 8, 8)
    one = fusion(dice_weight=1.0, ce_weight=1.0)(volumes, step_at()).losses
    half = fusion()(volumes, step_at()).losses
    for name in ("dice", "ce"):
        torch.testing.assert_close(half[name], one[name] / 2)
    assert set(fusion(dice_weight=0)(volumes, step_at()).losses) == {"ce"}


def test_health_tells_a_network_that_is_right_from_one_that_always_says_the_same():
    method = fusion(crop=(8, 8, 8), least_boxes=3, most_boxes=6)
    views = method.views(torch.rand(4, 1, 8, 8, 8), step_at())
    right = fusion_health(sure_of(views.labels), views)
    assert right["voxel_accuracy"] == right["class_accuracy"] == 1
    most = views.labels.flatten().mode().values
    same = fusion_health(sure_of(torch.full_like(views.labels, most.item())), views)
    torch.testing.assert_close(same["voxel_accuracy"], same["voxel_chance"])
    torch.testing.assert_close(same["class_accuracy"], same["class_chance"])


def test_what_is_mixed_with_its_like_is_ambiguous():
    method = fusion(appearance=PLAIN, blur_probability=0)
    alike = method(torch.zeros(2, 1, 8, 8, 8), step_at()).health
    assert alike["ambiguous_share"] == 1
    other = torch.stack([torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)])
    assert method(other, step_at()).health["ambiguous_share"] == 0


# ---- network and settings ---------------------------------------------------------------------


def test_the_output_layer_is_the_methods_own():
    method = fusion(coefficients=6)
    assert method(torch.rand(2, 1, 8, 8, 8), step_at()).health["class_chance"] >= 1 / 7
    assert method.head.out_channels == 7
    assert not method.handover().network.out.weight.requires_grad
    assert method.handover().network.up.weight.requires_grad
    assert method.trains_decoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (8, 8, 8), "crop": (8, 8, 9)}, "does not fit"),
        ({"sources": "crops"}, "window larger than the crop"),
        ({"least_edge": 97}, "longer than the crop"),
        ({"least_edge": 40}, "most_edge"),
        ({"least_boxes": 50}, "least_boxes"),
        ({"dice_weight": 0, "ce_weight": 0}, "nothing to learn"),
        ({"coefficients": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        VolumeFusionConfig(**changes)


def test_it_learns_how_much_was_mixed_in():
    method = fusion(appearance=PLAIN, blur_probability=0, coefficients=2)
    volumes = torch.stack([torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)])
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(60):
        losses = method(volumes, step_at(number)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    health = method.eval()(volumes, step_at(1000)).health
    assert health["class_accuracy"] > health["class_chance"] + 0.2
