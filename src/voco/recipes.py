"""Recipes: one root object of settings per command that trains."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from voco.backbones import BackboneSettings
from voco.data.windows import WindowsConfig
from voco.engine.settings import TrainingConfig
from voco.methods import MethodSettings
from voco.tasks import TaskSettings


class PretrainConfig(TrainingConfig):
    """A recipe for ``voco pretrain``."""

    method: MethodSettings
    """The pre-training method, chosen by ``name``."""
    backbone: BackboneSettings
    """The network, chosen by ``name``."""
    windows: WindowsConfig = WindowsConfig()
    """How windows are cut out of the volumes."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
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
    expected_share: float = Field(default=0.9, ge=0, le=1)
    """Least share of the network's encoder that the weights must fill, else the run stops. Of
    weights that trained a transformer alone (``mae3d``, ``simmim``), of that."""
    transfer: Literal["all", "encoder"] = "all"
    """What is taken over from the weights: ``all`` that they trained but the output layer, or the
    ``encoder`` alone, also where a decoder was trained."""
    encoder_lr_share: float = Field(default=1.0, ge=0)
    """Learning rate of the encoder relative to the rest; 0 freezes it."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 loads in the training process. Results do not depend on it."""
