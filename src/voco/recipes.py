"""Recipes: one root object of settings per command that trains."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from voco.backbones import BackboneSettings
from voco.config import Config
from voco.data.intensity import Intensity, ModalityIntensity
from voco.data.windows import WindowsConfig
from voco.engine.optimizer import OptimizerConfig
from voco.methods import MethodSettings
from voco.tasks import TaskSettings

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
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, warm-up, cosine, clipping, accumulation."""
    intensity: Intensity = ModalityIntensity()
    """How stored voxels become the network's input."""
    log_every: PositiveInt = 10
    """Steps between two lines of the log."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: PositiveInt = 2
    """How many of the last checkpoints stay on disk."""
    validate_every: NonNegativeInt = 0
    """Steps between two looks at held-out cases; 0 looks at the end only."""


class PretrainConfig(TrainingConfig):
    """A recipe for ``voco pretrain``."""

    method: MethodSettings
    """The pre-training method, chosen by ``name``."""
    backbone: BackboneSettings
    """The network, chosen by ``name``."""
    windows: WindowsConfig = WindowsConfig()
    """How windows are cut out of the volumes."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Share of the cases (whole groups, chosen by the seed) that are only looked at: health
    figures on them are logged as ``holdout``. Cases of the splits ``validation`` and ``test``
    are never trained on."""


class FinetuneConfig(TrainingConfig):
    """A recipe for ``voco finetune``."""

    task: TaskSettings
    """Segmentation or classification, chosen by ``name``."""
    backbone: BackboneSettings
    """The network; the weights' own must be the same."""
    labels: int | float | None = None
    """How many labelled training cases to use: a count, or a share below 1; ``None`` uses all."""
    labels_seed: NonNegativeInt | None = None
    """Chooses those cases; ``None`` takes ``seed``. Nested: the first 5 are among the first 10."""
    validation: int | float = 0.2
    """Cases kept for validation, a count or a share, when the store names no such split."""
    split_seed: NonNegativeInt = 0
    """Chooses the validation cases; kept apart from ``seed`` so that all seeds share them."""
    expected_share: float = Field(0.9, ge=0, le=1)
    """Least share of the network's encoder that the weights must fill, else the run stops."""
    encoder_lr_share: float = Field(1.0, ge=0)
    """Learning rate of the encoder relative to the rest; 0 freezes it."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 loads in the training process. Results do not depend on it."""
