"""MoCo v3: its heads, its copy, where gradients go."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tiny import TinyConfig, step_at

from voco.backbones import BackboneSettings
from voco.draws import Draws
from voco.methods.mocov3 import Embedded, MoCoV3, MoCoV3Config, embedded, symmetric_loss
from voco.task import Step


def moco(patches=(), **changes) -> MoCoV3:
    torch.manual_seed(0)
    small = {"window": (12, 12, 8), "crop": (8, 8, 8), "hidden": 16, "width": 8}
    backbone = TinyConfig().build()
    backbone.patch_prefixes = patches
    return MoCoV3Config.model_validate(small | changes).build(backbone)


def volumes_for(method, count=3):
    return torch.rand(count, 1, *method.window)


def kinds(head):
    return [type(layer).__name__ for layer in head]


# ---- loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "temperature"), [("transformer", 0.2), ("convolution", 1.0)])
def test_equal_embeddings_cost_four_temperatures_of_a_guess(variant, temperature):
    rows = Embedded(torch.ones(5, 3), torch.ones(5, 3))
    chosen = MoCoV3Config(variant=variant).chosen_temperature()
    assert chosen == temperature
    loss = 2 * chosen * symmetric_loss(rows, rows, torch.arange(5), chosen)
    assert loss.item() == pytest.approx(4 * temperature * math.log(5))
    health = moco(variant=variant)(torch.rand(5, 1, 12, 12, 8), step_at()).health
    assert health["loss_chance"].item() == pytest.approx(4 * temperature * math.log(5))


def test_the_loss_crosses_queries_of_one_look_with_keys_of_the_other():
    method = moco(temperature=0.3)
    volumes = volumes_for(method)
    with torch.no_grad():
        for tensor in method.teacher.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    crops = method.views(volumes, step_at()).crops
    first, second = embedded(method.student, crops, method.predictor)
    keys = embedded(method.teacher, crops)
    expected = 0.0
    for queries, other in ((first, keys.second), (second, keys.first)):
        cosines = torch.cosine_similarity(queries[:, None], other[None], dim=2) / 0.3
        expected += 2 * 0.3 * -cosines.log_softmax(dim=1).diag().mean().item()
    found = method(volumes, step_at()).losses["contrast"].item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_look_is_standardised_on_its_own():
    method = moco()
    crops = method.views(volumes_for(method), step_at()).crops
    for half in embedded(method.student, crops):
        torch.testing.assert_close(half.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)


# ---- heads ------------------------------------------------------------------------------------


def test_the_heads_are_those_of_the_references_two_kinds_of_network():
    hidden = ["Linear", "BatchStandardisation", "ReLU"]
    ending = ["Linear", "BatchStandardisation"]
    transformer, convolution = moco(), moco(variant="convolution")
    assert kinds(transformer.student.projector) == [*hidden, *hidden, *ending]
    assert kinds(transformer.predictor) == [*hidden, *ending]
    assert kinds(convolution.student.projector) == [*hidden, *ending]
    assert kinds(convolution.predictor) == [*hidden, "Linear"]
    for method in (transformer, convolution):
        for head in (method.student.projector, method.predictor):
            assert all(getattr(layer, "bias", None) is None for layer in head)


# ---- the copy ---------------------------------------------------------------------------------


def test_the_copy_starts_as_the_network_and_moves_by_its_share_of_the_gap():
    method = moco(momentum=0.9)
    assert method(volumes_for(method), step_at()).health["teacher_distance"] == 0
    before = [tensor.clone() for tensor in method.teacher.parameters()]
    with torch.no_grad():
        for tensor in method.student.parameters():
            tensor.add_(1.0)
    method.before_step(step_at(0))
    for now, old, other in zip(
        method.teacher.parameters(), before, method.student.parameters(), strict=True
    ):
        moved = 0.1 * (other - old) if other.requires_grad else torch.zeros_like(old)
        torch.testing.assert_close(now - old, moved.detach(), atol=1e-6, rtol=1e-4)


def test_the_momentum_rises_to_one_along_a_cosine_or_stays():
    def momenta(method):
        return [method.momentum(Step(number, 10, Draws(0, number))) for number in (0, 5, 10)]

    assert momenta(moco()) == pytest.approx([0.99, 0.995, 1.0])
    assert momenta(moco(momentum_ramp=False)) == pytest.approx([0.99] * 3)


def test_no_gradient_reaches_the_copy_or_the_patch_embedding():
    method = moco(patches=("stem.",))
    method(volumes_for(method), step_at()).losses["contrast"].backward()
    assert all(tensor.grad is None for tensor in method.teacher.parameters())
    stem = method.handover().network.stem
    assert stem.weight.grad is None
    assert not stem.weight.requires_grad
    assert method.handover().network.down.weight.grad is not None
    assert moco(("stem.",), freeze_patches=False).handover().network.stem.weight.requires_grad


@pytest.mark.parametrize(
    ("values", "size", "frozen"),
    [
        (
            {"name": "swin_unetr", "feature_size": 12, "depths": (1, 1, 1, 1)},
            (64, 64, 64),
            {"swinViT.patch_embed.proj.weight", "swinViT.patch_embed.proj.bias"},
        ),
        (
            {
                "name": "unetr",
                "size": (32, 32, 32),
                "feature_size": 4,
                "hidden_size": 12,
                "mlp_dim": 8,
                "num_heads": 2,
            },
            (32, 32, 32),
            {
                "vit.patch_embedding.patch_embeddings.weight",
                "vit.patch_embedding.patch_embeddings.bias",
            },
        ),
    ],
)
def test_the_patch_embedding_of_transformers_is_found(values, size, frozen):
    def trained(**changes):
        backbone = TypeAdapter(BackboneSettings).validate_python(values).build()
        config = MoCoV3Config(window=size, crop=size, hidden=8, width=4, **changes)
        network = config.build(backbone).handover().network
        return {name for name, tensor in network.named_parameters() if tensor.requires_grad}

    assert trained(freeze_patches=False) - trained() == frozen


# ---- settings, learning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (160, 96, 96)}, "does not fit"),
        ({"blur_probabilities": (1.2, 0.1)}, "must lie in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MoCoV3Config(**changes)


def test_it_learns_to_tell_volumes_apart():
    method = moco(momentum=0.9, levels="backbone")
    levels = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1, 1)
    volumes = levels + 0.05 * torch.rand(6, 1, 12, 12, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for number in range(40):
        step = Step(number, 1000, Draws(0, number))
        method.before_step(step)
        outcome = method(volumes, step)
        optimizer.zero_grad()
        outcome.losses["contrast"].backward()
        optimizer.step()
    outcome = method.eval()(volumes, step_at(1000))
    assert outcome.health["pair_accuracy"] >= 3 * outcome.health["pair_chance"]
    assert outcome.losses["contrast"] < 0.7 * outcome.health["loss_chance"]
