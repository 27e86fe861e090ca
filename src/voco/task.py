"""What the training loop can train: pre-training methods and fine-tuning tasks alike."""

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from voco.draws import Draws

Losses = dict[str, Tensor]
"""Scalars by name, already weighted: the loss of the step is their sum."""

Health = dict[str, Tensor]
"""Detached scalars that tell whether something is being learnt."""


class Step(NamedTuple):
    """All that a task may know about the loop.

    Attributes:
        number: The optimizer step, from 0.
        total: Optimizer steps of the whole run.
        draws: The random numbers of this step.
    """

    number: int
    total: int
    draws: Draws

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return self.number / max(1, self.total)


class Outcome(NamedTuple):
    """What one forward pass gives: losses to minimise, and health figures to log."""

    losses: Losses
    health: Health


Batch = TypeVar("Batch")


class Task(nn.Module, ABC, Generic[Batch]):
    """Something with parameters that turns a batch into named losses.

    Every parameter that requires a gradient must receive one in every step; what a task does not
    train, it freezes (``requires_grad_(False)``).
    """

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Outcome:
        """Losses of a batch, and health figures. Losses are float32 whatever the precision."""

    def before_step(self, step: Step) -> None:
        """Called once before the first forward pass of an optimizer step: teachers follow."""

    def after_backward(self, step: Step) -> None:
        """Called once between the gradients and the optimizer: edit gradients."""

    def after_step(self, step: Step) -> None:
        """Called once after the optimizer: queues, centres."""
