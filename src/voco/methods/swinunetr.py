"""Swin UNETR's pre-training: restore a corrupted volume, tell its turn, know its other view.

Tang et al., *Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis*,
CVPR 2022 (arXiv 2111.14791); code ``SwinUNETR/Pretrain`` of MONAI's ``research-contributions``.
Two views of a crop, each turned by its own number of quarter turns, are corrupted: boxes become
noise, then others show another crop of the batch. One encoder has three tasks for each: restore
the turned view as it was before it was corrupted (absolute error over *all* voxels), tell the turn
(cross-entropy), and find the embedding of the other view among those of all others. Any backbone
will do. Handed on is what encodes: on Swin UNETR the Swin transformer alone, as in the reference.

Three things that one would not expect are the code's, and the defaults here, as in the weights it
published:

- Turn and embedding are read from two neighbouring voxels in the corner of the last map, one
  each. Its maintainers call that a way of sampling. ``readout: mean`` averages over space.
- Turns are in the plane of y and z, which is sagittal. ``plane: xy`` makes them axial.
- Crops are corrupted one after the other, and what is copied comes from the batch as it then is:
  from a crop that is corrupted already, noise comes along, from one that follows it does not.
  ``swap_source: clean`` copies from the batch as it was, so that all crops are treated alike.

What differs here:

- Embeddings are told from those of all processes; in the reference from those of one GPU.
- Crops are copied within groups of ``swap_among`` that follow each other in the batch: as many as
  the reference has on a GPU. So results do not depend on how many processes share the batch.
- The reference cuts two crops of every volume of a batch; here every crop is cut on its own.
- Boxes have at least one voxel along each axis, where the reference has empty ones in crops below
  20; a box of one voxel, which has no range to stretch, is filled with the least value.
- Convolutions in front of an instance norm have no bias, which would do nothing.
- Training is by the optimizer of the recipe, which clips gradients at any precision; the reference
  does so in full precision alone.

The article's number of steps is not known, nor its batch; code and instructions contradict each
other. The head that restores is that of the code; the article reads as if it were a single
transposed convolution.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from voco.augment.blocks import between, covered
from voco.augment.drops import draw_drops, filled_with_noise
from voco.augment.spatial import Plane, turn
from voco.backbone import Backbone, Part
from voco.draws import Draws
from voco.embedding import deepest, deepest_part
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.info_nce import two_views_contrast
from voco.nn.terms import Term, weighted
from voco.nn.three_heads import TURNS, Answers, Readout, ThreeHeads, told_turns
from voco.nn.unit import at_least_float32
from voco.shapes import Boxes, Crops, Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that sums of their errors stay finite."""
_SHOWN = 2


