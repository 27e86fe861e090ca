"""A task that has everything a task can have, and takes milliseconds."""

import torch
from lightning_fabric import Fabric
from torch import nn

from voco.engine.launch import launch
from voco.engine.loop import Hook, Record, fit
from voco.engine.optimizer import OptimizerConfig, build_optimizer
from voco.task import Outcome, Step, Task


class Follower(Task[torch.Tensor]):
    """A student with dropout, a teacher that follows, a buffer, a frozen layer."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(8, 1)
        self.frozen = nn.Linear(8, 1).requires_grad_(requires_grad=False)
        self.teacher = nn.Linear(8, 1).requires_grad_(requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.calls: list[str] = []
        self.seen: list[torch.dtype] = []

    def forward(self, batch: torch.Tensor, step: Step) -> Outcome:
        self.calls.append(f"forward {step.number}")
        self.seen.append(batch.dtype)
        noise = step.draws.normal(len(batch), 4).to(batch.device)
        features = self.student(batch + 0.1 * noise)
        made = self.out(features).float()
        target = self.teacher(features.float().detach()) + 1
        losses = {"near": ((made - target) ** 2).mean(), "small": 0.1 * made.abs().mean()}
        return Outcome(losses, {"spread": made.detach().std()})

    def before_step(self, step: Step) -> None:
        self.calls.append(f"before {step.number}")

    def after_backward(self, step: Step) -> None:
        self.calls.append(f"backward {step.number}")

    def after_step(self, step: Step) -> None:
        self.calls.append(f"after {step.number}")
        self.count += 1
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.out.parameters(), strict=True):
                old.lerp_(new, 0.1)


def follower(dropout: float = 0.2) -> Follower:
    torch.manual_seed(0)
    return Follower(dropout)


def numbers(start: int, stop: int, count: int = 4) -> list[torch.Tensor]:
    """Batches, a function of their number."""
    return [
        torch.randn(count, 4, generator=torch.Generator().manual_seed(number))
        for number in range(start, stop)
    ]


def learn(
    task: Task,
    batches: list[torch.Tensor],
    *,
    steps: range = range(4),
    config: OptimizerConfig | None = None,
    fabric: Fabric | None = None,
    hooks: tuple[Hook, ...] = (),
    seed: int = 0,
) -> list[Record]:
    """Train, and give the records of all steps."""
    config = config or OptimizerConfig(lr=0.01)
    records: list[Record] = []
    fabric = fabric or launch()
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    optimizer = build_optimizer(config, task, fused=not scaled)
    hooks = (*hooks, records.append)
    fit(fabric, task, optimizer, batches, config, steps=steps, seed=seed, hooks=hooks)
    return records


def state(task: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
