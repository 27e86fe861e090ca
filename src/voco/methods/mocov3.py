"""MoCo v3: each look at a volume predicts how a slowly following copy sees the other look.

Chen, Xie & He, *An Empirical Study of Training Self-Supervised Vision Transformers*, ICCV 2021
(arXiv 2104.02057); code ``facebookresearch/moco-v3``, which is for photographs. Kept from it:
heads, loss with its factor of twice the temperature, momentum and its ramp, no queue, keys of all
processes without gradient, the frozen patch embedding, blur of nearly every first look. What
differs here:

- Two overlapping crops are cut, not cut and resampled; the other changes of intensity are those
  of :class:`~voco.augment.appearance.AppearanceConfig`; no colour, no solarisation.
- Position codes are the backbone's own, where the reference's ViT has fixed sines and cosines.
- The copy follows before the step's forward pass instead of between queries and keys; no weight
  changes in between, so the result is the same.
- Training is by the optimizer of the recipe, AdamW; the reference has LARS for convolutions.

Sizes of windows and crops are our choice, as no 3D settings of the authors exist. Contrast needs
many volumes: with few per step (below about 32 in all) the pairs soon tell themselves apart.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.appearance import AppearanceConfig
from voco.augment.pairs import cut_pairs
from voco.backbone import Backbone
from voco.embedding import Embedder, Levels
from voco.method import Method, MethodConfig, Panel, pair_panels
from voco.nn.ema import distance, follow, rising, teacher_of
from voco.nn.gather import first_row, gathered_rows
from voco.nn.heads import projector
from voco.nn.health import effective_rank
from voco.nn.info_nce import info_nce, pair_health
from voco.shapes import Crops, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class MoCoV3Config(MethodConfig):
    """Settings of MoCo v3."""

    name: Literal["mocov3"] = "mocov3"
    """Selects this method."""
    variant: Literal["transformer", "convolution"] = "transformer"
    """Heads and temperature of the reference's ViT, or of its ResNet: ``transformer`` has three
    layers in the projector and a standardised predictor, ``convolution`` two and a bare one."""
    window: Sides3 = (144, 144, 144)
    """Voxels of the window that crops are cut from; our choice."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a crop; our choice."""
    largest_offset: float = Field(default=0.5, ge=0, le=1)
    """How far apart the two crops may start along each axis, as a share of their size; one half
    (they share at least an eighth) is our choice."""
    appearance: AppearanceConfig = AppearanceConfig()
    """What is done to each crop."""
    blur_probabilities: tuple[float, float] = (1.0, 0.1)
    """Of blurring the first and the second crop (reference)."""
    levels: Levels = "last"
    """Which levels of the pyramid are averaged over space and joined: those the ``backbone``
    names, or the ``last`` (as in the reference)."""
    hidden: PositiveInt = 4096
    """Width of the heads' hidden layers (reference)."""
    width: PositiveInt = 256
    """Length of an embedding (reference)."""
    temperature: PositiveFloat | None = None
    """What cosines are divided by. Own: transformer 0.2, convolution 1 (reference)."""
    momentum: float = Field(default=0.99, ge=0, le=1)
    """How much of the copy stays in the first step (reference)."""
    momentum_ramp: bool = True
    """Whether the momentum rises to 1 along a cosine (all of the reference's recipes)."""
    freeze_patches: bool = True
    """Whether the layer that turns patches into tokens stays as it starts (reference, for
    stability). Networks without such a layer have nothing to freeze."""
    crops_at_once: PositiveInt | None = None
    """Crops that pass through the backbone together; ``None`` is all on a GPU, and on a CPU as many
    as have 800,000 voxels together. Fewer need less memory at once; results do not depend
    on it."""

    @model_validator(mode="after")
    def _fit_together(self) -> "MoCoV3Config":
        if any(side > room for side, room in zip(self.crop, self.window, strict=True)):
            raise ValueError(f"crop {self.crop} does not fit into the window {self.window}")
        if not all(0 <= share <= 1 for share in self.blur_probabilities):
            raise ValueError(f"blur_probabilities {self.blur_probabilities} must lie in [0, 1]")
        return self

    def chosen_temperature(self) -> float:
        """The temperature given here, or else the variant's own."""
        return self.temperature or {"transformer": 0.2, "convolution": 1.0}[self.variant]

    def build(self, backbone: Backbone) -> "MoCoV3":
        """MoCo v3 around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size.
        """
        return MoCoV3(self, backbone)