class SwinUNETRPretrainingConfig(MethodConfig):
    """Settings of Swin UNETR's pre-training."""

    name: Literal["swinunetr"] = "swinunetr"
    """Selects this method."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a volume (reference)."""
    plane: Plane = "yz"
    """The plane of the turns (reference: ``yz``); the crop must be square in it."""
    intensities: tuple[float, float] = (0.0, 1.0)
    """Least and largest value of the noise: the ends of the network's input (0 and 1 in the
    reference)."""
    most_dropped: float = Field(default=0.3, ge=0, le=1)
    """How much of a crop the volumes of all boxes of noise sum up to at most, and those of all
    copied boxes; drawn evenly from 0 on (reference). They overlap: 13 % are covered by each on
    average."""
    shortest_edge_share: float = Field(default=0.05, ge=0, lt=1)
    """Shortest edge of a box, as a share of the crop's side, rounded down (reference)."""
    longest_edge_share: float = Field(default=0.25, gt=0, le=1)
    """What no edge of a box reaches, likewise (reference)."""
    swap_among: PositiveInt = 4
    """Among how many crops of a batch something is copied: each crop draws one of them, and where
    it draws itself nothing is copied. 4 in the reference's code, 2 in its instructions, all on one
    GPU; must divide the volumes of a micro-batch."""
    swap_source: Literal["partly_corrupted", "clean"] = "partly_corrupted"
    """Whether crops are corrupted one after the other and copied from as they then are
    (reference), or all copied from as they were."""
    readout: Readout = "corners"
    """Turn and embedding are read from two ``corners`` of the last map (reference), or from its
    ``mean`` over space."""
    width: PositiveInt = 512
    """Length of an embedding (reference)."""
    temperature: PositiveFloat = 0.5
    """What cosines are divided by (reference)."""
    reconstruction_weight: PositiveFloat = 1.0
    """Weight of restoring (reference)."""
    rotation_weight: NonNegativeFloat = 1.0
    """Weight of telling turns (reference); 0 leaves it out."""
    contrast_weight: NonNegativeFloat = 1.0
    """Weight of the contrast of views (reference); 0 leaves it out."""

    @model_validator(mode="after")
    def _fit_together(self) -> "SwinUNETRPretrainingConfig":
        first, second = (self.crop["xyz".index(axis)] for axis in self.plane)
        if first != second:
            raise ValueError(
                f"crop {self.crop} is not square in the plane {self.plane}, in which it is turned"
            )
        if self.shortest_edge_share > self.longest_edge_share:
            raise ValueError(
                f"shortest_edge_share {self.shortest_edge_share} is above longest_edge_share "
                f"{self.longest_edge_share}"
            )
        if self.intensities[0] > self.intensities[1]:
            raise ValueError(f"the ends {self.intensities} of intensities are in the wrong order")
        return self

    def build(self, backbone: Backbone) -> "SwinUNETRPretraining":
        """The three tasks around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size, or its last map would
                be a single voxel.
        """
        return SwinUNETRPretraining(self, backbone)


class Views(NamedTuple):
    """Two views of each crop, corrupted and as they were; and their quarter turns."""

    corrupted: Crops
    clean: Crops
    turns: Int64[Tensor, "b n"]


