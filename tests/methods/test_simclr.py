"""SimCLR: its pairs, its candidates, its loss."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.methods.simclr import SimCLR, SimCLRConfig, partners
from voco.nn.heads import BatchStandardisation

STILL = {
    "flip_probability": 0,
    "turn_probability": 0,
    "noise_probability": 0,
    "brightness_probability": 0,
    "contrast_probability": 0,
    "low_resolution_probability": 0,
    "gamma_probability": 0,
    "inverted_gamma_probability": 0,
}


def simclr(**changes) -> SimCLR:
    torch.manual_seed(0)
    small = {"window": (12, 12, 8), "crop": (8, 8, 8), "hidden": 16, "width": 8}
    return SimCLRConfig.model_validate(small | changes).build(TinyConfig().build())


def volumes_for(method, count=3):
    return torch.rand(count, 1, *method.window)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_partners_are_each_others_and_of_the_same_volume(pairs):
    crops = torch.arange(8 * pairs)
    found = partners(crops, pairs)
    assert torch.equal(found[found], crops)
    assert torch.equal(found // (2 * pairs), crops // (2 * pairs))
    assert ((found - crops).abs() == pairs).all()


def test_without_contrast_the_loss_is_that_of_a_guess():
    method = simclr(pairs=1, appearance=STILL, blur_probability=0)
    outcome = method(torch.zeros(4, 1, 12, 12, 8), step_at())
    assert outcome.losses["contrast"].item() == pytest.approx(math.log(7), rel=1e-3)
    assert outcome.health["loss_chance"].item() == pytest.approx(math.log(7))


@pytest.mark.parametrize(("same_volume", "candidates"), [("left_out", 9), ("negatives", 11)])
def test_other_pairs_of_a_volume_are_left_out_unless_asked_for(same_volume, candidates):
    method = simclr(pairs=2, same_volume=same_volume)
    outcome = method(volumes_for(method), step_at())
    assert outcome.health["loss_chance"].item() == pytest.approx(math.log(candidates))


def test_the_loss_is_the_mean_over_crops_of_finding_the_partner():
    method = simclr(pairs=1, temperature=0.3)
    volumes = volumes_for(method)
    loss = method(volumes, step_at()).losses["contrast"]
    rows = method.student(method.views(volumes, step_at()).crops.flatten(0, 1))
    rows = (rows / rows.norm(dim=1, keepdim=True)).detach()
    scores = (rows @ rows.T / 0.3).exp()
    expected = 0.0
    for row in range(6):
        partner = row + 1 if row % 2 == 0 else row - 1
        others = sum(scores[row, other] for other in range(6) if other != row)
        expected += -math.log(scores[row, partner] / others) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_head_has_the_references_form():
    layers = list(simclr().student.projector)
    assert [type(layer).__name__ for layer in layers] == [
        *["Linear", "BatchStandardisation", "ReLU"] * 2,
        "Linear",
        "BatchStandardisation",
    ]
    assert isinstance(layers[1], BatchStandardisation)
    assert layers[1].scale is not None
    assert layers[-1].scale is None
    assert len(list(simclr(layers=2).student.projector)) == 5


def test_the_picture_shows_every_pair():
    method = simclr(pairs=2, window=(8, 12, 8))
    window, *crops = method.show(volumes_for(method), step_at())
    assert {mark[4] for mark in window.rectangles} == {
        f"pair {number}, {which}" for number in range(2) for which in ("first", "second")
    }
    assert len(crops) == 4
    assert crops[0].image.shape == (8, 8)


def test_a_crop_larger_than_the_window_is_refused():
    with pytest.raises(ValidationError, match="does not fit"):
        SimCLRConfig(window=(64, 64, 32))


def test_it_learns_to_tell_volumes_apart():
    torch.manual_seed(0)
    method = simclr(pairs=1, temperature=0.5, appearance=STILL, blur_probability=0)
    # Each volume has a brightness of its own.
    levels = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1, 1)
    volumes = levels + 0.05 * torch.rand(6, 1, 12, 12, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for number in range(40):
        outcome = method(volumes, step_at(number))
        optimizer.zero_grad()
        outcome.losses["contrast"].backward()
        optimizer.step()
    health = method.eval()(volumes, step_at(1000)).health
    assert health["pair_accuracy"] > 4 * health["pair_chance"]
    assert health["similarity_pairs"] > health["similarity_others"] + 0.5
