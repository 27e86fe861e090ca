import math

import pytest
import torch

from voco.nn.info_nce import info_nce, pair_health
from voco.nn.unit import unit


def test_equal_embeddings_give_the_logarithm_of_the_number_of_candidates():
    rows = torch.ones(6, 4)
    positives = torch.tensor([3, 4, 5, 0, 1, 2])
    loss = info_nce(rows, rows, positives, 0.1, torch.eye(6).bool())
    assert loss.item() == pytest.approx(math.log(5))
    assert info_nce(rows, rows, positives, 0.1).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equal_pairs_that_are_orthogonal_to_all_others_have_a_closed_form(temperature):
    rows = torch.eye(4).repeat(2, 1) * 3
    positives = torch.arange(8).roll(4)
    loss = info_nce(rows, rows, positives, temperature, torch.eye(8).bool())
    expected = math.log(math.exp(1 / temperature) + 6) - 1 / temperature
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_leaving_oneself_out_matters_most_when_the_temperature_is_low():
    rows = torch.randn(6, 4)
    positives, oneself = torch.arange(6).roll(3), torch.eye(6).bool()
    gaps = [
        info_nce(rows, rows, positives, t) - info_nce(rows, rows, positives, t, oneself)
        for t in (0.1, 10.0)
    ]
    assert gaps[0] > 1
    assert 0 < gaps[1] < 0.3


def test_excluding_is_the_same_as_not_having():
    rows, others = torch.randn(3, 4), torch.randn(5, 4)
    positives = torch.tensor([0, 1, 2])
    excluded = torch.tensor([[False, False, False, True, True]] * 3)
    torch.testing.assert_close(
        info_nce(rows, others, positives, 0.2, excluded), info_nce(rows, others[:3], positives, 0.2)
    )


def test_low_precision_and_extreme_embeddings_are_finite():
    rows = torch.cat([torch.zeros(1, 4), torch.full((1, 4), 1e30), torch.randn(2, 4)]).bfloat16()
    rows.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(rows, rows, torch.arange(4).roll(2), 0.1, torch.eye(4).bool())
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()


def test_pairs_that_are_found_are_told_from_those_that_are_not():
    rows = torch.eye(4)
    found = pair_health(rows, rows, torch.arange(4))
    missed = pair_health(rows, rows, torch.arange(4).roll(1))
    assert found["pair_accuracy"] == 1
    assert missed["pair_accuracy"] == 0
    assert found["pair_chance"] == missed["pair_chance"] == 0.25
    assert found["similarity_pairs"] == 1
    assert found["similarity_others"] == 0
    # All alike: as good as guessing.
    alike = pair_health(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4))
    assert alike["pair_accuracy"] == 0.25


def test_directions_have_unit_length_and_zero_has_none():
    rows = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])
    lengths = unit(rows).norm(dim=1)
    torch.testing.assert_close(lengths[[0, 2, 3]], torch.tensor([1.0, 1.0, 0.0]))
    assert lengths[1] < 1e-6
