"""MAE3D: cubes, what is hidden from the encoder, targets, losses."""

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, TinyTokensConfig, step_at

from voco.errors import ConfigError
from voco.methods.mae3d import MAE3D, MAE3DConfig, reconstruction_loss
from voco.nn.cubes import from_cubes, standardised, to_cubes

VARIANTS = ("standardised", "raw")
SMALL = {"crop": (8, 8, 16), "width": 12, "depth": 1, "heads": 2, "hidden": 16}


def mae(**changes) -> MAE3D:
    torch.manual_seed(0)
    return MAE3DConfig(**(SMALL | changes)).build(TinyTokensConfig().build())


def volumes_for(method, count=2):
    return torch.rand(count, 1, *method.window, generator=torch.Generator().manual_seed(1))


# ---- cubes ------------------------------------------------------------------------------------


def test_cubes_are_in_the_order_of_the_tokens():
    method = mae()
    volumes = volumes_for(method)
    kernel = method.backbone.network.patch
    flat = kernel.weight.flatten(2).movedim(1, 2).flatten(1)
    expected = to_cubes(volumes, (4, 4, 4)) @ flat.T + kernel.bias
    torch.testing.assert_close(expected, kernel(volumes).flatten(2).mT, atol=1e-5, rtol=1e-4)


# ---- what is hidden ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "seen"), [(0.75, 4), (0.125, 14), (0.8, 3), (0.5, 8)])
def test_as_many_cubes_are_seen_as_the_ratio_leaves(ratio, seen):
    assert mae(crop=(8, 16, 8), mask_ratio=ratio).seen == seen


def test_54_of_216_cubes_are_seen_at_the_references_size():
    assert int(6**3 * (1 - MAE3DConfig().mask_ratio)) == 54


def test_nothing_of_the_hidden_cubes_reaches_the_network():
    method = mae(flip_probability=0.0)
    volumes, step = volumes_for(method), step_at()
    order = method.views(volumes, step).order
    at = order[:, method.seen :, None]
    cubes = to_cubes(volumes, (4, 4, 4))
    other = cubes.scatter(1, at.expand(-1, -1, 64), torch.rand(2, at.shape[1], 64))
    changed = from_cubes(other, method.grid, (4, 4, 4))
    found = [method._painted(v, order) for v in (volumes, changed)]
    assert torch.equal(*found)
    assert found[0].shape == (2, 12, 64)


def test_every_cube_is_hidden_as_often_as_the_others():
    method = mae()
    orders = torch.cat(
        [method.views(volumes_for(method, 50), step_at(number)).order for number in range(20)]
    )
    hidden = torch.bincount(orders[:, method.seen :].flatten(), minlength=16) / len(orders)
    assert hidden.tolist() == pytest.approx([0.75] * 16, abs=0.06)


def test_predictions_follow_their_cubes_whatever_the_order():
    method = mae()
    volumes = volumes_for(method, 1)
    order = method.views(volumes, step_at()).order
    turned = torch.cat([order[:, : method.seen], order[:, method.seen :].flip(1)], dim=1)
    found, other = method._painted(volumes, order), method._painted(volumes, turned)
    torch.testing.assert_close(found, other.flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-4)


# ---- losses -----------------------------------------------------------------------------------


def test_losses_in_closed_form():
    found, true = torch.zeros(1, 2, 4), torch.tensor([[[1.0, -1, 1, -1], [3, 3, 3, 3]]])
    assert reconstruction_loss(found, true, "standardised") == (1 + 9) / 2
    assert reconstruction_loss(found, true, "raw") == (1 + 3) / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_of_hidden_cubes_alone(variant):
    method = mae(variant=variant, flip_probability=0.0)
    volumes, step = volumes_for(method), step_at()
    order = method.views(volumes, step).order
    cubes = to_cubes(volumes, (4, 4, 4))
    targets = standardised(cubes) if variant == "standardised" else cubes
    hidden = torch.stack([row[i] for row, i in zip(targets, order[:, 4:], strict=True)])
    expected = reconstruction_loss(method._painted(volumes, order), hidden, variant)
    torch.testing.assert_close(method(volumes, step).losses["reconstruction"], expected)


def test_guessing_the_mean_of_a_cube_costs_its_unit_variance():
    method = mae()
    assert method(volumes_for(method), step_at()).health["loss_chance"].item() == pytest.approx(
        1, abs=1e-3
    )
    empty = method(torch.zeros(2, 1, 8, 8, 16), step_at()).health
    assert empty["loss_chance"] == 0
    assert empty["uniform_share"] == 1


def test_guessing_the_mean_of_what_is_seen_costs_the_mean_distance_from_it():
    method = mae(variant="raw")
    flat = method(torch.full((2, 1, 8, 8, 16), 0.3), step_at()).health
    assert flat["loss_chance"].item() == pytest.approx(0, abs=1e-6)
    even = method(volumes_for(method), step_at()).health
    assert even["loss_chance"].item() == pytest.approx(0.25, abs=0.02)


# ---- network and settings ---------------------------------------------------------------------


def test_only_what_makes_tokens_is_trained_and_handed_on():
    method = mae()
    network = method.handover().network
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"patch.weight", "patch.bias", "mix.weight", "mix.bias"}
    assert method.trained_parts() == ("tokens",)


def test_a_network_without_tokens_is_refused_and_told_which_fit():
    with pytest.raises(ConfigError, match="unetr"):
        MAE3DConfig(**SMALL).build(TinyConfig().build())


def test_a_ratio_that_leaves_nothing_to_see_is_refused():
    with pytest.raises(ConfigError, match="at least one must be seen"):
        mae(mask_ratio=0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 380}, "multiple of 6"),
        ({"width": 390}, "heads"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"variant": "l1"}, "standardised"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MAE3DConfig(**changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_to_paint_what_is_hidden(variant):
    method = mae(variant=variant, flip_probability=0.0)
    ramp = torch.linspace(0, 1, 16).expand(8, 1, 8, 8, 16).clone()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(40):
        loss = method(ramp, step_at(number)).losses["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outcome = method.eval()(ramp, step_at(1000))
    assert outcome.losses["reconstruction"] < outcome.health["loss_chance"] / 2
