"""Classification of whole volumes: pooled encoder features, a linear layer, cross-entropy."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from voco.augment.intensity import draw_shifts, shift
from voco.augment.spatial import draw_flips, flip
from voco.backbone import Backbone
from voco.config import Config
from voco.data.patches import Targets
from voco.draws import Draws
from voco.embedding import pooled
from voco.errors import ConfigError
from voco.method import Panel, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.shapes import Shape3, Volumes
from voco.task import Outcome, Step, Task

_LARGEST_LOGIT = 1e4
_SHOWN = 16
"""Volumes in a picture."""


class ClassificationConfig(Config):
    """Size, augmentation and loss of a classification of whole volumes."""

    name: Literal["classification"] = "classification"
    """Selects this task."""
    size: Shape3 = (96, 96, 96)
    """Voxels that every volume is brought to, along x, y and z."""
    fit: Literal["resize", "crop"] = "resize"
    """``resize``: the whole volume is resampled to ``size``, aspect ignored. ``crop``: its middle
    at the store's spacing, padded where it is smaller."""
    class_weights: tuple[PositiveFloat, ...] | None = None
    """Weight of each class in the loss, in the order of ``handover.json``; ``None`` weighs all
    volumes alike."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pooled features that is dropped in training."""
    flip_axes: tuple[Literal["x", "y", "z"], ...] = ("x", "y", "z")
    """Axes along which volumes may be mirrored, in training and in test-time flips. Leave x out
    where a class has a side."""
    flip_probability: float = Field(default=0.2, ge=0, le=1)
    """Of mirroring, for each of those axes."""
    shift_strength: float = Field(default=0.1, ge=0)
    """Largest shift of the intensities, in units of the network's input."""
    shift_probability: float = Field(default=0.5, ge=0, le=1)
    """Of such a shift."""

    def build(self, backbone: Backbone, class_count: int) -> "Classification":
        """The task around a backbone.

        Raises:
            ConfigError: If the backbone cannot take volumes of ``size``, or the number of
                weights is not that of the classes.
        """
        return Classification(self, backbone, class_count)


class Classification(Task[Targets]):
    """One class per volume: a linear layer on the averages of the encoder's levels.

    The features are those that a method pools for an embedding (``embedding_levels``). What they
    do not depend on, such as decoder and output layer, is frozen.
    """

    def __init__(self, config: ClassificationConfig, backbone: Backbone, class_count: int) -> None:
        super().__init__()
        backbone.check_size(config.size)
        weights = config.class_weights
        if weights is not None and len(weights) != class_count:
            raise ConfigError(
                f"task.class_weights: {len(weights)} weights, but the data has {class_count} "
                "classes. Give one for each, or none."
            )
        self.config = config
        self.backbone = backbone
        width = sum(backbone.channels[level] for level in backbone.embedding_levels)
        self.classifier = nn.Linear(width, class_count)
        shape = (1, backbone.config.in_channels, *config.size)
        freeze_unreached(self, lambda task: task.scores(torch.zeros(shape, device="meta")))

    def forward(self, batch: Targets, step: Step) -> Outcome:
        """Cross-entropy of augmented volumes."""
        scores = self.scores(augment(batch.volumes, self.config, step.draws))
        with torch.autocast(scores.device.type, enabled=False):
            logits = scores.float().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
            loss = F.cross_entropy(logits, batch.classes, weight=self._weights(logits))
        right = (scores.detach().argmax(dim=1) == batch.classes).float().mean()
        return Outcome({"ce": loss}, {"accuracy": right})

    def show(self, batch: Targets, step: Step) -> list[Panel]:
        """Pictures of the first augmented volumes."""
        images = middle_slices(augment(batch.volumes, self.config, step.draws), _SHOWN)
        numbers = batch.classes.tolist()
        return [
            Panel(f"class {number}", image) for number, image in zip(numbers, images, strict=False)
        ]

    def scores(self, volumes: Volumes) -> Float[Tensor, "b k"]:
        """One number per class, before softmax."""
        features = pooled(self.backbone, [volumes], self.backbone.embedding_levels)
        return self.classifier(F.dropout(features, self.config.dropout, self.training))

    def _weights(self, logits: Tensor) -> Tensor | None:
        weights = self.config.class_weights
        return None if weights is None else logits.new_tensor(weights)


def augment(volumes: Volumes, config: ClassificationConfig, draws: Draws) -> Volumes:
    """Flips, and a shift of the intensities."""
    count = len(volumes)
    allowed = torch.tensor([axis in config.flip_axes for axis in "xyz"])
    flips = draw_flips(draws, count, 1, config.flip_probability)[:, 0] & allowed
    shifts = draw_shifts(draws, count, 1, config.shift_strength, config.shift_probability)[:, 0]
    return shift(flip(volumes, flips), shifts)
