"""Volume fusion: see, for every voxel, how much of another volume was mixed in.

Wang et al., *MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a
Large-Scale Unannotated Dataset*, 2023 (arXiv 2306.16925). A foreground is mixed into a background,
``x = a * foreground + (1 - a) * background``, where ``a`` is one of a few equally spaced
coefficients in each of many boxes and 0 elsewhere. The network tells the coefficient of every
voxel: a segmentation without annotation, which trains encoder *and* decoder.

Three public definitions differ, and the settings reach all of them but for what is listed below:

- the article, as ``MIC-DKFZ/nnssl`` relates it: boxes of any size and place, later ones on top;
  volumes of a batch mixed with each other;
- the authors' code, ``HiLab-git/PyMIC``: two crops of the *same* volume (``sources: crops``) on a
  regular grid of blocks (``blocks: grid``);
- nnssl: as the article, with other edges, a coefficient of 0 among those drawn
  (``draw_zero: true``), and its own changes of intensity.

The defaults are boxes, other volumes, no zero among the coefficients: our choice. What differs
from all of them:

- Every volume of a batch is a background and, for its neighbour, a foreground. The references
  spend one half of a batch on foregrounds.
- Foreground and background are mirrored and changed before they are mixed, each on its own, as in
  PyMIC; the changes are nnssl's. PyMIC's stretch of contrast and its crops of random scale are
  left out.
- Heads at lower resolutions, which some networks of the authors have, are left out.
- Training is by the optimizer of the recipe, AdamW; PyMIC uses Adam with a weight decay of 1e-5.

Where both volumes look alike (air), nothing tells the coefficient: accuracy has a ceiling, and
``ambiguous_share`` says how low it is.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.appearance import AppearanceConfig
from voco.augment.blocks import between, draw_blocks
from voco.augment.pairs import cut_pairs
from voco.backbone import Backbone
from voco.draws import Draws
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.dice import soft_dice
from voco.nn.freeze import freeze_unreached
from voco.nn.health import masked_mean
from voco.nn.unit import at_least_float32
from voco.shapes import Level, Volumes
from voco.task import Losses, Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Labels = Int64[Tensor, "b x y z"]

_SHOWN = 4
_LARGEST_LOGIT = 1e4
_ALIKE = 0.01
"""Foreground and background that differ by less, in units of the network's input, look alike."""


