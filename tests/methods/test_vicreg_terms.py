import pytest
import torch

from voco.methods.vicregl import covariance_loss, standard_deviations, variance_loss


def test_constant_features_cost_what_epsilon_leaves():
    assert variance_loss(torch.full((1, 5, 3), 2.0)).item() == pytest.approx(0.99)
    assert covariance_loss(torch.full((1, 5, 3), 2.0)).item() == 0


def test_features_that_vary_enough_cost_nothing():
    rows = 3 * torch.randn(1, 50, 4)
    assert variance_loss(rows) == 0
    expected = (rows[0].var(dim=0) + 1e-4).sqrt()
    torch.testing.assert_close(standard_deviations(rows)[0], expected)


@pytest.mark.parametrize(("count", "features"), [(4, 7), (9, 5), (6, 6)])
def test_covariance_is_that_of_all_pairs_of_features_slot_by_slot(count, features):
    rows = torch.randn(3, count, features, dtype=torch.float64)
    expected = []
    for slot in rows:
        covariances = torch.cov(slot.T)
        outside = covariances - torch.diag(torch.diag(covariances))
        expected.append(outside.square().sum() / features)
    torch.testing.assert_close(covariance_loss(rows), torch.stack(expected).mean())


def test_a_single_row_is_finite_with_a_finite_gradient():
    rows = torch.randn(2, 1, 4, requires_grad=True)
    (variance_loss(rows) + covariance_loss(rows)).backward()
    assert variance_loss(rows).item() == pytest.approx(0.99)
    assert torch.isfinite(rows.grad).all()


def test_half_precision_does_not_overflow():
    rows = (1e3 * torch.randn(1, 8, 16)).half()
    with torch.autocast("cpu", torch.float16):
        assert torch.isfinite(covariance_loss(rows))
