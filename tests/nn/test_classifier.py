"""The head that tells classes apart."""

import math

import pytest
import torch

from voco.draws import Draws
from voco.nn.classifier import Classifier, answer_health, classification_loss


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes():
    loss = classification_loss(torch.zeros(7, 100), torch.arange(7))
    assert float(loss) == pytest.approx(math.log(100), rel=1e-6)


def test_logits_of_low_precision_have_a_loss_in_float32():
    logits = torch.randn(4, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = classification_loss(logits, torch.zeros(4, dtype=torch.int64))
    assert loss.dtype == torch.float32
    expected = -logits.float().log_softmax(dim=1)[:, 0].mean()
    torch.testing.assert_close(loss, expected)


def test_health_counts_right_answers():
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    health = answer_health(logits, torch.tensor([0, 3]))
    assert health["accuracy"] == 0.5
    assert health["chance"] == 0.25
    assert float(health["loss_chance"]) == pytest.approx(math.log(4))


def test_dropout_depends_on_the_draws_alone_and_ends_with_training():
    head = Classifier((6, 8, 3), dropout=0.5)
    rows = torch.randn(4, 6)
    first = head(rows, Draws(0, 0))
    assert torch.equal(first, head(rows, Draws(0, 0)))
    assert not torch.equal(first, head(rows, Draws(0, 1)))
    head.eval()
    assert torch.equal(head(rows, Draws(0, 0)), head(rows, Draws(0, 1)))


def test_dropout_keeps_the_mean():
    head = Classifier((1, 2000, 1), dropout=0.25)
    torch.nn.init.constant_(head.out.weight, 1 / 2000)
    torch.nn.init.zeros_(head.out.bias)
    torch.nn.init.ones_(head.hidden[0][2].bias)
    kept = head(torch.ones(20, 1), Draws(0, 0)).mean()
    expected = head.eval()(torch.ones(20, 1), Draws(0, 0)).mean()
    torch.testing.assert_close(kept, expected, atol=0.05, rtol=0)


def test_without_hidden_layers_it_is_linear():
    head = Classifier((3, 2), dropout=0.5)
    rows = torch.randn(4, 3)
    assert torch.equal(head(rows, Draws(0, 0)), head.out(rows))
