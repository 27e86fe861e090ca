import math

import pytest
import torch
from learning import Follower, equal, follower, learn, numbers, state
from torch import nn

from voco.engine.launch import launch
from voco.engine.optimizer import OptimizerConfig
from voco.errors import TrainingError
from voco.task import Outcome, Step


def test_the_same_seed_gives_the_same_weights_dropout_included():
    one, other = follower(), follower()
    learn(one, numbers(0, 4))
    torch.rand(7)  # whatever else draws from torch's generator
    learn(other, numbers(0, 4))
    assert equal(state(one), state(other))


def test_another_seed_gives_other_weights():
    one, other = follower(), follower()
    learn(one, numbers(0, 4))
    learn(other, numbers(0, 4), seed=1)
    assert not torch.equal(one.out.weight, other.out.weight)


def test_a_task_is_called_in_the_documented_order():
    task = follower()
    order = task.calls
    learn(
        task,
        numbers(0, 4),
        steps=range(5, 7),
        config=OptimizerConfig(accumulate=2),
        hooks=(lambda record: order.append(f"hook {record.done} of {record.total}"),),
    )
    assert order[:6] == [
        "before 5",
        "forward 5",
        "forward 5",
        "backward 5",
        "after 5",
        "hook 6 of 7",
    ]
    assert len(order) == 12


class Mean(Follower):
    """No random numbers, so that a batch may be split."""

    def forward(self, batch: torch.Tensor, step: Step) -> Outcome:
        error = self.out(self.student(batch)) - 1
        return Outcome({"square": (error**2).mean()}, {"size": error.detach().abs().mean()})


def test_micro_batches_give_the_gradient_and_the_losses_of_the_whole_batch():
    torch.manual_seed(0)
    whole = Mean(dropout=0)
    torch.manual_seed(0)
    split = Mean(dropout=0)
    parts = [half for batch in numbers(0, 4) for half in batch.chunk(2)]
    records = learn(whole, numbers(0, 4))
    others = learn(split, parts, config=OptimizerConfig(lr=0.01, accumulate=2))
    for one, other in zip(records, others, strict=True):
        assert float(one.health["size"]) == pytest.approx(float(other.health["size"]), rel=1e-5)
    torch.testing.assert_close(whole.out.weight, split.out.weight)


def test_a_step_equals_plain_torch():
    config = OptimizerConfig(lr=0.01, weight_decay=0.1, clip_norm=0.5)
    torch.manual_seed(0)
    ours = Mean(dropout=0)
    torch.manual_seed(0)
    plain = Mean(dropout=0)
    (record,) = learn(ours, numbers(0, 1), steps=range(1), config=config)
    trained = [*plain.student.parameters(), *plain.out.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": 0.1},
            {"params": [one for one in trained if one.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    loss = ((plain.out(plain.student(numbers(0, 1)[0])) - 1) ** 2).mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(trained, 0.5)
    optimizer.step()
    assert record.ledger.settle() == {"square": loss.item(), "gradient norm": norm.item()}
    assert norm > 0.5, "else nothing was clipped"
    for name in ("student", "out"):
        torch.testing.assert_close(
            getattr(ours, name).state_dict(), getattr(plain, name).state_dict()
        )


class Poisoned(Follower):
    """One loss is not finite in one step."""

    def forward(self, batch: torch.Tensor, step: Step) -> Outcome:
        losses, health = super().forward(batch, step)
        if step.number == 2:
            losses["small"] = losses["small"] * math.inf
        return Outcome(losses, health)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named():
    torch.manual_seed(0)
    task = Poisoned()
    done: list[int] = []
    with pytest.raises(TrainingError, match="step 3: the loss 'small' is inf"):
        learn(task, numbers(0, 4), hooks=(lambda record: done.append(record.done),))
    assert done == [1, 2], "no hook saw the broken step"
    assert all(value.isfinite().all() for value in state(task).values())


class Steep(Follower):
    """Finite losses with a gradient that is not: the root of zero."""

    def forward(self, batch: torch.Tensor, step: Step) -> Outcome:
        losses, health = super().forward(batch, step)
        losses["root"] = (0 * self.out.weight).sum().sqrt()
        return Outcome(losses, health)


def test_a_gradient_that_is_not_finite_stops_the_run():
    with pytest.raises(TrainingError, match="step 1: the gradient norm is nan"):
        learn(Steep(), numbers(0, 4))


def test_mixed_precision_leaves_the_batch_in_float32():
    task = follower()
    records = learn(task, numbers(0, 4), fabric=launch("bf16-mixed"))
    assert set(task.seen) == {torch.float32}
    plain = learn(follower(), numbers(0, 4))
    mixed, exact = (made[0].ledger.settle()["near"] for made in (records, plain))
    assert mixed == pytest.approx(exact, rel=0.05)
    assert mixed != exact


def test_fp16_scales_gradients_and_logs_their_true_norm():
    fabric = launch("fp16-mixed")
    precision = fabric.strategy.precision
    precision.load_state_dict({**precision.scaler.state_dict(), "scale": 16.0})
    records = learn(follower(), numbers(0, 4), fabric=fabric)
    plain = learn(follower(), numbers(0, 4))
    norms = [made[-1].ledger.settle()["gradient norm"] for made in (records, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    assert precision.state_dict()["_growth_tracker"] == 4, "no step was skipped"


def test_fp16_skips_steps_whose_gradients_overflow():
    fabric = launch("fp16-mixed")
    precision = fabric.strategy.precision
    precision.load_state_dict({**precision.scaler.state_dict(), "scale": 2.0**40})
    task = follower()
    before = task.out.weight.clone()
    learn(task, numbers(0, 1), steps=range(1), fabric=fabric)
    assert torch.equal(task.out.weight, before)
    assert precision.state_dict()["scale"] == 2.0**39


def test_a_frozen_parameter_stays_as_it_is():
    task = follower()
    before = task.frozen.weight.clone()
    learn(task, numbers(0, 4))
    assert torch.equal(task.frozen.weight, before)
