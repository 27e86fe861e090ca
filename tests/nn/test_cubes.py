import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.errors import ConfigError
from voco.nn.cubes import (
    blind_painting,
    from_cubes,
    hidden_targets,
    painted_views,
    painting_loss,
    seen_count,
    standardised,
    to_cubes,
)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_a_volume_put_together_from_its_cubes_is_the_volume(grid, cube):
    x, y, z = (i * s for i, s in zip(grid, cube, strict=True))
    volumes = torch.rand(2, 2, x, y, z)
    assert torch.equal(from_cubes(to_cubes(volumes, cube), grid, cube), volumes)


def test_a_standardised_cube_has_zero_mean_and_unit_variance_and_a_uniform_one_is_zero():
    cubes = torch.rand(2, 3, 64) * 7 - 2
    cubes[0, 0] = 4.0
    found = standardised(cubes)
    assert torch.equal(found[0, 0], torch.zeros(64))
    torch.testing.assert_close(found.mean(dim=2), torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert found[1].square().mean(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-3)


def test_what_is_to_be_painted_are_the_last_cubes_of_the_order():
    cubes = (
        torch.arange(5.0)[None, :, None].expand(2, 5, 3) + torch.tensor([0.0, 10])[:, None, None]
    )
    order = torch.tensor([[4, 0, 2, 1, 3], [0, 1, 2, 3, 4]])
    raw = hidden_targets(cubes, order, 2, "raw")
    assert raw[:, :, 0].tolist() == [[2, 1, 3], [12, 13, 14]]
    assert torch.equal(hidden_targets(cubes, order, 2, "standardised"), torch.zeros(2, 3, 3))


def test_a_blind_guess_is_the_mean_of_what_is_seen_or_of_standardised_targets():
    cubes = torch.arange(5.0)[None, :, None].expand(1, 5, 3)
    order = torch.tensor([[4, 0, 2, 1, 3]])
    assert torch.equal(blind_painting(cubes, order, 2, "raw"), torch.full((1, 3, 3), 2.0))
    assert torch.equal(blind_painting(cubes, order, 2, "standardised"), torch.zeros(1, 3, 3))


@pytest.mark.parametrize("targets", ["standardised", "raw"])
def test_a_perfect_painting_gives_the_volume_back(targets):
    volumes = torch.rand(2, 1, 8, 4, 4)
    cubes = to_cubes(volumes, (4, 2, 2))
    order = torch.stack([torch.randperm(8), torch.randperm(8)])
    perfect = hidden_targets(cubes, order, 3, targets)
    views = painted_views(volumes, perfect, order, cube=(4, 2, 2), targets=targets)
    assert torch.equal(views["volume"], volumes)
    torch.testing.assert_close(views["painted"], volumes, atol=0.05, rtol=0)
    hidden = to_cubes(views["seen"], (4, 2, 2)).eq(0).all(dim=2)
    assert hidden.nonzero()[:, 1].view(2, 5).tolist() == order[:, 3:].sort().values.tolist()


@pytest.mark.parametrize("error", ["squared", "absolute"])
def test_the_loss_of_a_painting_is_finite_whatever_was_painted(error):
    wild = torch.tensor([[[3e38, -3e38, 0.0]]], requires_grad=True)
    loss = painting_loss(wild, torch.ones(1, 1, 3), error)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(wild.grad).all()


def test_a_ratio_that_leaves_nothing_to_hide_is_refused_by_its_own_name():
    assert seen_count((2, 2, 2), 0.5, setting="mask_ratio", size="crop") == 4
    for ratio in (0.0, 0.9):
        with pytest.raises(ConfigError, match=r"method.local_mask_ratio .* larger method.local"):
            seen_count((2, 2, 2), ratio, setting="local_mask_ratio", size="local_crop")
