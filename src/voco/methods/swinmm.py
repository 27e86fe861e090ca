"""SwinMM: paint what is hidden in two views of a volume, each seen in two orientations.

Wang et al., *SwinMM: Masked Multi-view with Swin Transformers for 3D Medical Image Segmentation*,
MICCAI 2023 (arXiv 2307.12591); code ``SwinMM/Pretrain`` of MONAI's ``research-contributions`` and
of ``UCSC-VLAA/SwinMM``. Two views of a cube, each turned by its own number of quarter turns, lose
half of their blocks. The network sees each as it is and with two axes exchanged. It paints the
hidden voxels in both orientations, tells the turn, finds the embedding of the other view among
those of all others, and is to paint alike in both orientations. Any backbone will do; handed on is
what encodes, on Swin UNETR the Swin transformer alone. Heads and contrast are those of Swin UNETR's
pre-training, with two things that one would not expect: turn and embedding are read from two
neighbouring voxels in the corner of the last map (``readout: mean`` averages over space), and turns
are in the plane of y and z.

What is odd in the code, and how it is here:

- Blocks that are drawn are *seen*, so that ``1 - mask_ratio`` of a cube is hidden, but losses are
  divided by ``mask_ratio``. At 0.5, its default, that is the same.
  ``masking: as_named``, the default, hides ``mask_ratio`` and divides by what is hidden, so that a
  loss is a mean over hidden voxels; ``masking: reference`` does as the code does.
- Only the first view has to be painted alike in both orientations, and both paintings learn from
  it: ``mutual: first``, the default. ``mutual: both`` is ours.
- An option of the code that is off in its own script would also compare the second view, turned
  back into the first one's frame. It fails at the first turn to be undone, and a factor that should
  make up for the smaller region is always 1. ``mutual: across`` is what was meant: errors where
  both views hide something, averaged over these voxels of every volume.

What differs here:

- What is hidden, and which axes are exchanged, is drawn for every volume; in the code once for the
  whole batch of a GPU. What a volume can expect to pay for painting and turns is the same.
- Embeddings are told from those of all processes; in the reference from those of one GPU.
- The reference cuts two crops of every volume of a batch; here every cube is cut on its own.
- Convolutions in front of an instance norm have no bias, which would do nothing.
- Training is by the optimizer of the recipe, which decays the tables of relative positions too and
  clips gradients.
- The article's fine-tuning, in which two orientations exchange what they see by attention, is not
  part of this; its published gains include that.

Values of the article beyond those of the code's script are not known.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from voco.augment.masking import draw_cells, spread
from voco.augment.spatial import turn
from voco.backbone import Backbone, Part
from voco.draws import Draws
from voco.embedding import deepest, deepest_part
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.info_nce import two_views_contrast
from voco.nn.terms import Term, weighted
from voco.nn.three_heads import TURNS, Answers, Readout, ThreeHeads, told_turns
from voco.nn.unit import at_least_float32
from voco.shapes import Crops, Volumes
from voco.task import Outcome, Step

_PLANE = "yz"
_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that sums of their squares stay finite."""
_SHOWN = 2