class Views(NamedTuple):
    """Two crops of each volume, and where they were cut out."""

    crops: Crops
    boxes: Int64[Tensor, "b n 2 3"]


class Embedded(NamedTuple):
    """Embeddings of the first and of the second crops."""

    first: Float[Tensor, "b e"]
    second: Float[Tensor, "b e"]


class MoCoV3(Method):
    """Momentum contrast within the batch.

    Args:
        config: The settings.
        backbone: The network to train; its decoder and output layer are frozen.

    Raises:
        ConfigError: If the backbone does not take crops of this size.
    """

    def __init__(self, config: MoCoV3Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        backbone.check_size(config.crop)
        if config.freeze_patches:
            _freeze(backbone)
        transformer = config.variant == "transformer"
        self.student = Embedder(
            backbone,
            levels=config.levels,
            widths=(*[config.hidden] * (2 if transformer else 1), config.width),
            size=config.crop,
            at_once=config.crops_at_once,
            ending="standardised",
            learnt=True,
        )
        self.predictor = projector(
            (config.width, config.hidden, config.width),
            ending="standardised" if transformer else "bare",
            learnt=True,
        )
        self.teacher = teacher_of(self.student)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut a pair of crops and change each on its own; where the volumes are."""
        made = cut_pairs(
            volumes,
            step.draws.child(1),
            size=self.config.crop,
            largest_offset=self.config.largest_offset,
            appearance=self.config.appearance,
            blur_probabilities=self.config.blur_probabilities,
        )
        return Views(made.crops, made.boxes)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        crops = self.views(batch, step).crops
        queries = embedded(self.student, crops, self.predictor)
        with torch.no_grad():
            keys = embedded(self.teacher, crops)
            keys = Embedded(*(gathered_rows(rows, everywhere=self.training) for rows in keys))
        first = first_row(len(batch), everywhere=self.training)
        positives = torch.arange(first, first + len(batch), device=batch.device)
        scale = self.config.chosen_temperature()
        loss = 2 * scale * symmetric_loss(queries, keys, positives, scale)
        health = pair_health(queries.first, keys.second, positives)
        health["loss_chance"] = -4 * scale * health["pair_chance"].log()
        health["effective_rank"] = effective_rank(queries.first)
        health["teacher_distance"] = distance(self.teacher, self.student)
        return Outcome({"contrast": loss}, health)

    def before_step(self, step: Step) -> None:
        """Let the copy follow the student of the step before, ahead of this step's forward."""
        follow(self.teacher, self.student, self.momentum(step))

    def momentum(self, step: Step) -> float:
        """How much of the copy stays in a step."""
        momentum = self.config.momentum
        return rising(momentum, step.progress) if self.config.momentum_ramp else momentum

    def handover(self) -> Backbone:
        """The backbone that is trained by gradients, as in the reference."""
        return self.student.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its two crops, and the crops as the network sees them."""
        crops, boxes = self.views(volumes[:1], step)
        return pair_panels(volumes[0], boxes[0], crops[0])


def embedded(network: Embedder, crops: Crops, predictor: nn.Module | None = None) -> Embedded:
    """Embeddings of pairs of crops; each half of the pairs is standardised on its own."""
    pooled = network.pool(crops[:, 0], crops[:, 1])
    halves = [network.projector(half) for half in pooled.chunk(2)]
    return Embedded(*(half if predictor is None else predictor(half) for half in halves))


def symmetric_loss(
    queries: Embedded, keys: Embedded, positives: Int64[Tensor, "b"], temperature: float
) -> Float[Tensor, ""]:
    """First queries against second keys, and second against first: the sum of both."""
    forth = info_nce(queries.first, keys.second, positives, temperature)
    return forth + info_nce(queries.second, keys.first, positives, temperature)


def _freeze(backbone: Backbone) -> None:
    for name, tensor in backbone.network.named_parameters():
        if name.startswith(backbone.patch_prefixes):
            tensor.requires_grad_(False)  # noqa: FBT003 (torch's signature)
