"""AdamW, and a learning rate that warms up and then follows a cosine, in optimizer steps."""

import math
from collections.abc import Callable

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import AdamW

from voco.config import Config
from voco.errors import ConfigError


class OptimizerConfig(Config):
    """AdamW with warm-up and cosine, counted in optimizer steps."""

    lr: PositiveFloat = 1e-4
    """Highest learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; not applied to biases, norms and other vectors."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    amsgrad: bool = False
    """Whether the second moment never falls."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps from 0 to the highest learning rate."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the highest."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; ``None`` does not clip."""
    accumulate: PositiveInt = 1
    """Micro-batches into which the batch of a step is split to save memory."""


def _same_for_all(_name: str) -> float:
    return 1.0


def build_optimizer(
    config: OptimizerConfig,
    task: nn.Module,
    *,
    share: Callable[[str], float] = _same_for_all,
    fused: bool = True,
) -> AdamW:
    """AdamW over all parameters that are trained.

    Args:
        config: Settings.
        task: What is trained; parameters that require no gradient are left alone.
        share: Learning rate of a parameter, by its name, relative to the schedule's.
        fused: One kernel for all; must be off where a gradient scaler is used (fp16).

    Raises:
        ConfigError: If nothing is to be trained.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((share(name), parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise ConfigError(f"{type(task).__name__} has no parameter to train: all are frozen.")
    return AdamW(
        [
            {
                "params": parameters,
                "lr_share": lr_share,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
            }
            for (lr_share, is_matrix), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        amsgrad=config.amsgrad,
        fused=fused,
    )


def learning_rate(config: OptimizerConfig, number: int, total: int) -> float:
    """Learning rate of an optimizer step: a line up to ``lr``, then half a cosine down.

    Args:
        config: Settings.
        number: The step, from 0.
        total: Steps of the run.
    """
    if number < config.warmup_steps:
        return config.lr * (number + 1) / config.warmup_steps
    progress = (number - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.lr * (config.final_share + (1 - config.final_share) * cosine)


def schedule(optimizer: AdamW, config: OptimizerConfig, number: int, total: int) -> float:
    """Set the learning rate of a step in every group, and return it."""
    lr = learning_rate(config, number, total)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
    return lr
