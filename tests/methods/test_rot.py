"""ROT: the rotations, and what is shown."""

import math

import pytest
import torch
from tiny import TinyConfig, step_at

from voco.methods.rot import ROT, ROTConfig, rotated, rotations, sphere

sets = pytest.mark.parametrize("count", [4, 10, 24])


def rot(**changes) -> ROT:
    torch.manual_seed(0)
    return ROTConfig(**{"side": 8, "hidden": (16,), "dropout": 0.0, **changes}).build(
        TinyConfig().build()
    )


@sets
def test_rotations_of_an_asymmetric_cube_are_pairwise_different(count):
    cube = torch.arange(27.0).view(1, 3, 3, 3)
    every = torch.stack([rotated(cube, one) for one in rotations(count)])
    assert len(every) == len(every.unique(dim=0)) == count
    assert torch.equal(every[0], cube)


@sets
def test_the_inverse_rotation_restores_the_cube(count):
    cube = torch.rand(2, 4, 4, 4)
    for one in rotations(count):
        assert torch.equal(rotated(rotated(cube, one), one.inverse()), cube)


@pytest.mark.parametrize(("count", "planes"), [(4, [(1, 2)]), (10, [(1, 2), (2, 3), (1, 3)])])
def test_they_are_the_quarter_turns_about_one_axis(count, planes):
    cube = torch.arange(27.0).view(1, 3, 3, 3)
    ours = {tuple(rotated(cube, one).flatten().tolist()) for one in rotations(count)}
    turns = [torch.rot90(cube, quarters, dims) for dims in planes for quarters in range(4)]
    assert ours == {tuple(turn.flatten().tolist()) for turn in turns}


def test_all_24_are_what_two_turns_in_a_row_can_make():
    cube = torch.arange(27.0).view(1, 3, 3, 3)
    ours = {tuple(rotated(cube, one).flatten().tolist()) for one in rotations(24)}
    once = [rotated(cube, one) for one in rotations(10)]
    twice = {tuple(rotated(c, one).flatten().tolist()) for c in once for one in rotations(10)}
    assert ours == twice


@pytest.mark.parametrize("per_volume", ["one", "all"])
def test_the_label_is_the_rotation_shown(per_volume):
    method = rot(per_volume=per_volume)
    volumes = torch.rand(3, 1, 8, 8, 8)
    views = method.views(volumes, step_at())
    assert views.rotated.shape[:2] == views.labels.shape
    for volume, shown, labels in zip(volumes, views.rotated, views.labels, strict=True):
        for cube, label in zip(shown, labels.tolist(), strict=True):
            assert torch.equal(rotated(cube, method.rotations[label].inverse()), volume)


def test_every_rotation_is_drawn():
    labels = rot().views(torch.rand(200, 1, 8, 8, 8), step_at()).labels
    assert labels.unique().tolist() == list(range(10))


def test_a_sphere_looks_the_same_from_all_sides():
    mask = sphere(8)
    for one in rotations(24):
        assert torch.equal(rotated(mask[None].float(), one)[0].bool(), mask)
    share = sphere(64).float().mean().item()
    assert share == pytest.approx(math.pi / 6, rel=0.01)
    shown = rot(mask="sphere").views(torch.ones(1, 1, 8, 8, 8), step_at()).rotated
    assert torch.equal(shown[0, 0, 0].bool(), mask)


def test_a_head_that_knows_nothing_is_at_chance():
    method = rot()
    torch.nn.init.zeros_(method.head.out.weight)
    torch.nn.init.zeros_(method.head.out.bias)
    outcome = method(torch.rand(2, 1, 8, 8, 8), step_at())
    assert outcome.losses["rotation"].item() == pytest.approx(math.log(10), rel=1e-6)
    assert outcome.health["chance"].item() == pytest.approx(0.1)


def test_volumes_whose_ends_differ_are_told_apart():
    method = rot(rotations=4, per_volume="all")
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3)
    volumes = torch.zeros(4, 1, 8, 8, 8)
    volumes[:, :, :, 4:] = 1
    for number in range(60):
        outcome = method(volumes, step_at(number))
        optimizer.zero_grad()
        outcome.losses["rotation"].backward()
        optimizer.step()
    assert outcome.health["accuracy"] > 0.9
