"""Settings of every run of the training loop."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from voco.config import Config
from voco.data.intensity import Intensity, ModalityIntensity
from voco.engine.optimizer import OptimizerConfig
from voco.engine.trackers import TrackerName

Precision = Literal["float32", "bf16-mixed", "fp16-mixed"]
"""Precision of the network; losses are float32 always."""


class TrainingConfig(Config):
    """What every run of the training loop needs."""

    steps: PositiveInt = 1000
    """Optimizer steps."""
    seed: NonNegativeInt = 0
    """Same seed, same result."""
    batch_size: PositiveInt = 1
    """Volumes per optimizer step and process."""
    precision: Precision = "float32"
    """Precision of the network; losses are float32 always."""
    compiled: bool = False
    """Whether networks go through ``torch.compile`` in training: meant for GPUs, where what waits
    for memory becomes fewer and larger operators. The first step takes minutes longer. Values
    differ by rounding, which grows from step to step, so a run begun in one way is not gone on with
    in the other. On a CPU it is no faster, and needs a C++ compiler."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, warm-up, cosine, clipping, accumulation."""
    intensity: Intensity = ModalityIntensity()
    """How stored voxels become the network's input."""
    log_every: PositiveInt = 10
    """Steps between two lines of the log; the first and the last step always have one."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: PositiveInt = 2
    """How many of the last checkpoints stay on disk."""
    validate_every: NonNegativeInt = 0
    """Steps between two looks at held-out cases; 0 looks at the end only."""

    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """What shows the figures of the log while the run trains; none if empty. mlflow and wandb are
    extras: pip install 'voco[mlflow]', 'voco[wandb]'. They write into the run folder unless
    their own variables (MLFLOW_TRACKING_URI, WANDB_MODE=online) say otherwise."""

    @model_validator(mode="after")
    def _batch_can_be_split(self) -> "TrainingConfig":
        if self.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of optimizer.accumulate "
                f"{self.optimizer.accumulate}, the number of micro-batches that it is split into"
            )
        return self