class SwinMMConfig(MethodConfig):
    """Settings of SwinMM."""

    name: Literal["swinmm"] = "swinmm"
    """Selects this method."""
    side: PositiveInt = 64
    """Voxels of each side of the cube (reference)."""
    block: PositiveInt = 16
    """Voxels of each side of the blocks that are hidden (reference)."""
    mask_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the blocks that are hidden (reference), or seen: see ``masking``."""
    masking: Literal["as_named", "reference"] = "as_named"
    """Whether ``mask_ratio`` is hidden, and losses are divided by what is hidden; or ``1 -
    mask_ratio`` is hidden, and losses are divided by ``mask_ratio`` (reference)."""
    standardise: bool = True
    """Whether voxels to be painted are brought to zero mean and unit variance over the cube
    (reference's script)."""
    mutual: Literal["first", "both", "across"] = "first"
    """What is to be painted alike: the ``first`` view in its two orientations (reference); ``both``
    views, each in its two (ours); or the first, and the exchanged second one where both hide
    something (what an option of the reference means)."""
    readout: Readout = "corners"
    """Turn and embedding are read from two ``corners`` of the last map (reference), or from its
    ``mean`` over space."""
    width: PositiveInt = 512
    """Length of an embedding (reference)."""
    temperature: PositiveFloat = 0.5
    """What cosines are divided by (reference)."""
    reconstruction_weight: PositiveFloat = 1.0
    """Weight of painting, in both orientations alike (reference)."""
    rotation_weight: NonNegativeFloat = 1.0
    """Weight of telling turns (reference); 0 leaves it out."""
    contrast_weight: NonNegativeFloat = 1.0
    """Weight of the contrast of views (reference); 0 leaves it out."""
    mutual_weight: NonNegativeFloat = 1.0
    """Weight of painting alike (reference); 0 leaves it out."""

    @model_validator(mode="after")
    def _blocks_are_hidden_and_seen(self) -> "SwinMMConfig":
        if self.side % self.block:
            raise ValueError(f"block {self.block} does not divide the side {self.side}")
        if not 0 < self.hidden_blocks < self.blocks:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} hides {self.hidden_blocks} of {self.blocks} blocks; "
                "at least one must be hidden and one seen"
            )
        return self

    @property
    def blocks(self) -> int:
        """Blocks of a cube."""
        return (self.side // self.block) ** 3

    @property
    def hidden_blocks(self) -> int:
        """Blocks of a cube that are hidden."""
        drawn = round(self.blocks * self.mask_ratio)
        return drawn if self.masking == "as_named" else self.blocks - drawn

    @property
    def divisor(self) -> float:
        """What sums over hidden voxels, as a mean over all, are divided by."""
        if self.masking == "reference":
            return self.mask_ratio
        return self.hidden_blocks / self.blocks

    def build(self, backbone: Backbone) -> "SwinMM":
        """SwinMM around a backbone.

        Raises:
            ConfigError: If the backbone does not take cubes of this size, or its last map would
                be a single voxel.
        """
        return SwinMM(self, backbone)


class Views(NamedTuple):
    """Two views of each cube.

    Attributes:
        masked: With hidden voxels at 0.
        clean: As they were.
        hidden: Which voxels are hidden.
        turns: Quarter turns; on the CPU.
        axes: Which axis is exchanged with x for the other orientation: 1 is y, 2 is z.
    """

    masked: Crops
    clean: Crops
    hidden: Bool[Tensor, "b n x y z"]
    turns: Int64[Tensor, "b n"]
    axes: Int64[Tensor, "b n"]


class SwinMM(Method):
    """Painting hidden blocks in two views and two orientations.

    Args:
        config: The settings.
        backbone: The network to train; what does not lead to its last map is frozen.

    Raises:
        ConfigError: If the backbone does not take cubes of this size, or its last map would be a
            single voxel.
    """

    def __init__(self, config: SwinMMConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.window = (config.side, config.side, config.side)
        backbone.check_size(self.window)
        channels = backbone.config.in_channels
        self.heads = ThreeHeads(
            backbone.channels[-1],
            backbone.strides[-1],
            channels,
            self.window,
            width=config.width,
            readout=config.readout,
        )
        self.heads.turns.requires_grad_(requires_grad=config.rotation_weight > 0)
        self.heads.embedding.requires_grad_(requires_grad=config.contrast_weight > 0)
        probe = torch.zeros(1, channels, *self.window, device="meta")
        freeze_unreached(backbone, lambda network: deepest(network, probe))

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Turn each volume twice and hide blocks of both; where the volumes are."""
        draws, count = step.draws, len(volumes)
        turns = draws.child(1).integers(count, 2, high=TURNS)
        clean = torch.stack([turn(volumes, own, _PLANE) for own in turns.unbind(dim=1)], dim=1)
        hidden = draw_hidden(draws.child(2), count, self.config).to(volumes.device)
        axes = draws.child(3).integers(count, 2, low=1, high=3)
        return Views(
            clean.masked_fill(hidden[:, :, None], 0),
            clean,
            hidden,
            turns,
            axes.to(volumes.device),
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        config = self.config
        views = self.views(batch, step)
        answers, plain, other = self._answers(views)
        hidden = views.hidden[:, :, None]
        targets = standardised(views.clean) if config.standardise else views.clean
        # What a network would pay that paints the mean of what it sees.
        seen = (targets * ~hidden).sum(dim=(3, 4, 5), keepdim=True)
        mean = seen / (~hidden).sum(dim=(3, 4, 5), keepdim=True)
        blind = hidden_loss(mean.expand_as(targets), targets, hidden, config.divisor)
        terms = {
            "reconstruction": Term(hidden_loss(plain, targets, hidden, config.divisor), blind, {}),
            "reconstruction_exchanged": Term(
                hidden_loss(other, targets, hidden, config.divisor), blind, {}
            ),
            "rotation": told_turns(answers.turns, views.turns.flatten().to(answers.turns.device)),
            "contrast": two_views_contrast(
                answers.rows.unflatten(0, (-1, 2)), config.temperature, everywhere=self.training
            ),
            "mutual": Term(mutual_loss(plain, other, views, config), torch.zeros_like(blind), {}),
        }
        weights = {
            "reconstruction": config.reconstruction_weight,
            "reconstruction_exchanged": config.reconstruction_weight,
            "rotation": config.rotation_weight,
            "contrast": config.contrast_weight,
            "mutual": config.mutual_weight,
        }
        return Outcome(*weighted(terms, weights))

    def handover(self) -> Backbone:
        """The backbone; the heads stay behind."""
        return self.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """What makes the tokens, if the backbone has any (reference); else the encoder."""
        return (deepest_part(self.backbone),)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Both views of volumes: as seen, as painted in both orientations, as they were."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            _, plain, other = self._answers(views)
        pictures = {
            "seen": views.masked,
            "painted": plain,
            "painted with axes exchanged": other,
            "volume": views.clean,
        }
        return [
            Panel(f"{name} {at}, view {which}", grey(image))
            for at in range(len(views.clean))
            for which in range(2)
            for name, crops in pictures.items()
            for image in middle_slices(crops[at, which])
        ]

    def _answers(self, views: Views) -> tuple[Answers, Crops, Crops]:
        """What is said of the views as they are, and what is painted in both orientations.

        Both paintings are in the orientation of the views.
        """
        masked, axes = views.masked.flatten(0, 1), views.axes.flatten()
        both = torch.cat([masked, exchanged(masked, axes)])
        answers = self.heads(deepest(self.backbone, both))
        plain, other = answers.painted.chunk(2)
        pairs = (len(views.masked), 2)
        own = Answers(*(part.chunk(2)[0] for part in answers))
        return own, plain.unflatten(0, pairs), exchanged(other, axes).unflatten(0, pairs)


def draw_hidden(draws: Draws, count: int, config: SwinMMConfig) -> Bool[Tensor, "b 2 x y z"]:
    """Which voxels of both views of each cube are hidden: whole blocks, equally many in each.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        config: How large blocks are, and how many are hidden.
    """
    along = config.side // config.block
    grid, block = (along, along, along), (config.block, config.block, config.block)
    views = (draw_cells(draws, count, grid, config.hidden_blocks) for _ in range(2))
    return torch.stack([spread(cells, block) for cells in views], dim=1)


def exchanged(cubes: Volumes, axes: Int64[Tensor, "b"]) -> Volumes:
    """Cubes with x and y (1) or x and z (2) exchanged; twice is as before."""
    chosen = axes.view(-1, 1, 1, 1, 1)
    return torch.where(chosen == 1, cubes.transpose(2, 3), cubes.transpose(2, 4))


def standardised(cubes: Crops) -> Crops:
    """Each channel of each cube at zero mean and unit variance; one of a single value is zero."""
    values = at_least_float32(cubes)
    centred = values - values.mean(dim=(3, 4, 5), keepdim=True)
    return centred * (centred.square().mean(dim=(3, 4, 5), keepdim=True) + 1e-6).rsqrt()


def hidden_loss(
    found: Float[Tensor, "b *n x y z"],
    true: Float[Tensor, "b *n x y z"],
    hidden: Bool[Tensor, "b *_ x y z"],
    divisor: float,
) -> Float[Tensor, ""]:
    """Squared errors of hidden voxels; their mean over *all* voxels, divided.

    In at least float32, with autocast off.

    Args:
        found: What is painted.
        true: What should be.
        hidden: Which voxels count.
        divisor: The share of them, for a mean over hidden voxels.
    """
    return (_squares(found, true) * hidden).mean() / divisor


def mutual_loss(plain: Crops, other: Crops, views: Views, config: SwinMMConfig) -> Tensor:
    """How differently hidden voxels are painted in the two orientations; both are to change.

    Args:
        plain: Painted as the views are.
        other: Painted with axes exchanged, and back in the orientation of the views.
        views: The views.
        config: Which views are compared; see :attr:`SwinMMConfig.mutual`.
    """
    hidden = views.hidden[:, :, None]
    if config.mutual == "both":
        return hidden_loss(other, plain, hidden, config.divisor)
    loss = hidden_loss(other[:, 0], plain[:, 0], hidden[:, 0], config.divisor)
    if config.mutual == "first":
        return loss
    first, second = views.turns.unbind(dim=1)
    back = (first - second) % TURNS
    common = turn(hidden[:, 1].to(plain.dtype), back, _PLANE).bool() & hidden[:, 0]
    squares = _squares(turn(other[:, 1], back, _PLANE), plain[:, 0]).mean(dim=1, keepdim=True)
    sums = (squares * common).sum(dim=(1, 2, 3, 4))
    return loss + (sums / common.sum(dim=(1, 2, 3, 4)).clamp(min=1)).mean()


def _squares(found: Tensor, true: Tensor) -> Tensor:
    with torch.autocast(found.device.type, enabled=False):
        ours, theirs = (
            at_least_float32(values).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
            for values in (found, true)
        )
        return (ours - theirs).square()
