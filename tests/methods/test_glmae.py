"""GL-MAE: two sizes of crops, what is painted, what agrees with what, the copy and its centre."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, TinyTokensConfig, step_at

from voco.backbones.unetr import UNETRConfig
from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.glmae import (
    GLMAE,
    GLMAEConfig,
    agreement_loss,
    log_shares,
    teacher_shares,
)
from voco.nn.cubes import from_cubes, standardised, to_cubes
from voco.nn.positions import position_code
from voco.task import Step

SMALL = {
    "window": (16, 12, 8),
    "global_crop": (12, 8, 8),
    "local_crop": (8, 8, 4),
    "scales": (0.6, 1.0),
    "width": 12,
    "depth": 1,
    "heads": 2,
    "hidden": 16,
    "head_widths": (16, 8),
    "prototypes": 20,
    "frozen_prototype_steps": 0,
}
UNETR = UNETRConfig(size=(32, 32, 32), feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2)
ON_UNETR = {"window": (48, 48, 32), "global_crop": (48, 48, 32), "local_crop": (32, 32, 32)}


def glmae(**changes) -> GLMAE:
    torch.manual_seed(0)
    return GLMAEConfig(**(SMALL | changes)).build(TinyTokensConfig().build())


def on_unetr(**changes) -> GLMAE:
    torch.manual_seed(0)
    return GLMAEConfig(**(SMALL | ON_UNETR | {"scales": (1, 1)} | changes)).build(UNETR.build())


def volumes_for(method, count=3):
    return torch.rand(count, 1, *method.window, generator=torch.Generator().manual_seed(1))


def apart(method):
    """The method with a copy that is not its student, and a centre."""
    with torch.no_grad():
        for tensor in (*method.teacher.parameters(), method.centre):
            tensor.add_(0.3 * torch.randn_like(tensor))
    return method


def said(method, crops, order, kind):
    """What the student says of masked crops, one by one."""
    flat = [
        method.student(crop, o[:, : kind.seen])[1] for crop, o in zip(crops, order, strict=True)
    ]
    return torch.stack(flat)


def entropy(targets, answers):
    """The cross-entropy of one answer, in the plainest way."""
    return -(targets * torch.log(torch.softmax(answers / 0.1, dim=0))).sum().item()


# ---- crops ------------------------------------------------------------------------------------


def test_the_sizes_are_those_of_the_authors_figure():
    config = GLMAEConfig()
    assert config.global_crop == (160, 160, 160)
    assert config.local_crop == (96, 96, 96)
    assert (config.width, config.depth, config.heads) == (512, 8, 16)


def test_so_many_crops_of_each_kind_come_with_a_random_order_of_all_their_cubes():
    method = glmae(global_crops=3, local_crops=5)
    views = method.views(volumes_for(method), step_at())
    assert views.global_crops.shape == (3, 3, 1, 12, 8, 8)
    assert views.local_crops.shape == (3, 5, 1, 8, 8, 4)
    for order, cubes in ((views.global_order, 12), (views.local_order, 4)):
        assert torch.equal(order.sort(dim=2).values, torch.arange(cubes).expand_as(order))
        assert len(order.flatten(0, 1).unique(dim=0)) > 1


def test_a_crop_that_is_neither_zoomed_nor_mirrored_is_what_lies_in_its_box():
    method = glmae(scales=(1, 1), flip_probability=0.0)
    volumes = volumes_for(method)
    views = method.views(volumes, step_at())
    for crops, boxes in (
        (views.global_crops, views.global_boxes),
        (views.local_crops, views.local_boxes),
    ):
        (i, j, k), (x, y, z) = boxes[2, 1].tolist()
        assert torch.equal(crops[2, 1], volumes[2, :, i:x, j:y, k:z])


def test_a_quarter_of_each_kind_is_seen_unless_said_otherwise():
    method = glmae(global_mask_ratio=0.5)
    assert (method.wide.seen, method.narrow.seen) == (6, 1)
    full = GLMAEConfig()
    assert int(10**3 * (1 - full.global_mask_ratio)) == 250
    assert int(6**3 * (1 - full.local_mask_ratio)) == 54


# ---- painting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["standardised", "raw"])
def test_the_losses_of_painting_are_squared_errors_of_hidden_cubes_alone(targets):
    method = glmae(targets=targets, local_reconstruction_weight=0.5)
    volumes, step = volumes_for(method), step_at()
    views, losses = method.views(volumes, step), method(volumes, step).losses
    for name, crops, order, kind, weight in (
        ("global", views.global_crops, views.global_order, method.wide, 1),
        ("local", views.local_crops, views.local_order, method.narrow, 0.5),
    ):
        errors = []
        for crop, row in zip(crops.flatten(0, 1), order.flatten(0, 1), strict=True):
            found, _ = method._painted(crop[None], row[None], kind)
            cubes = to_cubes(crop[None], (4, 4, 4))
            true = standardised(cubes) if targets == "standardised" else cubes
            errors.append((found[0] - true[0, row[kind.seen :]]).square().mean())
        expected = weight * torch.stack(errors).mean().item()
        assert losses[f"{name}_reconstruction"].item() == pytest.approx(expected, rel=1e-4)


def test_nothing_of_the_hidden_cubes_reaches_the_student_but_all_of_them_reach_the_copy():
    method = glmae()
    crop = torch.rand(1, 1, 12, 8, 8)
    order = torch.randperm(12)[None]
    hidden = order[:, method.wide.seen :, None].expand(-1, -1, 64)
    other = to_cubes(crop, (4, 4, 4)).scatter(1, hidden, torch.rand(1, 9, 64))
    changed = from_cubes(other, method.wide.grid, (4, 4, 4))
    ours, theirs = (method._painted(c, order, method.wide) for c in (crop, changed))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(method.teacher(crop)[1], method.teacher(changed)[1])


# ---- agreement --------------------------------------------------------------------------------


def test_the_cross_entropy_in_closed_form():
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    answers = torch.tensor([[0.0, 0.0], [0.2, 0.5]])
    expected = (math.log(2) + math.log(1 + math.exp(3))) / 2
    assert agreement_loss(targets, answers, 0.1).item() == pytest.approx(expected)


def test_a_student_who_finds_all_prototypes_equally_likely_pays_the_logarithm_of_their_number():
    targets = torch.rand(3, 2, 7).softmax(dim=2)
    for level in (0.0, -0.4):
        loss = agreement_loss(targets, torch.full((3, 2, 7), level), 0.1)
        assert loss.item() == pytest.approx(math.log(7), rel=1e-5)


def test_a_teachers_shares_are_sharpened_after_the_centre_is_taken_off():
    answers, centre = torch.tensor([[0.3, 0.1]]), torch.tensor([0.1, 0.1])
    odds = math.exp(0.2 / 0.04)
    assert teacher_shares(answers, centre, 0.04)[0, 0].item() == pytest.approx(odds / (1 + odds))
    usual = teacher_shares(answers, answers[0], 0.04)
    assert usual[0].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agreement_is_finite_whatever_is_said(dtype):
    wild = torch.tensor([[3e38, -3e38, 0.0], [0, 0, 0]], dtype=dtype, requires_grad=True)
    targets = teacher_shares(wild.detach().flip(1), torch.zeros(3), 0.04)
    loss = agreement_loss(targets, wild, 0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(wild.grad).all()


def test_a_masked_global_crop_is_compared_with_itself_intact():
    method = apart(glmae())
    volumes, step = volumes_for(method), step_at()
    views = method.views(volumes, step)
    answers = said(method, views.global_crops, views.global_order, method.wide)
    intact = torch.stack([method.teacher(crops)[1] for crops in views.global_crops])
    targets = torch.softmax((intact - method.centre) / 0.04, dim=2)
    costs = [entropy(targets[v, i], answers[v, i]) for v in range(3) for i in range(2)]
    found = method(volumes, step).losses["global_agreement"].item()
    assert found == pytest.approx(sum(costs) / len(costs), rel=1e-4)


def test_every_local_crop_is_compared_with_every_global_crop_of_its_volume():
    method = apart(glmae(local_agreement_weight=2.0))
    volumes, step = volumes_for(method), step_at()
    views = method.views(volumes, step)
    answers = said(method, views.local_crops, views.local_order, method.narrow)
    intact = torch.stack([method.teacher(crops)[1] for crops in views.global_crops])
    targets = torch.softmax((intact - method.centre) / 0.04, dim=2)
    costs = [
        entropy(targets[v, i], answers[v, j])
        for v in range(3)
        for i in range(2)
        for j in range(method.config.local_crops)
    ]
    found = method(volumes, step).losses["local_agreement"].item()
    assert found == pytest.approx(2 * sum(costs) / len(costs), rel=1e-4)


# ---- health -----------------------------------------------------------------------------------


def test_blind_answers_cost_unit_variances_and_logarithms_times_their_weights():
    weights = {
        "local_reconstruction_weight": 2.0,
        "global_agreement_weight": 3.0,
        "local_agreement_weight": 4.0,
    }
    method = glmae(**weights)
    health = method(volumes_for(method), step_at()).health
    assert health["loss_chance"].item() == pytest.approx(1 + 2 + 7 * math.log(20), abs=0.01)
    assert health["global_agreement_loss_chance"].item() == pytest.approx(3 * math.log(20))
    assert health["local_reconstruction_loss_chance"].item() == pytest.approx(2, abs=0.01)
    losses = method(volumes_for(method), step_at()).losses
    assert {f"{name}_loss_chance" for name in losses} < set(health)


def test_a_copy_that_says_the_same_of_all_crops_is_seen_to_have_collapsed():
    method = glmae()
    alive = method(volumes_for(method), step_at()).health
    last = method.teacher.head.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
    none = method(volumes_for(method), step_at()).health  # all cosines are 0
    assert none["teacher_entropy"].item() == pytest.approx(math.log(20), rel=1e-5)
    assert none["teacher_entropy"] == pytest.approx(none["largest_entropy"])
    with torch.no_grad():
        last.bias.copy_(method.teacher.head.prototypes[3])
    one = method(volumes_for(method), step_at()).health  # all are like one prototype
    assert one["teacher_entropy"] < none["teacher_entropy"] - 0.5
    for collapsed in (none, one):
        assert collapsed["teacher_information"].item() == pytest.approx(0, abs=1e-5)
    assert alive["teacher_information"] > 1e-4


def test_a_student_who_says_the_same_of_all_crops_is_right_by_chance():
    method = glmae()
    with torch.no_grad():
        method.student.head.layers[-1].weight.zero_()
        method.student.head.layers[-1].bias.zero_()
    health = method(volumes_for(method, 4), step_at()).health
    assert health["agreement_chance"] == 0.25
    assert health["agreement_accuracy"].item() == pytest.approx(0.25)


# ---- the copy, the centre, the last layer -----------------------------------------------------


def test_the_copy_starts_as_the_student_follows_it_and_gets_no_gradient():
    method = glmae(momentum=0.9)
    outcome = method(volumes_for(method), step_at())
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert outcome.health["teacher_distance"] == 0
    assert all(tensor.grad is None for tensor in method.teacher.parameters())
    before = [tensor.clone() for tensor in method.teacher.parameters()]
    with torch.no_grad():
        for tensor in method.student.parameters():
            tensor.add_(1.0)
    method.before_step(step_at(0))
    pairs = zip(method.teacher.parameters(), before, method.student.parameters(), strict=True)
    for now, old, other in pairs:
        moved = 0.1 * (other - old) if other.requires_grad else torch.zeros_like(old)
        torch.testing.assert_close(now - old, moved.detach(), atol=1e-6, rtol=1e-4)


def test_the_momentum_rises_to_one_along_a_cosine_or_stays():
    def momenta(method):
        return [method.chosen_momentum(Step(at, 10, Draws(0, at))) for at in (0, 5, 10)]

    assert momenta(glmae()) == pytest.approx([0.996, 0.998, 1.0])
    assert momenta(glmae(momentum_ramp=False)) == pytest.approx([0.996] * 3)


def test_the_students_network_is_handed_on():
    method = glmae()
    assert method.handover() is method.student.backbone
    assert method.handover() is not method.teacher.backbone
    assert method.trained_parts() == ("tokens",)
    trained = {name for name, p in method.handover().network.named_parameters() if p.requires_grad}
    assert trained == {"patch.weight", "patch.bias", "mix.weight", "mix.bias"}


def test_the_centre_moves_after_a_step_to_the_mean_of_what_the_copy_said_in_it():
    method = glmae(centre_momentum=0.75)
    volumes, step = volumes_for(method), step_at()
    crops = method.views(volumes, step).global_crops.flatten(0, 1)
    mean = method.teacher(crops)[1].mean(dim=0).detach()
    method(volumes, step)
    assert torch.equal(method.centre, torch.zeros(20))
    method.after_step(step)
    torch.testing.assert_close(method.centre, 0.25 * mean)
    method.after_step(step)
    torch.testing.assert_close(method.centre, 0.25 * mean)
    assert "centre" in method.state_dict()


def test_a_step_of_two_micro_batches_moves_the_centre_as_one_of_both_would():
    method = glmae(centre_momentum=0.0)
    first, second = step_at(0), step_at(1)
    volumes, means = volumes_for(method), []
    for step in (first, second):
        crops = method.views(volumes, step).global_crops.flatten(0, 1)
        means.append(method.teacher(crops)[1].mean(dim=0).detach())
        method(volumes, step)
    method.after_step(first)
    torch.testing.assert_close(method.centre, (means[0] + means[1]) / 2)


def test_looking_at_held_out_volumes_leaves_the_centre_alone():
    method = glmae().eval()
    method(volumes_for(method), step_at())
    method.after_step(step_at())
    assert torch.equal(method.centre, torch.zeros(20))


def test_the_last_layer_stays_through_the_first_steps_whatever_the_optimizer_does():
    method = glmae(frozen_prototype_steps=2)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    before = method.student.head.prototypes.detach().clone()
    for number in range(3):
        outcome = method(volumes_for(method), step_at(number))
        optimizer.zero_grad()
        torch.stack(list(outcome.losses.values())).sum().backward()
        method.after_backward(step_at(number))
        optimizer.step()
        assert torch.equal(method.student.head.prototypes, before) == (number < 2)


# ---- network and settings ---------------------------------------------------------------------


def test_a_class_token_enters_with_the_cubes_and_stays_out_of_what_is_painted():
    method = glmae()
    crop = torch.rand(2, 1, 12, 8, 8)
    tokens, answers = method.student(crop)
    assert tokens.shape == (2, 12, 10)
    assert answers.shape == (2, 20)
    answers.square().sum().backward()
    assert method.student.class_token.grad.abs().sum() > 0


def test_without_a_class_token_the_mean_of_the_tokens_stands_for_the_crop():
    method = glmae(summary="mean")
    assert method.student.class_token is None
    crop = torch.rand(2, 1, 12, 8, 8)
    tokens, answers = method.student(crop)
    assert torch.equal(tokens, method.handover().tokens(crop))
    assert torch.equal(answers, method.student.head(tokens.mean(dim=1)))


def test_a_network_of_one_size_sees_crops_of_both():
    method = on_unetr()
    outcome = method(volumes_for(method, 2), step_at())
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert (method.wide.grid, method.narrow.grid) == ((3, 3, 2), (2, 2, 2))
    assert all(torch.isfinite(loss) for loss in outcome.losses.values())
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_fixed_position_code_is_of_sines_and_cosines_and_stays():
    name = "vit.patch_embedding.position_embeddings"
    fixed = on_unetr().handover().network.get_parameter(name)
    assert torch.equal(fixed[0], position_code((2, 2, 2), 12))
    assert not fixed.requires_grad
    learnt = on_unetr(position_code="learnt").handover().network.get_parameter(name)
    assert not torch.equal(learnt[0], position_code((2, 2, 2), 12))
    assert learnt.requires_grad


def test_a_network_of_neither_size_is_refused_and_all_sizes_are_named():
    with pytest.raises(ConfigError, match=r"\(32, 32, 32\).*\(48, 48, 32\).*\(48, 32, 32\)"):
        on_unetr(local_crop=(48, 32, 32))
    on_unetr(global_crop=(32, 32, 32), local_crop=(32, 32, 16))


def test_crops_that_cubes_do_not_fill_are_refused():
    with pytest.raises(ConfigError, match=r"nearest size that fits is \(8, 8, 4\)"):
        glmae(local_crop=(9, 7, 3))


def test_a_network_without_tokens_is_refused_and_told_which_fit():
    with pytest.raises(ConfigError, match="unetr"):
        GLMAEConfig(**SMALL).build(TinyConfig().build())


def test_a_ratio_that_leaves_nothing_to_see_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"method.local_mask_ratio 0.9"):
        glmae(local_mask_ratio=0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 500}, "multiple of heads"),
        ({"scales": (1.2, 0.8)}, "above the largest"),
        ({"scales": (1.0, 1.5)}, r"global_crop .* does not\s+fit"),
        ({"window": (160, 160, 80), "scales": (0.5, 1.0)}, "does not"),
        ({"head_widths": ()}, "empty"),
        ({"summary": "max"}, "class_token"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        GLMAEConfig(**changes)


def test_it_learns_to_paint_and_to_recognise_volumes():
    method = glmae(momentum=0.98, flip_probability=0.0)
    levels = torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1, 1)
    volumes = levels + torch.linspace(0, 1, 8).expand(2, 1, 16, 12, 8)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for number in range(30):
        step = Step(number, 1000, Draws(0, number))
        method.before_step(step)
        outcome = method(volumes, step)
        optimizer.zero_grad()
        torch.stack(list(outcome.losses.values())).sum().backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
    losses, health = method.eval()(volumes, step_at(1000))
    for name, loss in losses.items():
        assert loss < health[f"{name}_loss_chance"] / 2, name
    assert health["agreement_accuracy"] > 1.8 * health["agreement_chance"]
    # Which of two it is: log 2 nats.
    assert health["teacher_information"] > 0.8 * math.log(2)


def test_what_is_said_of_nothing_is_unsure():
    assert log_shares(torch.zeros(2, 5), 0.1).tolist() == [[pytest.approx(-math.log(5))] * 5] * 2
