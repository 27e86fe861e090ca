import math

import pytest
import torch

from voco.nn.info_nce import info_nce, pair_health, two_views_contrast
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


def test_the_contrast_of_a_single_volume_costs_nothing():
    term = two_views_contrast(torch.randn(1, 2, 4), 0.5, everywhere=False)
    assert term.loss == 0
    assert term.chance == 0
    assert term.health["pair_chance"] == 1


@pytest.mark.parametrize("volumes", [2, 4])
def test_views_that_are_all_alike_cost_the_logarithm_of_the_other_views(volumes):
    term = two_views_contrast(torch.ones(volumes, 2, 4), 0.5, everywhere=False)
    assert term.loss.item() == pytest.approx(math.log(2 * volumes - 1))
    assert term.chance.item() == pytest.approx(math.log(2 * volumes - 1))


def test_the_contrast_of_views_is_the_mean_over_views_of_finding_the_other_among_all():
    rows = torch.randn(3, 2, 5)
    cosines = torch.nn.functional.normalize(rows.flatten(0, 1), dim=1)
    scores = (cosines @ cosines.T / 0.3).exp()
    expected = sum(
        -math.log(scores[at, at ^ 1] / (scores[at].sum() - scores[at, at])) / 6 for at in range(6)
    )
    term = two_views_contrast(rows, 0.3, everywhere=False)
    assert term.loss.item() == pytest.approx(expected, rel=1e-4)