class VolumeFusionConfig(MethodConfig):
    """Settings of volume fusion."""

    name: Literal["volumefusion"] = "volumefusion"
    """Selects this method."""
    window: Sides3 = (96, 96, 96)
    """Voxels of the window that crops are cut from; our choice."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a crop; our choice (64 x 128 x 128 in the article and in PyMIC)."""
    sources: Literal["volumes", "crops"] = "volumes"
    """What is mixed into a crop: a crop of the next of two ``volumes`` (article, nnssl), or one of
    two ``crops`` of the same window (PyMIC), which must then be larger than a crop."""
    blocks: Literal["boxes", "grid"] = "boxes"
    """Where something is mixed in: in ``boxes`` of any size and place, later ones on top (article,
    nnssl), or in cells of a ``grid`` (PyMIC)."""
    coefficients: PositiveInt = 4
    """Coefficients above 0, equally spaced up to 1; with the 0 they are the classes."""
    draw_zero: bool = False
    """Whether 0 is among the coefficients that a block may have (nnssl). Not in PyMIC; whether in
    the article is not known."""
    least_boxes: PositiveInt = 10
    """Fewest boxes of a crop."""
    most_boxes: PositiveInt = 40
    """Most boxes of a crop (article; 39 in nnssl)."""
    least_edge: PositiveInt = 8
    """Shortest edge of a box or a cell in voxels."""
    most_edge: PositiveInt = 32
    """Longest edge of a cell in voxels, as far as the crop allows (PyMIC)."""
    most_edge_share: float = Field(default=0.625, gt=0, le=1)
    """Longest edge of a box, as a share of the crop's side (nnssl; 40 of 64 and 80 of 128 voxels
    in the article)."""
    cell_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the cells in which something is mixed in (PyMIC)."""
    appearance: AppearanceConfig = AppearanceConfig(
        turn_probability=0.0, low_resolution_probability=0.25
    )
    """What is done to foreground and background before they are mixed."""
    blur_probability: float = Field(default=0.2, ge=0, le=1)
    """Of blurring a crop (nnssl)."""
    dice_weight: NonNegativeFloat = 0.5
    """Weight of the Dice loss (PyMIC; 1 in nnssl)."""
    ce_weight: NonNegativeFloat = 0.5
    """Weight of the cross-entropy (PyMIC; 1 in nnssl)."""
    dice_smooth: float = Field(default=1e-5, gt=0)
    """Added above and below in Dice (voxels; nnssl)."""

    @model_validator(mode="after")
    def _fit_together(self) -> "VolumeFusionConfig":
        if any(side > room for side, room in zip(self.crop, self.window, strict=True)):
            raise ValueError(f"crop {self.crop} does not fit into the window {self.window}")
        if self.sources == "crops" and self.crop == self.window:
            raise ValueError(
                f"sources crops needs a window larger than the crop, or both crops are the same "
                f"place; both are {self.crop}"
            )
        if self.least_edge > min(self.crop):
            raise ValueError(f"least_edge {self.least_edge} is longer than the crop {self.crop}")
        if self.least_edge > self.most_edge:
            raise ValueError(f"least_edge {self.least_edge} is above most_edge {self.most_edge}")
        if self.least_boxes > self.most_boxes:
            raise ValueError(f"least_boxes {self.least_boxes} is above most_boxes")
        if self.dice_weight == 0 and self.ce_weight == 0:
            raise ValueError("dice_weight and ce_weight are both 0, so there is nothing to learn")
        return self

    def build(self, backbone: Backbone) -> "VolumeFusion":
        """Volume fusion around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size.
        """
        return VolumeFusion(self, backbone)


class Views(NamedTuple):
    """What is mixed, with what, to what; and the class of each voxel."""

    fused: Volumes
    foreground: Volumes
    background: Volumes
    labels: Labels


class VolumeFusion(Method):
    """Telling apart how much of another volume was mixed in.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own.

    Raises:
        ConfigError: If the backbone does not take crops of this size.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: VolumeFusionConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        self.config = config
        self.window = config.window
        self.backbone = backbone
        probe = torch.zeros(1, backbone.config.in_channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: network.decode(network.encode(probe)))
        self.head = nn.Conv3d(backbone.decoded_channels, config.coefficients + 1, 1)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut, change and mix crops; where the volumes are."""
        config = self.config
        pairs = cut_pairs(
            volumes,
            step.draws.child(1),
            size=config.crop,
            largest_offset=float(max(config.window)),
            appearance=config.appearance,
            blur_probabilities=(config.blur_probability, config.blur_probability),
        )
        background, foreground = pairs.crops.unbind(dim=1)
        if config.sources == "volumes":
            foreground = foreground[partners(len(volumes)).to(volumes.device)]
        draws = step.draws.child(2)
        boxes = config.blocks == "boxes"
        labels = (draw_boxes if boxes else draw_cells)(draws, len(volumes), config)
        labels = labels.to(volumes.device)
        fused = fuse(foreground, background, labels, config.coefficients)
        return Views(fused, foreground, background, labels)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch.

        Raises:
            ConfigError: If volumes are to be mixed in pairs and one would be left over.
        """
        if self.training and self.config.sources == "volumes" and len(batch) % 2:
            raise ConfigError(
                f"volumefusion mixes volumes in pairs, and a micro-batch has {len(batch)}: set "
                "batch_size (over optimizer.accumulate) to an even number, or method.sources to "
                "crops."
            )
        views = self.views(batch, step)
        logits = self._logits(views.fused)
        losses = self._losses(logits, views.labels)
        return Outcome(losses, fusion_health(logits, views))

    def handover(self) -> Backbone:
        """The backbone, encoder and decoder; the method's own output layer stays behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Fused crops, the true coefficients, and those that the network names."""
        with torch.no_grad():
            views = self.views(volumes, step)
            found = self._logits(views.fused).argmax(dim=1)
        top = self.config.coefficients
        pictures = {
            "fused": views.fused,
            "coefficient": views.labels[:, None] / top,
            "predicted coefficient": found[:, None] / top,
        }
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", image if "coefficient" in name else grey(image))
            for at in range(min(_SHOWN, len(volumes)))
            for name, images in slices.items()
            for image in [images[at]]
        ]

    def _logits(self, crops: Volumes) -> Level:
        return self.head(self.backbone.decode(self.backbone.encode(crops)))

    def _losses(self, logits: Level, labels: Labels) -> Losses:
        config, losses = self.config, {}
        if config.dice_weight:
            losses["dice"] = config.dice_weight * dice_loss(logits, labels, config.dice_smooth)
        if config.ce_weight:
            losses["ce"] = config.ce_weight * cross_entropy(logits, labels)
        return losses


def partners(count: int) -> Int64[Tensor, "b"]:
    """Which volume is mixed into each: the other of its pair, whoever shares out the batch.

    The last of an odd number has none; a second crop of itself is mixed in.
    """
    numbers = torch.arange(count)
    return torch.where(numbers ^ 1 < count, numbers ^ 1, numbers)


def fuse(foreground: Volumes, background: Volumes, labels: Labels, top: int) -> Volumes:
    """``a * foreground + (1 - a) * background`` with ``a = labels / top`` (equation 1)."""
    shares = (labels[:, None] / top).to(background)
    return shares * foreground + (1 - shares) * background


