"""The one training loop, for pre-training and fine-tuning alike.

An optimizer step depends on the state before it, the seed and its own number, and on nothing
else: its random numbers are drawn anew from ``(seed, step)``. That is what makes a resumed run
end with the same bits as one that was never stopped.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW

from voco.draws import Draws, mixed_seed
from voco.engine.optimizer import OptimizerConfig, schedule
from voco.errors import TrainingError
from voco.progress import track
from voco.task import Health, Losses, Outcome, Step, Task

NORM = "gradient norm"
"""Name of the gradient's norm beside the losses."""


class Ledger:
    """Losses and gradient norms of the steps since the last look, still on the device.

    Args:
        fabric: Averages over the processes.
        scaled: Whether a gradient scaler is at work: it skips steps whose gradients overflow, so
            a norm that is not finite is no error then.
    """

    def __init__(self, fabric: Fabric, *, scaled: bool = False) -> None:
        self._fabric, self._scaled = fabric, scaled
        self._open: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._last: dict[str, float] = {}

    def add(self, number: int, losses: Losses, norm: Tensor) -> None:
        """Note what a step gave; nothing is waited for."""
        row = torch.stack([*(loss.float() for loss in losses.values()), norm.float()])
        self._open.append((number, (*losses, NORM), row))

    def settle(self) -> dict[str, float]:
        """Losses and norm of the last step, averaged over processes, after checking all steps.

        All processes must call this at the same steps.

        Raises:
            TrainingError: Naming the first step and loss that is not a finite number.
        """
        if self._open:
            values = iter(averaged(self._fabric, torch.cat([row for _, _, row in self._open])))
            for number, names, _ in self._open:
                self._last = dict(zip(names, values, strict=False))
                self._check(number)
            self._open.clear()
        return self._last

    def _check(self, number: int) -> None:
        for name, value in self._last.items():
            if math.isfinite(value) or (name == NORM and self._scaled):
                continue
            what = "the gradient norm" if name == NORM else f"the loss '{name}'"
            raise TrainingError(
                f"step {number + 1}: {what} is {value}. Nothing was written after it. A lower "
                "optimizer.lr, a longer optimizer.warmup_steps or precision float32 usually "
                "helps; 'voco verify' checks the store."
            )


def averaged(fabric: Fabric, values: Float[Tensor, "_"]) -> list[float]:
    """Numbers of a tensor, averaged over the processes."""
    return cast("Tensor", fabric.all_reduce(values)).tolist()


@dataclass
class Record:
    """What one optimizer step gave, for the hooks.

    Attributes:
        done: Steps of the run that are done, this one included.
        total: Steps of the whole run.
        health: Health figures, averaged over the micro-batches of this process.
        lr: Learning rate of the step.
        ledger: :meth:`Ledger.settle` gives the losses as numbers; whoever writes something
            calls it first, so that nothing broken is written.
        waited_seconds: How long the step waited until its micro-batches were on the device.
        figures: What hooks add, by section (``holdout``): it goes into the log line of the step.
    """

    done: int
    total: int
    health: Health
    lr: float
    ledger: Ledger
    waited_seconds: float
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the last, happens now."""
        return self.done == self.total or (every > 0 and self.done % every == 0)


Hook = Callable[[Record], None]
"""Called after each optimizer step, in every process."""


def fit(
    fabric: Fabric,
    task: Task[Any],
    optimizer: AdamW,
    batches: Iterable[Any],
    config: OptimizerConfig,
    *,
    steps: range,
    seed: int,
    what: str = "train",
    hooks: Sequence[Hook] = (),
) -> None:
    """Train.

    Args:
        fabric: Launched; its precision and strategy are used.
        task: What to train, on the device already. It is trained in place.
        optimizer: Over the task's parameters.
        batches: Micro-batches on the device, ``config.accumulate`` for each step, from the first.
        config: Schedule, clipping, accumulation.
        steps: Numbers of the optimizer steps; ``steps.stop`` is the length of the whole run.
        seed: The run's seed.
        what: A word for the progress line.
        hooks: Called in this order after each step.

    Raises:
        TrainingError: If a loss or a gradient is not finite.
    """
    network, stepper = fabric.setup(task.train(), optimizer)
    precision, stream = fabric.strategy.precision, iter(batches)
    ledger = Ledger(fabric, scaled=getattr(precision, "scaler", None) is not None)
    for number in _shown(fabric, steps, what):
        lr = schedule(optimizer, config, number, steps.stop)
        # What is drawn from torch's own generator (dropout) depends on the step alone, too.
        torch.manual_seed(mixed_seed(seed, number, fabric.global_rank))
        parts = _steps(fabric, config, number, steps.stop, seed)
        task.before_step(parts[0])
        outcomes: list[Outcome] = []
        waited = 0.0
        for part in parts:
            batch, seconds = _waited_for(stream)
            waited += seconds
            with fabric.no_backward_sync(network, enabled=part is not parts[-1]):
                outcome = network(batch, part)
                loss = torch.stack(list(outcome.losses.values())).sum()
                fabric.backward(loss / config.accumulate)
            outcomes.append(outcome)
        precision.unscale_gradients(optimizer)
        task.after_backward(parts[0])
        norm = nn.utils.clip_grad_norm_(task.parameters(), config.clip_norm or math.inf)
        ledger.add(number, _mean([outcome.losses for outcome in outcomes]), norm)
        if fabric.device.type == "cpu":
            ledger.settle()
        stepper.step()
        stepper.zero_grad()
        task.after_step(parts[0])
        health = _mean([outcome.health for outcome in outcomes])
        record = Record(number + 1, steps.stop, health, lr, ledger, waited)
        for hook in hooks:
            hook(record)
    ledger.settle()


def _shown(fabric: Fabric, steps: range, what: str) -> Iterable[int]:
    if not fabric.is_global_zero:
        return steps
    return track(steps, what, total=steps.stop, start=steps.start)


def _waited_for(stream: Iterator[Any]) -> tuple[Any, float]:
    """The next micro-batch, and how long it took to come."""
    began = time.perf_counter()
    batch = next(stream)
    return batch, time.perf_counter() - began


def _steps(
    fabric: Fabric, config: OptimizerConfig, number: int, total: int, seed: int
) -> list[Step]:
    place = {"rank": fabric.global_rank, "world": fabric.world_size}
    return [
        Step(number, total, Draws(seed, number, micro=micro, **place))
        for micro in range(config.accumulate)
    ]


def _mean(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over micro-batches, name by name."""
    return {
        name: torch.stack([part[name].detach() for part in parts]).mean(dim=0) for name in parts[0]
    }
