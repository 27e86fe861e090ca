"""PositionLabel: classes, what counts, and what tells a token its place without anatomy."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unetr import UNETRConfig
from voco.errors import ConfigError
from voco.methods.positionlabel import (
    PositionLabel,
    PositionLabelConfig,
    counted_loss,
    patch_ranges,
    relative_labels,
)


def positionlabel(backbone=None, **changes) -> PositionLabel:
    torch.manual_seed(0)
    backbone = backbone or TinyConfig().build()
    return PositionLabelConfig(**{"crop": (12, 12, 8), **changes}).build(backbone)


def all_pairs(tokens):
    return torch.cartesian_prod(torch.arange(tokens), torch.arange(tokens))


def small_unetr():
    torch.manual_seed(0)
    small = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    return UNETRConfig(size=(32, 32, 32), **small).build()


# ---- classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "classes"), [((2, 2, 2), 27), ((3, 3, 3), 125), ((4, 4, 4), 343), ((2, 3, 1), 15)]
)
def test_displacements_have_a_class_each(grid, classes):
    tokens = math.prod(grid)
    labels = relative_labels(all_pairs(tokens), grid).view(tokens, tokens)
    assert labels.unique().tolist() == list(range(classes))
    assert (labels.diagonal() == classes // 2).all()
    assert (labels + labels.T == classes - 1).all()


def test_equal_displacements_have_the_same_class_and_others_another():
    grid = (2, 3, 4)
    pairs = all_pairs(24)
    places = torch.stack([pairs // 12, pairs // 4 % 3, pairs % 4], dim=2)
    apart = (places[:, 0] - places[:, 1]).tolist()
    labels = relative_labels(pairs, grid).tolist()
    assert len(set(zip(map(tuple, apart), labels, strict=True))) == len(set(labels)) == 105


def test_the_reference_has_169_classes_for_7_by_7_tokens():
    assert int(relative_labels(all_pairs(49), (1, 7, 7)).max()) == 168


# ---- what counts ------------------------------------------------------------------------------


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes():
    method = positionlabel()
    for head in (method.absolute, method.relative):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    losses = method(torch.rand(2, 1, *method.window), step_at()).losses
    assert losses["absolute"].item() == pytest.approx(0.5 * math.log(18), rel=1e-6)
    assert losses["relative"].item() == pytest.approx(0.5 * math.log(5 * 5 * 3), rel=1e-6)


def test_blind_figures_are_those_of_the_best_blind_answer():
    method = positionlabel(crop=(12, 12, 12))
    health = method(torch.rand(1, 1, 12, 12, 12), step_at()).health
    shares = relative_labels(all_pairs(27), (3, 3, 3)).bincount() / 27**2
    assert health["relative_chance"].item() == pytest.approx(float(shares.max()))
    entropy = float(torch.special.entr(shares).sum())
    assert health["relative_loss_chance"].item() == pytest.approx(entropy / 2, rel=1e-5)
    # With the weight of one half, as the loss beside which it stands.
    assert health["absolute_loss_chance"].item() == pytest.approx(math.log(27) / 2)


def test_the_loss_of_a_volume_is_the_mean_over_what_counts_in_it():
    logits, labels = torch.randn(2, 5, 4), torch.randint(4, (2, 5))
    counted = torch.tensor([[True, False, True, False, False], [False] * 5])
    picked = -logits.log_softmax(dim=2).gather(2, labels[..., None])[..., 0]
    expected = (picked[0, 0] + picked[0, 2]) / 2 / 2
    torch.testing.assert_close(counted_loss(logits, labels, counted), expected)


def test_air_is_left_out():
    method = positionlabel()
    volumes = torch.rand(1, 1, 12, 12, 8)
    volumes[..., :4, :4, :] = -1
    shown = method.views(volumes, step_at()).shown[0].view(3, 3, 2)
    assert not shown[0, 0].any()
    assert int(shown.sum()) == 16
    assert positionlabel(least_range=None).views(volumes, step_at()).shown.all()


def test_the_range_of_a_patch_is_that_of_its_values():
    volumes = torch.zeros(1, 2, 8, 4, 4)
    volumes[0, 1, 5, 2, 3] = 0.7
    volumes[0, 0, 6, 1, 1] = -0.2
    torch.testing.assert_close(
        patch_ranges(volumes, 4).flatten(), torch.tensor([0.0, 0.9]), atol=1e-6, rtol=0
    )


def test_pairs_of_a_fine_grid_are_drawn_and_of_a_coarse_one_complete():
    volumes = torch.rand(2, 1, 12, 12, 8)
    assert positionlabel().views(volumes, step_at()).pairs.shape == (2, 18**2, 2)
    drawn = positionlabel(pairs=50).views(volumes, step_at()).pairs
    assert drawn.shape == (2, 50, 2)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kept", ["absolute", "relative"])
def test_a_weight_of_zero_leaves_a_task_out(kept):
    left_out = {"absolute": "relative", "relative": "absolute"}[kept]
    method = positionlabel(**{f"{left_out}_weight": 0.0})
    outcome = method(torch.rand(2, 1, *method.window), step_at())
    assert set(outcome.losses) == {kept}
    assert getattr(method, left_out) is None


# ---- shortcuts --------------------------------------------------------------------------------


def flat_logits(method):
    """What the absolute head says of each token of a volume of one value."""
    views = method.views(torch.full((1, 1, *method.window), 0.5), step_at())
    with torch.no_grad():
        return method.absolute(method._tokens(views.crops)[0, :, : method.absolute[0].in_features])


def trained_on_flat_volumes(method):
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for number in range(60):
        losses = method(torch.full((1, 1, *method.window), 0.5), step_at(number)).losses
        optimizer.zero_grad()
        losses["absolute"].backward()
        optimizer.step()
    method.eval()
    health = method(torch.full((1, 1, *method.window), 0.5), step_at()).health
    return health["absolute_accuracy_flat"].item(), health["absolute_chance"].item()


def test_volumes_of_one_value_are_at_chance_even_after_training_on_them():
    accuracy, chance = trained_on_flat_volumes(positionlabel(least_range=None))
    assert accuracy == pytest.approx(chance)


def test_zeros_beyond_the_border_would_tell_the_place():
    accuracy, chance = trained_on_flat_volumes(positionlabel(least_range=None, padding="zeros"))
    assert accuracy > 1.5 * chance


@pytest.mark.parametrize("code", ["off", "on"])
def test_learned_position_codes_tell_the_place_unless_they_are_off(code):
    method = positionlabel(small_unetr(), crop=(32, 32, 32), position_code=code)
    logits = flat_logits(method)
    alike = torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)
    assert alike == (code == "off")
    trained = dict(method.backbone.network.named_parameters())
    embeddings = trained["vit.patch_embedding.position_embeddings"]
    assert embeddings.requires_grad == (code == "on")
    assert bool(embeddings.any()) == (code == "on")


@pytest.mark.parametrize("build", [SwinUNETRConfig(feature_size=12).build, small_unetr])
def test_codes_that_backbones_declare_exist(build):
    backbone = build()
    names = [key for key, _ in backbone.network.named_parameters()]
    assert any(key.endswith(backbone.position_suffixes) for key in names)


# ---- refusals ---------------------------------------------------------------------------------


def test_a_single_token_has_no_place():
    with pytest.raises(ConfigError, match="single token"):
        positionlabel(crop=(4, 4, 4))


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="3 levels"):
        positionlabel(level=3)


def test_asking_nothing_is_refused():
    with pytest.raises(ValidationError, match="nothing is learnt"):
        positionlabel(absolute_weight=0, relative_weight=0)