class SwinUNETRPretraining(Method):
    """Restoring, telling turns, and contrast, of two corrupted views.

    Args:
        config: The settings.
        backbone: The network to train; what does not lead to its last map is frozen.

    Raises:
        ConfigError: If the backbone does not take crops of this size, or its last map would be a
            single voxel.
    """

    def __init__(self, config: SwinUNETRPretrainingConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        self.config, self.window, self.backbone = config, config.crop, backbone
        channels = backbone.config.in_channels
        self.heads = ThreeHeads(
            backbone.channels[-1],
            backbone.strides[-1],
            channels,
            config.crop,
            width=config.width,
            readout=config.readout,
        )
        self.heads.turns.requires_grad_(requires_grad=config.rotation_weight > 0)
        self.heads.embedding.requires_grad_(requires_grad=config.contrast_weight > 0)
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: deepest(network, probe))

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Turn each volume twice and corrupt both; where the volumes are."""
        draws = step.draws
        turns = draws.child(1).integers(len(volumes), 2, high=TURNS)
        clean = [turn(volumes, own, self.config.plane) for own in turns.unbind(dim=1)]
        changed = [
            corrupted(view, draws.child(number), self.config)
            for number, view in enumerate(clean, start=2)
        ]
        return Views(torch.stack(changed, 1), torch.stack(clean, 1), turns.to(volumes.device))

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch.

        Raises:
            ConfigError: If the batch does not divide into groups within which is copied.
        """
        among = self.config.swap_among
        if self.training and len(batch) % among:
            raise ConfigError(
                f"swinunetr copies among {among} volumes, and a micro-batch has {len(batch)}: set "
                "method.swap_among to a divisor of it, or batch_size (over optimizer.accumulate) "
                f"to a multiple of {among}."
            )
        views = self.views(batch, step)
        answers = self._answers(views.corrupted.flatten(0, 1))
        return self._outcome(answers, views)

    def handover(self) -> Backbone:
        """The backbone; the heads stay behind."""
        return self.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """What makes the tokens, if the backbone has any (reference); else the encoder."""
        return (deepest_part(self.backbone),)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Both views of volumes: as the network sees them, as it restores them, as they were."""
        with torch.no_grad():
            views = self.views(volumes, step)
            found = self._answers(views.corrupted.flatten(0, 1)).painted
        pictures = {
            "corrupted": views.corrupted,
            "restored": found.unflatten(0, (len(volumes), 2)),
            "clean": views.clean,
        }
        return [
            Panel(f"{name} {at}, view {which}", grey(image))
            for at in range(min(_SHOWN, len(volumes)))
            for which in range(2)
            for name, crops in pictures.items()
            for image in middle_slices(crops[at, which])
        ]

    def _answers(self, crops: Volumes) -> Answers:
        return self.heads(deepest(self.backbone, crops))

    def _outcome(self, answers: Answers, views: Views) -> Outcome:
        config = self.config
        rows = answers.rows.unflatten(0, (-1, 2))
        terms = {
            "reconstruction": self._restored(answers.painted, views),
            "rotation": told_turns(answers.turns, views.turns.flatten()),
            "contrast": two_views_contrast(rows, config.temperature, everywhere=self.training),
        }
        weights = {name: getattr(config, f"{name}_weight") for name in terms}
        return Outcome(*weighted(terms, weights))

    def _restored(self, found: Volumes, views: Views) -> Term:
        """How well crops are restored.

        A blind network gives each crop back as its own mean. ``untouched_chance`` is the loss of
        leaving crops as they are, ``corrupted_share`` how much of them was changed.
        """
        clean, changed = views.clean.flatten(0, 1), views.corrupted.flatten(0, 1)
        mean = clean.mean(dim=(1, 2, 3, 4), keepdim=True).expand_as(clean)
        untouched = self.config.reconstruction_weight * restoration_loss(changed, clean)
        health = {
            "untouched_chance": untouched,
            "corrupted_share": (changed != clean).any(dim=1).float().mean(),
        }
        return Term(restoration_loss(found, clean), restoration_loss(mean, clean), health)


def restoration_loss(found: Volumes, clean: Volumes) -> Float[Tensor, ""]:
    """Mean absolute error over *all* voxels, corrupted or not; in at least float32."""
    with torch.autocast(found.device.type, enabled=False):
        cut = at_least_float32(found).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        return (cut - at_least_float32(clean)).abs().mean()


def corrupted(volumes: Volumes, draws: Draws, config: SwinUNETRPretrainingConfig) -> Volumes:
    """One view of each crop of a batch, with boxes of noise and boxes of another crop.

    Args:
        volumes: The views, turned.
        draws: Random numbers, for this alone.
        config: How much, how large, and copied from where.
    """
    count, size = len(volumes), (volumes.shape[2], volumes.shape[3], volumes.shape[4])
    noisy, swapped = (_boxes(draws.child(number), count, size, config) for number in range(1, 3))
    seeds = draws.child(3).integers(count, high=1 << 62).tolist()
    donors = draw_donors(draws.child(4), count, config.swap_among).tolist()
    clean, crops = list(volumes), list(volumes)
    for at, donor in enumerate(donors):
        # In place of the clean crop at once: those that follow copy from it as it is then.
        crops[at] = filled_with_noise(crops[at], noisy[at], seeds[at], config.intensities)
        if donor != at:
            shown = (crops if config.swap_source == "partly_corrupted" else clean)[donor]
            inside = covered(swapped[at], size).to(volumes.device)
            crops[at] = torch.where(inside, shown, crops[at])
    return torch.stack(crops)


def draw_donors(draws: Draws, count: int, among: int) -> Int64[Tensor, "b"]:
    """From which crop each one copies: any of its group, itself (which is none) included.

    Args:
        draws: Random numbers.
        count: Crops of this process.
        among: Crops of a group; groups follow each other, and the last may be smaller.
    """
    first = torch.arange(count) // among * among
    last = (first + among).clamp(max=count) - 1
    return between(draws.uniform(count), first, last)


def _boxes(
    draws: Draws, count: int, size: Shape3, config: SwinUNETRPretrainingConfig
) -> list[Boxes]:
    edges = (config.shortest_edge_share, config.longest_edge_share)
    return draw_drops(draws, count, size, most=config.most_dropped, edges=edges)
