import pytest
import torch

from voco.nn.terms import Term, weighted


def term(loss: float, chance: float, **health: float) -> Term:
    return Term(
        torch.tensor(loss, requires_grad=True),
        torch.tensor(chance),
        {name: torch.tensor(value) for name, value in health.items()},
    )


def test_losses_and_what_a_blind_network_pays_have_the_same_weights():
    losses, health = weighted(
        {"one": term(1.0, 2.0, accuracy=0.5), "two": term(3.0, 4.0)}, {"one": 2.0, "two": 0.5}
    )
    assert {name: loss.item() for name, loss in losses.items()} == {"one": 2.0, "two": 1.5}
    assert {name: value.item() for name, value in health.items()} == pytest.approx(
        {"accuracy": 0.5, "one_loss_chance": 4.0, "two_loss_chance": 2.0, "loss_chance": 6.0}
    )
    assert losses["one"].requires_grad
    assert not any(value.requires_grad for value in health.values())


def test_a_task_without_weight_is_left_out_with_its_figures():
    terms = {"one": term(1.0, 2.0), "two": term(3.0, 4.0, accuracy=0.1)}
    losses, health = weighted(terms, {"one": 1.0, "two": 0.0})
    assert set(losses) == {"one"}
    assert set(health) == {"one_loss_chance", "loss_chance"}
    assert health["loss_chance"] == 2
