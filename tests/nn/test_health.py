import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.geometry import grid_boxes, overlap, random_boxes
from voco.nn.health import (
    effective_rank,
    masked_mean,
    position_accuracy,
    position_chance,
    share_health,
)


def test_the_effective_rank_counts_directions():
    assert effective_rank(torch.eye(5, 9)).item() == pytest.approx(5, rel=1e-5)
    assert effective_rank(torch.ones(5, 9)).item() == pytest.approx(1, abs=1e-3)
    scaled = torch.eye(5, 9) * torch.tensor([1.0, 10, 100, 1e3, 1e4])[:, None]
    assert effective_rank(scaled).item() == pytest.approx(5, rel=1e-5)


@pytest.mark.parametrize("rows", [torch.zeros(4, 3), torch.full((4, 3), torch.nan)])
def test_the_effective_rank_of_nothing_is_one(rows):
    assert effective_rank(rows).item() == pytest.approx(1)


def test_the_effective_rank_is_found_in_low_precision_too():
    assert effective_rank(torch.eye(4).bfloat16()).item() == pytest.approx(4, rel=1e-5)


def test_the_mean_of_no_values_is_zero():
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == 0
    assert masked_mean(torch.tensor([1.0, 2, 6]), torch.tensor([True, False, True])) == 3.5


def test_naming_the_base_with_the_largest_share_is_right():
    true = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
    assert position_accuracy(true, true) == 1
    assert position_accuracy(1 - true, true) == 0
    half = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])
    assert position_accuracy(half, true) == 0.5


def test_any_of_the_bases_with_the_largest_share_is_right():
    true = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    assert position_accuracy(torch.tensor([[0.0, 0.0, 0.1, 0.9]]), true) == 1
    assert position_accuracy(torch.tensor([[0.0, 0.0, 0.9, 0.1]]), true) == 1


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_predicting_the_same_for_all_bases_is_a_blind_guess(value):
    true = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5]])
    guess = torch.full_like(true, value)
    assert position_accuracy(guess, true).item() == pytest.approx((1 / 4 + 2 / 4) / 2)


@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
)
def test_the_chance_is_that_of_the_best_constant_answer(cells, size, other):
    bases = grid_boxes(cells, size)
    within = tuple(n * side for n, side in zip(cells, size, strict=True))
    query = tuple(min(a, b) for a, b in zip(other, within, strict=True))
    room = [a - b + 1 for a, b in zip(within, query, strict=True)]
    starts = torch.cartesian_prod(*[torch.arange(count) for count in room]).view(-1, 3)
    shares = overlap(torch.stack([starts, starts + torch.tensor(query)], dim=1), bases)
    right = shares >= shares.amax(dim=1, keepdim=True) - 1e-6
    expected = right.float().mean(dim=0).max()
    torch.testing.assert_close(position_chance(bases, query, within), expected)


def test_inner_bases_of_the_papers_grid_are_right_in_a_ninth_of_all_cases():
    bases = grid_boxes((4, 4, 1), (64, 64, 64))
    chance = position_chance(bases, (64, 64, 64), (256, 256, 64))
    # 193 starts along an axis, of which 33 to 97 are nearest to base 1.
    assert chance.item() == pytest.approx((65 / 193) ** 2)


def test_health_tells_a_perfect_from_a_dead_prediction():
    bases = grid_boxes((4, 4, 1), (8, 8, 8))
    boxes = random_boxes(50, (8, 8, 8), (32, 32, 8), torch.Generator().manual_seed(0))
    true = overlap(boxes, bases)
    perfect, dead = share_health(true, true), share_health(torch.zeros_like(true), true)
    assert perfect["position_accuracy"] == 1
    assert perfect["dead_share"] == 0
    assert perfect["similarity_outside"] == 0
    assert perfect["similarity_inside"] > 0.2
    assert dead["dead_share"] == 1
    assert dead["similarity_inside"] == 0
    assert dead["position_accuracy"] < 0.2
