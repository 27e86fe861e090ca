import math

import pytest
import torch
from tiny import TinyConfig, step_at

from voco.data.patches import Targets
from voco.errors import ConfigError
from voco.tasks.classification import ClassificationConfig, augment

CONFIG = ClassificationConfig(size=(8, 8, 8))


def batch(seed=0):
    rng = torch.Generator().manual_seed(seed)
    volumes = torch.rand(4, 1, 8, 8, 8, generator=rng)
    return Targets(volumes, torch.tensor([0, 1, 2, 0]))


def test_an_undecided_network_has_the_loss_of_chance():
    task = CONFIG.build(TinyConfig().build(), 3)
    with torch.no_grad():
        task.classifier.weight.zero_()
        task.classifier.bias.zero_()
    outcome = task(batch(), step_at())
    assert outcome.losses["ce"].item() == pytest.approx(math.log(3), abs=1e-5)
    assert outcome.health["accuracy"].item() == 0.5


def test_features_are_the_means_of_the_embedding_levels():
    task = CONFIG.build(TinyConfig().build(), 3).eval()
    volumes = batch().volumes
    levels = task.backbone.encode(volumes)
    expected = task.classifier(torch.cat([level.mean((2, 3, 4)) for level in levels], 1))
    assert torch.allclose(task.scores(volumes), expected, atol=1e-6)


def test_decoder_and_output_are_frozen_and_the_rest_gets_a_gradient():
    task = CONFIG.build(TinyConfig().build(), 3)
    task(batch(), step_at()).losses["ce"].backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert not any(".up." in name or ".out." in name for name in trained)
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_a_class_without_weight_hardly_counts():
    few = CONFIG.model_copy(update={"class_weights": (1e-6, 1.0, 1.0)})
    plain, weighted = (each.build(TinyConfig().build(), 3) for each in (CONFIG, few))
    weighted.load_state_dict(plain.state_dict())
    rest = Targets(batch().volumes[1:3], batch().classes[1:3])
    quiet = CONFIG.model_copy(update={"flip_probability": 0.0, "shift_probability": 0.0})
    plain.config = quiet
    weighted.config = quiet.model_copy(update={"class_weights": (1e-6, 1.0, 1.0)})
    losses = [
        plain(rest, step_at()).losses["ce"].item(),
        weighted(batch(), step_at()).losses["ce"].item(),
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_loss_is_finite_and_float32_whatever_the_scores():
    task = CONFIG.build(TinyConfig().build(), 3)
    with torch.no_grad():
        task.classifier.weight.mul_(1e30)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task(batch(), step_at()).losses["ce"]
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))


def test_weights_for_another_number_of_classes_are_refused():
    config = ClassificationConfig(size=(8, 8, 8), class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"2 weights.*3 classes"):
        config.build(TinyConfig().build(), 3)


def test_only_the_axes_named_are_mirrored():
    volumes = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(4, 1, 8, 4, 4)
    config = ClassificationConfig(flip_axes=("y", "z"), flip_probability=1, shift_probability=0)
    assert torch.equal(augment(volumes, config, step_at().draws), volumes)
    mirrored = config.model_copy(update={"flip_axes": ("x",)})
    assert torch.equal(augment(volumes, mirrored, step_at().draws), volumes.flip(2))
