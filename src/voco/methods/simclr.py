"""SimCLR: two overlapping crops of a volume are more alike than any two of different volumes.

Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020
(arXiv 2002.05709). Head and loss are those of ``google-research/simclr``; crops and changes of
intensity are those of a port to volumes, ``MIC-DKFZ/nnssl``. What differs here:

- Crops are cut, not cut and resampled, and colour has no counterpart (as in nnssl).
- The head's last standardisation learns no scale.
- The loss is the mean over all crops, as in the paper's equation 1; the reference's code adds the
  means of the two directions and so reports twice as much.
- Several pairs of a volume are not each other's negatives; ``same_volume`` restores that.
- Training is by the optimizer of the recipe, AdamW, where the reference has LARS and nnssl SGD.

Crops of nothing but air are trivial negatives: ``windows.foreground`` keeps windows on the body.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from voco.augment.appearance import AppearanceConfig
from voco.augment.pairs import cut_pairs
from voco.backbone import Backbone
from voco.embedding import Embedder, Levels
from voco.method import Method, MethodConfig, Panel, pair_panels
from voco.nn.gather import first_row, gathered_rows
from voco.nn.health import effective_rank
from voco.nn.info_nce import info_nce, pair_health
from voco.shapes import Crops, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class SimCLRConfig(MethodConfig):
    """Settings of SimCLR."""

    name: Literal["simclr"] = "simclr"
    """Selects this method."""
    window: Sides3 = (192, 192, 64)
    """Voxels of the window that crops are cut from (nnssl)."""
    crop: Sides3 = (64, 64, 64)
    """Voxels of a crop (nnssl)."""
    pairs: PositiveInt = 2
    """Pairs of crops of each window (nnssl)."""
    largest_offset: float = Field(default=0.5, ge=0, le=1)
    """How far apart the two crops of a pair may start along each axis, as a share of their size
    (nnssl: one half, so that they share at least an eighth)."""
    appearance: AppearanceConfig = AppearanceConfig()
    """What is done to each crop."""
    blur_probability: float = Field(default=0.2, ge=0, le=1)
    """Of blurring a crop (nnssl)."""
    levels: Levels = "backbone"
    """Which levels of the pyramid are averaged over space and joined: those the ``backbone``
    names, or the ``last`` (the reference's network has one; nnssl sums all)."""
    layers: PositiveInt = 3
    """Linear layers of the head (the reference's code; 2 in the paper)."""
    hidden: PositiveInt = 2048
    """Width of the head's hidden layers (nnssl; in the reference that of the features: 2048)."""
    width: PositiveInt = 128
    """Length of an embedding (reference)."""
    temperature: PositiveFloat = 0.1
    """What cosines are divided by (reference, for ImageNet; 0.5 for CIFAR-10 and in nnssl)."""
    same_volume: Literal["left_out", "negatives"] = "left_out"
    """What other pairs of the same volume are for a crop: ``left_out``, or ``negatives`` though
    they may show the same place (nnssl)."""
    crops_at_once: PositiveInt | None = None
    """Crops that pass through the backbone together; ``None`` is all on a GPU, and on a CPU as many
    as have 800,000 voxels together. Fewer need less memory at once; results do not depend
    on it."""

    @model_validator(mode="after")
    def _crop_fits(self) -> "SimCLRConfig":
        if any(side > room for side, room in zip(self.crop, self.window, strict=True)):
            raise ValueError(f"crop {self.crop} does not fit into the window {self.window}")
        return self

    def build(self, backbone: Backbone) -> "SimCLR":
        """SimCLR around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size.
        """
        return SimCLR(self, backbone)


class Views(NamedTuple):
    """Crops, the firsts of all pairs and then the seconds, and where they were cut out."""

    crops: Crops
    boxes: Int64[Tensor, "b n 2 3"]


class SimCLR(Method):
    """Contrast of pairs of crops.

    Args:
        config: The settings.
        backbone: The network to train; its decoder and output layer are frozen.

    Raises:
        ConfigError: If the backbone does not take crops of this size.
    """

    def __init__(self, config: SimCLRConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        backbone.check_size(config.crop)
        self.student = Embedder(
            backbone,
            levels=config.levels,
            widths=(*[config.hidden] * (config.layers - 1), config.width),
            size=config.crop,
            at_once=config.crops_at_once,
            ending="standardised",
            learnt=True,
        )

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut pairs of crops and change each on its own; where the volumes are."""
        made = cut_pairs(
            volumes,
            step.draws.child(1),
            size=self.config.crop,
            pairs=self.config.pairs,
            largest_offset=self.config.largest_offset,
            appearance=self.config.appearance,
            blur_probabilities=(self.config.blur_probability, self.config.blur_probability),
        )
        return Views(made.crops, made.boxes)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        rows = self.student(self.views(batch, step).crops.flatten(0, 1))
        everyone = gathered_rows(rows, everywhere=self.training)
        first = first_row(len(rows), everywhere=self.training)
        own = torch.arange(first, first + len(rows), device=rows.device)
        positives = partners(own, self.config.pairs)
        excluded = self._excluded(own, len(everyone))
        loss = info_nce(rows, everyone, positives, self.config.temperature, excluded)
        health = pair_health(rows, everyone, positives, excluded)
        health["loss_chance"] = -health["pair_chance"].log()
        health["effective_rank"] = effective_rank(rows)
        return Outcome({"contrast": loss}, health)

    def handover(self) -> Backbone:
        """The backbone; the head stays behind."""
        return self.student.backbone

    def _excluded(self, own: Int64[Tensor, "n"], total: int) -> Bool[Tensor, "n m"]:
        """Which of all crops are no candidates for each crop of this process."""
        everyone = torch.arange(total, device=own.device)
        if self.config.same_volume == "negatives":
            return everyone == own[:, None]
        crops = 2 * self.config.pairs
        same = everyone // crops == own[:, None] // crops
        return same & (everyone != partners(own, self.config.pairs)[:, None])

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its pairs of crops, and the crops as the network sees them."""
        crops, boxes = self.views(volumes[:1], step)
        return pair_panels(volumes[0], boxes[0], crops[0])


def partners(crops: Int64[Tensor, "n"], pairs: int) -> Int64[Tensor, "n"]:
    """The number of the other crop of each crop's pair, in a batch of ``2 * pairs`` per volume."""
    within = crops % (2 * pairs)
    return crops - within + (within + pairs) % (2 * pairs)
