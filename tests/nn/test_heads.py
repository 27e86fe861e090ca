import pytest
import torch
from torch import nn

from voco.nn.heads import BatchStandardisation, projector


def test_standardisation_is_batch_norm_without_weights_or_memory():
    rows = torch.randn(7, 5, dtype=torch.float64).requires_grad_()
    weights = torch.randn(7, 5, dtype=torch.float64)
    norm = nn.BatchNorm1d(5, affine=False, track_running_stats=False, dtype=torch.float64)
    ours, theirs = BatchStandardisation()(rows), norm(rows)
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), rows)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), rows)
    torch.testing.assert_close(gradient, expected)


def test_evaluation_uses_the_statistics_of_its_batch_too():
    rows = torch.randn(6, 4)
    norm = BatchStandardisation()
    assert torch.equal(norm.eval()(rows), norm.train()(rows))


def test_a_single_row_becomes_zeros_with_a_finite_gradient():
    row = torch.randn(1, 4, requires_grad=True)
    out = BatchStandardisation()(row)
    out.sum().backward()
    assert torch.equal(out.detach(), torch.zeros(1, 4))
    assert torch.isfinite(row.grad).all()


def test_low_precision_rows_are_standardised_in_float32():
    # 300 + noise of 0.1 has no variance left in bfloat16 arithmetic.
    rows = (100 + torch.randn(64, 3)).bfloat16()
    expected = BatchStandardisation()(rows.float())
    ours = BatchStandardisation()(rows)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=0.02, rtol=0.02)


def test_a_projector_ends_in_a_bare_linear_layer():
    head = projector((6, 5, 4, 3))
    kinds = [type(layer).__name__ for layer in head]
    hidden = ["Linear", "BatchStandardisation", "ReLU"]
    assert kinds == [*hidden, *hidden, "Linear"]
    assert head(torch.randn(8, 6)).shape == (8, 3)


def test_a_bias_in_front_of_a_standardisation_would_do_nothing():
    rows, bias = torch.randn(8, 4), torch.randn(4)
    norm = BatchStandardisation()
    torch.testing.assert_close(norm(rows + bias), norm(rows), atol=1e-5, rtol=0)
    assert [
        layer.bias is None for layer in projector((6, 5, 4, 3)) if isinstance(layer, nn.Linear)
    ] == [
        True,
        True,
        False,
    ]


def test_weights_can_start_with_a_given_spread():
    first, last = projector((300, 300, 300), std=0.02)[::3]
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert last.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(last.bias, torch.zeros(300))


def test_a_standardisation_that_learns_is_batch_norm_with_weights():
    rows = torch.randn(7, 5)
    ours, theirs = BatchStandardisation(features=5), nn.BatchNorm1d(5)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.data = other.data = torch.randn(5)
    torch.testing.assert_close(ours(rows), theirs(rows))


@pytest.mark.parametrize(
    ("ending", "last", "bias"),
    [
        ("bias", "Linear", True),
        ("bare", "Linear", False),
        ("standardised", "BatchStandardisation", False),
    ],
)
def test_a_head_ends_as_asked(ending, last, bias):
    head = projector((6, 5, 3), ending=ending)
    assert type(head[-1]).__name__ == last
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert (linear[-1].bias is not None) == bias
    if ending == "standardised":
        torch.testing.assert_close(head(torch.randn(8, 6)).mean(dim=0), torch.zeros(3))
