"""The tasks of a method that has several: their losses, and what a blind network would pay."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Term(NamedTuple):
    """One task, before its weight.

    Attributes:
        loss: What the network pays.
        chance: What one pays that knows nothing.
        health: Figures of this task.
    """

    loss: Float[Tensor, ""]
    chance: Float[Tensor, ""]
    health: dict[str, Tensor]


def weighted(
    terms: Mapping[str, Term], weights: Mapping[str, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses with their weights, and health figures; a task of weight 0 is left out.

    Args:
        terms: The tasks by name.
        weights: The weight of each.

    Returns:
        The losses; and the figures of all tasks, with ``NAME_loss_chance`` of each (weighted as its
        loss is) and their sum, ``loss_chance``.
    """
    counted = {name: term for name, term in terms.items() if weights[name]}
    chances = {name: weights[name] * term.chance.detach() for name, term in counted.items()}
    health = {name: value for term in counted.values() for name, value in term.health.items()}
    health |= {f"{name}_loss_chance": chance for name, chance in chances.items()}
    health["loss_chance"] = torch.stack(list(chances.values())).sum()
    return {name: weights[name] * term.loss for name, term in counted.items()}, health