def draw_boxes(draws: Draws, count: int, config: VolumeFusionConfig) -> Labels:
    """Boxes of one class each, later ones on top, on a ground of class 0.

    Args:
        draws: The random numbers of the labels.
        count: Crops of this process.
        config: How many boxes, how large, and which classes.
    """
    most = config.most_boxes
    numbers = draws.integers(count, low=config.least_boxes, high=most + 1)
    classes = _classes(draws, count, most, config=config)
    boxes = draw_blocks(
        draws,
        count,
        most,
        config.crop,
        shortest=torch.full((3,), config.least_edge),
        longest=(torch.tensor(config.crop) * config.most_edge_share).long(),
    )
    labels = torch.zeros(count, *config.crop, dtype=torch.int64)
    for row, number, places, kinds in zip(
        labels, numbers.tolist(), boxes.tolist(), classes.tolist(), strict=True
    ):
        for place, kind in zip(places[:number], kinds[:number], strict=True):
            row[tuple(slice(low, high) for low, high in zip(*place, strict=True))] = kind
    return labels


def draw_cells(draws: Draws, count: int, config: VolumeFusionConfig) -> Labels:
    """Cells of a grid, some of one class each; the rest, and what no cell covers, is class 0.

    Args:
        draws: The random numbers of the labels.
        count: Crops of this process.
        config: How large the cells are, how many have a class, and which classes.
    """
    size, least = torch.tensor(config.crop), torch.full((3,), config.least_edge)
    edges = between(draws.uniform(count, 3), least, size.clamp(max=config.most_edge))
    offsets = between(draws.uniform(count, 3), torch.zeros_like(size), size % edges)
    most = [side // config.least_edge for side in config.crop]
    chosen = draws.uniform(count, *most) < config.cell_share
    # One more layer of class 0, which stands for all that lies outside the cells.
    cells = F.pad(chosen * _classes(draws, count, *most, config=config), (0, 1) * 3)
    labels = []
    for row, offset, edge in zip(cells, offsets, edges, strict=True):
        index = [
            _cell_along(side, int(offset[axis]), int(edge[axis]), most[axis])
            for axis, side in enumerate(config.crop)
        ]
        labels.append(row[index[0][:, None, None], index[1][:, None], index[2]])
    return torch.stack(labels)


def cross_entropy(logits: Level, labels: Labels) -> Float[Tensor, ""]:
    """Mean over all voxels; in at least float32, with autocast off."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.nll_loss(_log_shares(logits), labels)


def dice_loss(logits: Level, labels: Labels, smooth: float) -> Float[Tensor, ""]:
    """One minus the soft Dice of each crop and class, class 0 included; their mean.

    In at least float32, with autocast off.

    Args:
        logits: One channel per class.
        labels: Classes.
        smooth: Added above and below (voxels).
    """
    with torch.autocast(logits.device.type, enabled=False):
        shares = _log_shares(logits).exp()
        return 1 - soft_dice(shares, labels, over="crop", smooth=smooth).mean()


@torch.no_grad()
def fusion_health(logits: Level, views: Views) -> dict[str, Tensor]:
    """How well coefficients are told.

    Returns:
        ``voxel_accuracy``: share of voxels whose class is right; ``voxel_chance``: of always
        naming the most frequent class. ``class_accuracy``: the mean over the classes of the share
        of their voxels that is right; ``class_chance``: of always naming one of them.
        ``ambiguous_share``: of the voxels in which something is mixed in, those where foreground
        and background look alike, so that nothing tells.
    """
    labels, count = views.labels, logits.shape[1]
    right = logits.argmax(dim=1) == labels
    voxels = F.one_hot(labels.flatten(), count).sum(dim=0)
    found = torch.zeros_like(voxels).index_add_(0, labels.flatten(), right.flatten().long())
    present = voxels > 0
    alike = ((views.foreground - views.background).abs() < _ALIKE).all(dim=1)
    return {
        "voxel_accuracy": right.float().mean(),
        "voxel_chance": voxels.max() / voxels.sum(),
        "class_accuracy": masked_mean(found / voxels.clamp(min=1), present),
        "class_chance": 1 / present.sum(),
        "ambiguous_share": masked_mean(alike.float(), labels > 0),
    }


def _log_shares(logits: Level) -> Level:
    values = at_least_float32(logits).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return values.log_softmax(dim=1)


def _classes(draws: Draws, count: int, *shape: int, config: VolumeFusionConfig) -> Tensor:
    low = 0 if config.draw_zero else 1
    return draws.integers(count, *shape, low=low, high=config.coefficients + 1)


def _cell_along(side: int, offset: int, edge: int, outside: int) -> Int64[Tensor, "_"]:
    """The cell of each voxel along an axis, or ``outside``."""
    at = torch.arange(side) - offset
    whole = (side - offset) // edge
    return torch.where((at >= 0) & (at < whole * edge), at // edge, outside)
