import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.data.patches import Patches
from voco.errors import ConfigError
from voco.nn.dice import soft_dice
from voco.tasks.segmentation import SegmentationConfig, augment, hard_dice

STILL = SegmentationConfig(
    roi=(8, 8, 8), flip_probability=0, scale_probability=0, shift_probability=0
)


def patches(seed=0, count=2, number=3, roi=(8, 8, 8), classes=3):
    rng = torch.Generator().manual_seed(seed)
    return Patches(
        torch.rand(count, number, 1, *roi, generator=rng),
        torch.randint(0, classes, (count, number, *roi), generator=rng),
    )


def one_hot(labels, classes=3):
    return torch.nn.functional.one_hot(labels, classes).permute(0, 4, 1, 2, 3).float()


def dice(probabilities, labels, over="crop"):
    return soft_dice(probabilities, labels, over=over, smooth=1e-5)


def test_a_perfect_prediction_has_dice_1():
    labels = patches().labels[0]
    assert torch.allclose(dice(one_hot(labels), labels), torch.ones(3, 3))


def test_dice_of_a_half_found_structure():
    labels = torch.zeros(1, 4, 1, 1, dtype=torch.int64)
    labels[0, :2] = 1
    found = torch.zeros(1, 4, 1, 1, dtype=torch.int64)
    found[0, 1:3] = 1
    assert dice(one_hot(found, 2), labels)[0, 1] == pytest.approx(2 * 1 / (2 + 2), abs=1e-4)


def test_over_the_batch_a_structure_missing_in_one_crop_does_not_count_as_lost():
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    labels[0, :2] = 1
    unsure = one_hot(labels, 2) * 0.98 + 0.01
    alone, together = dice(unsure, labels), dice(unsure, labels, over="batch")
    assert alone[1, 1] < 0.01
    assert together.shape == (1, 2)
    assert together[0, 1] > 0.9


def test_losses_of_an_undecided_network():
    task = STILL.build(TinyConfig().build(3))
    with torch.no_grad():
        for parameter in task.backbone.network.out.parameters():
            parameter.zero_()
    batch = patches()
    losses = task(batch, step_at()).losses
    assert losses["ce"].item() == pytest.approx(math.log(3), abs=1e-5)
    truth = one_hot(batch.labels.flatten(0, 1)).sum((2, 3, 4))[:, 1:]
    expected = 1 - (2 * truth / 3 / (512 / 3 + truth)).mean()
    assert losses["dice"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_background_counts_in_dice_only_when_asked_for():
    labels = patches(classes=2).labels.flatten(0, 1)
    config = STILL.model_copy(update={"dice_background": True})
    without, included = (each.build(TinyConfig().build(3)) for each in (STILL, config))
    included.load_state_dict(without.state_dict())
    batch = Patches(torch.rand(2, 3, 1, 8, 8, 8), labels.unflatten(0, (2, 3)))
    values = [task(batch, step_at()).losses["dice"] for task in (without, included)]
    assert values[0] != values[1]


@given(st.sampled_from([1e30, -1e30, 1e4, 0.0]))
def test_losses_are_finite_float32_scalars_whatever_the_logits(size):
    logits = torch.randn(2, 3, 4, 4, 4) * size
    logits.requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 4, 4))
    losses = STILL.build(TinyConfig().build(3))._losses(logits, labels)
    total = sum(losses.values())
    total.backward()
    assert total.dtype == torch.float32
    assert bool(torch.isfinite(total))
    assert bool(torch.isfinite(logits.grad).all())


def test_losses_are_float32_under_autocast():
    task = STILL.build(TinyConfig().build(3))
    with torch.autocast("cpu", torch.bfloat16):
        losses = task(patches(), step_at()).losses
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_every_trained_parameter_gets_a_gradient():
    task = STILL.build(TinyConfig().build(3))
    sum(task(patches(), step_at()).losses.values()).backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


@given(st.integers(0, 50))
def test_labels_move_with_their_crops(number):
    batch = patches(roi=(6, 6, 4))
    marked = Patches(batch.labels[:, :, None].float(), batch.labels)
    config = SegmentationConfig(
        roi=(6, 6, 4),
        flip_axes=("x", "y", "z"),
        flip_probability=0.5,
        turn_probability=0.5,
        scale_probability=0,
        shift_probability=0,
    )
    crops, labels = augment(marked, config, step_at(number).draws)
    assert torch.equal(crops[:, 0], labels.float())


def test_left_and_right_are_not_mirrored_by_default():
    roi = (8, 4, 4)
    crops = torch.arange(8.0).view(1, 1, 1, 8, 1, 1).expand(4, 2, 1, *roi)
    batch = Patches(crops, torch.zeros(4, 2, *roi, dtype=torch.int64))
    config = SegmentationConfig(
        roi=roi, flip_probability=1, scale_probability=0, shift_probability=0
    )
    assert torch.equal(augment(batch, config, step_at().draws)[0], crops.flatten(0, 1))


def test_the_same_step_gives_the_same_augmentation():
    config = SegmentationConfig(roi=(8, 8, 8), flip_probability=0.5, scale_probability=1)
    first, again, other = (
        augment(patches(), config, step_at(number).draws)[0] for number in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_processes_augment_as_one_would():
    config = SegmentationConfig(roi=(8, 8, 8), flip_probability=0.5)
    batch = patches()
    whole = augment(batch, config, step_at(4).draws)[0]
    halves = [
        augment(Patches(*(part[rank : rank + 1] for part in batch)), config, draws.draws)[0]
        for rank in range(2)
        for draws in [step_at(4, rank=rank, world=2)]
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_hard_dice_averages_over_the_structures_that_are_there():
    labels = torch.tensor([0, 1, 1, 0]).view(1, 4, 1, 1)
    logits = one_hot(torch.tensor([0, 1, 0, 2]).view(1, 4, 1, 1))
    assert hard_dice(logits, labels).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "wrong", [{"dice_weight": 0, "ce_weight": 0}, {"flip_axes": ("x", "x")}, {"overlap": 1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        SegmentationConfig(**wrong)


def test_a_crop_that_the_network_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="multiples of 4"):
        SegmentationConfig(roi=(10, 8, 8)).build(TinyConfig().build(2))
