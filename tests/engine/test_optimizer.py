import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning import follower
from torch import nn

from voco.engine.optimizer import OptimizerConfig, build_optimizer, learning_rate, schedule
from voco.engine.settings import TrainingConfig
from voco.errors import ConfigError


def test_warm_up_is_a_line_and_the_rest_half_a_cosine():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, final_share=0.2)
    rates = [learning_rate(config, number, 12) for number in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.6), "half way down: the mean of 1.0 and 0.2"
    assert learning_rate(config, 12, 12) == pytest.approx(0.2)


@given(warmup=st.integers(0, 30), total=st.integers(1, 30), final=st.floats(0, 1))
def test_the_rate_never_leaves_its_bounds(warmup, total, final):
    config = OptimizerConfig(lr=2.0, warmup_steps=warmup, final_share=final)
    rates = [learning_rate(config, number, total) for number in range(total)]
    assert all(0 < rate <= 2.0 for rate in rates)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    task = follower()
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.3), task)
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert {parameter.ndim for parameter in groups[0.3]} == {2}
    assert {parameter.ndim for parameter in groups[0.0]} == {1}
    assert sum(map(len, groups.values())) == 4


def test_a_share_of_the_rate_is_kept_over_the_schedule():
    config = OptimizerConfig(lr=1.0, warmup_steps=2)
    optimizer = build_optimizer(
        config, follower(), share=lambda name: 0.1 if name.startswith("student") else 1.0
    )
    schedule(optimizer, config, 0, 10)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.5]


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="no parameter to train"):
        build_optimizer(OptimizerConfig(), nn.Linear(1, 1).requires_grad_(requires_grad=False))


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size 3 must be a multiple of optimizer\.accumulate"
    ):
        TrainingConfig(batch_size=3, optimizer=OptimizerConfig(accumulate=2))
