"""Segmentation: Dice and cross-entropy on crops around structures.

The loss is the sum of soft Dice (Milletari et al., 3DV 2016, with the sum of probabilities in the
denominator) and of cross-entropy. By default Dice leaves the background out, as the fine-tuning
scripts of VoCo do; cross-entropy never does.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from voco.augment.intensity import draw_shifts, shift
from voco.augment.spatial import draw_flips, draw_turns, flip, turn
from voco.backbone import Backbone
from voco.config import Config
from voco.data.patches import Patches
from voco.draws import Draws
from voco.method import Panel, middle_slices
from voco.nn.dice import soft_dice
from voco.nn.freeze import freeze_unreached
from voco.shapes import Level, Shape3, Volumes
from voco.task import Outcome, Step, Task

_LARGEST_LOGIT = 1e4
"""Logits are cut here: softmax is saturated long before, and differences stay finite."""

_SHOWN = 8
"""Crops in a picture."""


class SegmentationConfig(Config):
    """Crops, augmentation, loss and sliding window of a segmentation."""

    name: Literal["segmentation"] = "segmentation"
    """Selects this task."""
    roi: Shape3 = (96, 96, 96)
    """Voxels of a crop, and of a window at inference, along x, y and z."""
    crops_per_volume: PositiveInt = 4
    """Crops taken of each volume of a batch."""
    positive_share: float = Field(default=0.75, ge=0, le=1)
    """Probability that a crop is centred on a structure: first one of the structures that are
    present, all equally likely however small, then one of its voxels. The others lie anywhere."""
    flip_axes: tuple[Literal["x", "y", "z"], ...] = ("y", "z")
    """Axes along which crops may be mirrored, in training and in test-time flips. x (left-right)
    is left out: a mirrored left kidney looks like a right one. Add it where no class has a side;
    VoCo's scripts mirror all three."""
    flip_probability: float = Field(default=0.2, ge=0, le=1)
    """Of mirroring, for each of those axes."""
    turn_probability: float = Field(default=0.0, ge=0, le=1)
    """Of quarter turns in the x-y plane (VoCo's scripts: 0.2). Off, since a mirrored and turned
    crop is one mirrored along another axis: with sided classes use either turns or flips."""
    scale_strength: NonNegativeFloat = 0.1
    """Largest relative change of the intensities."""
    scale_probability: float = Field(default=0.1, ge=0, le=1)
    """Of such a change."""
    shift_strength: NonNegativeFloat = 0.1
    """Largest shift of the intensities, in units of the network's input."""
    shift_probability: float = Field(default=0.5, ge=0, le=1)
    """Of such a shift."""
    dice_weight: NonNegativeFloat = 1.0
    """Weight of the Dice loss."""
    ce_weight: NonNegativeFloat = 1.0
    """Weight of the cross-entropy."""
    dice_background: bool = False
    """Whether the background counts as a structure in the Dice loss."""
    dice_over: Literal["crop", "batch"] = "crop"
    """``crop``: Dice of every crop, then their mean (what VoCo's scripts use). ``batch``: Dice of
    all crops of a micro-batch taken together, which is steadier for structures that few crops
    show."""
    dice_smooth: PositiveFloat = 1e-5
    """Added above and below in Dice (voxels): a structure absent from both counts as found."""
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Unions of label values that validation and evaluation measure instead of single labels, such
    as ``{TC: [1, 4], WT: [1, 2, 4], ET: [4]}`` of BraTS 2021. The network learns the labels."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Overlap of neighbouring windows at inference, as a share of their side."""
    blending: Literal["gaussian", "constant"] = "gaussian"
    """Weights of a window's voxels where windows overlap: highest in its middle, or equal."""
    windows_per_batch: PositiveInt = 1
    """Windows that pass through the network together at inference."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> "SegmentationConfig":
        if self.dice_weight == 0 and self.ce_weight == 0:
            raise ValueError("dice_weight and ce_weight are both 0, so there is nothing to learn")
        if len(set(self.flip_axes)) < len(self.flip_axes):
            raise ValueError(f"flip_axes names an axis twice: {self.flip_axes}")
        return self

    def build(self, backbone: Backbone) -> "Segmentation":
        """The task around a backbone whose output layer has one channel per class.

        Raises:
            ConfigError: If the backbone cannot take crops of ``roi``.
        """
        return Segmentation(self, backbone)


class Segmentation(Task[Patches]):
    """One class per voxel; class 0 is the background."""

    def __init__(self, config: SegmentationConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.roi)
        self.config = config
        self.backbone = backbone
        shape = (1, backbone.config.in_channels, *config.roi)
        freeze_unreached(self, lambda task: task.backbone(torch.zeros(shape, device="meta")))

    def forward(self, batch: Patches, step: Step) -> Outcome:
        """Dice loss and cross-entropy of augmented crops."""
        crops, labels = augment(batch, self.config, step.draws)
        logits = self.backbone(crops)
        with torch.autocast(logits.device.type, enabled=False):
            losses = self._losses(logits, labels)
        return Outcome(losses, {"dice_score": hard_dice(logits.detach(), labels)})

    def show(self, batch: Patches, step: Step) -> list[Panel]:
        """Pictures of the first augmented crops, and the classes of their voxels."""
        crops, labels = augment(batch, self.config, step.draws)
        classes = labels[:, None] / max(1, self.backbone.out_channels - 1)
        pairs = zip(middle_slices(crops, _SHOWN), middle_slices(classes, _SHOWN), strict=True)
        return [
            Panel(f"{what} {number}", image)
            for number, pair in enumerate(pairs)
            for what, image in zip(("crop", "classes"), pair, strict=True)
        ]

    def _losses(self, logits: Level, labels: Int64[Tensor, "b _ _ _"]) -> dict[str, Tensor]:
        config = self.config
        logs = logits.float().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).log_softmax(dim=1)
        losses = {}
        if config.dice_weight:
            first = 0 if config.dice_background else 1
            scores = soft_dice(logs.exp(), labels, over=config.dice_over, smooth=config.dice_smooth)
            losses["dice"] = config.dice_weight * (1 - scores[:, first:].mean())
        if config.ce_weight:
            losses["ce"] = config.ce_weight * F.nll_loss(logs, labels)
        return losses


def augment(
    batch: Patches, config: SegmentationConfig, draws: Draws
) -> tuple[Volumes, Int64[Tensor, "b _ _ _"]]:
    """Flips, turns and changes of intensity; labels move with their crops.

    Returns:
        The crops of all volumes in one batch, and their labels.
    """
    count, number = batch.crops.shape[:2]
    allowed = torch.tensor([axis in config.flip_axes for axis in "xyz"])
    flips = draw_flips(draws, count, number, config.flip_probability) & allowed
    square = config.roi[0] == config.roi[1]
    turns = draw_turns(draws, count, number, config.turn_probability, square=square)
    scales, shifts = (
        draw_shifts(draws, count, number, strength, probability).flatten()
        for strength, probability in (
            (config.scale_strength, config.scale_probability),
            (config.shift_strength, config.shift_probability),
        )
    )
    crops = rearrange(batch.crops, "b n c x y z -> (b n) c x y z")
    labels = rearrange(batch.labels, "b n x y z -> (b n) 1 x y z")
    # As one batch of channels, so that an image and its label cannot move apart.
    moved = turn(
        flip(torch.cat([crops, labels.to(crops)], dim=1), flips.flatten(0, 1)), turns.flatten()
    )
    crops, labels = moved[:, :-1], moved[:, -1].long()
    crops = crops * (1 + scales.to(crops)).view(-1, 1, 1, 1, 1)
    return shift(crops, shifts), labels


def hard_dice(logits: Level, labels: Int64[Tensor, "b _ _ _"]) -> Float[Tensor, ""]:
    """Dice of the winning classes over a whole batch: mean over the structures in its labels."""
    winners = logits.argmax(dim=1)
    count = logits.shape[1]
    truth = torch.bincount(labels.flatten(), minlength=count)[1:]
    found = torch.bincount(winners.flatten(), minlength=count)[1:]
    common = torch.bincount(labels[winners == labels], minlength=count)[1:]
    present = truth > 0
    scores = 2 * common / (truth + found).clamp(min=1)
    return (scores * present).sum() / present.sum().clamp(min=1)
