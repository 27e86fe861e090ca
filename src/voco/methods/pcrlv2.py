"""PCRLv2: restore a volume without skips, and agree with other looks at every stage of the decoder.

Zhou et al., *A Unified Visual Information Preservation Framework for Self-supervised Pre-training
in Medical Image Analysis*, IEEE TPAMI 2023 (arXiv 2301.00772); code ``RL4M/PCRLv2``. Of each
volume the network sees two large crops that overlap and six small ones from around them.

- *Restoration*: the first large crop as it was before its intensities were changed and patches of
  it swapped; at the end of the decoder, and once more from one of its stages, drawn at random, with
  a weight that falls to 0 along a cosine (``deep_restoration``).
- *Agreement*: at that same stage, the embedding of one large crop predicts that of the other, as in
  SimSiam: no negatives, no copy of the network, no gradient through what is predicted.
- *Local agreement*: so does each large crop with each small one, at stages of their own.

*Skips.* The reference's decoder has none, so that nothing passes by the coarsest level. Here the
decoder is the backbone's own, and what would come across its skips is zero (``skips: false``). It
costs the convolutions over those zeros, and has this to be said for it: what is handed on, encoder
and decoder, is the library's network with all of its skips, and what the authors advise, adding
skips when fine-tuning for segmentation, is just to fine-tune it. The decoder's weights for what
comes up are then trained, those for what comes across are as they started. Layers that lead to
skips only (``encoder1`` to ``encoder4`` of Swin UNETR and UNETR) are not trained at all. ``skips:
true`` trains everything, and lets detail pass by.

What differs from the code:

- Stages are drawn for each volume, in the code once for a batch: the same mean, less chance.
- Batch norm in the heads has no memory and sees the batch of all processes. A batch of a single
  volume has nothing to agree on.
- In the network itself the norm is the backbone's.
- A step whose loss is above 1000 is skipped in the code. With a sigmoid no loss comes near that.
- Small crops lie between the outer faces of the two large ones; in the code they may begin up to 3
  voxels beyond, and be cut off by the border. The published script for preparing data stores the
  two large crops a second time where it should store the small ones; this follows the article.
- Crops are drawn anew in every step; the reference draws 16 sets of each scan once.
- Changes of intensity are those of torchio before its version 2, with all numbers written out
  here; blur has one width along all axes. Two patches that overlap are not swapped.
- Crops come out of a window, whose size is our choice, not out of a whole scan; they are resampled
  linearly, without smoothing before.
- The reference leaves out crops with much air; ``windows.foreground`` keeps windows on the body.
- Training is by the optimizer of the recipe, AdamW; the reference has SGD.

nnssl's port takes the first small crop for each of the six, adds their terms up, and leaves the
weight of the stage at 1; none of this is here.

The network sees crops standardised each by itself, as in the code. Where volumes for fine-tuning
are not, ``standardise: false`` keeps the recipe's range.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.appearance import add_noise, blurred
from voco.augment.blocks import between
from voco.augment.cut import cut_to
from voco.augment.intensity import IntensityRange, scaled, unscaled
from voco.augment.pairs import overlapping_boxes, swayed
from voco.backbone import Backbone
from voco.draws import Draws
from voco.method import Method, MethodConfig, Panel, boxes_panel, grey, middle_slices
from voco.nn.convolution import Conv3d
from voco.nn.freeze import freeze_unreached
from voco.nn.heads import BatchStandardisation, projector
from voco.nn.health import effective_rank
from voco.nn.info_nce import pair_health
from voco.nn.pooling import level_mean
from voco.nn.unit import at_least_float32, unit
from voco.shapes import Crops, Level, Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Embeddings = Float[Tensor, "... e"]

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""
_SHOWN = 4


class PCRLv2Config(MethodConfig):
    """Settings of PCRLv2."""

    name: Literal["pcrlv2"] = "pcrlv2"
    """Selects this method."""
    window: Sides3 = (128, 128, 112)
    """Voxels of the window that crops are cut from; our choice (a whole scan in the reference)."""
    sizes: tuple[Sides3, ...] = Field(
        default=((96, 96, 64), (96, 96, 96), (112, 112, 64), (64, 64, 32)), min_length=1
    )
    """Voxels that a large crop may have in the window (reference)."""
    least_overlap: float = Field(default=0.3, ge=0, lt=1)
    """What two large crops share is more than this share of what they cover together
    (reference)."""
    crop: Sides3 = (64, 64, 32)
    """Voxels that a large crop is resampled to (reference)."""
    local_count: PositiveInt = 6
    """Small crops of each volume (reference)."""
    local_sizes: tuple[Sides3, ...] = Field(
        default=((32, 32, 16), (16, 16, 16), (32, 32, 32), (8, 8, 8)), min_length=1
    )
    """Voxels that a small crop may have in the window (reference)."""
    local_crop: Sides3 = (16, 16, 16)
    """Voxels that a small crop is resampled to (reference). Some backbones take none that small:
    three or four stages of ``resenc_unet`` do."""
    intensities: IntensityRange = (0.0, 1.0)
    """Least and largest intensity of the volumes: 0 and 1 for windows and percentiles, -5 and 5
    for z-scores. Changes and targets are in that range."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring a crop, and what is to be restored of it, along x (reference)."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """By how much each axis of both is stretched or shrunk at most, as a share (reference)."""
    degrees: NonNegativeFloat = 10.0
    """By how much both are turned about each axis at most (reference)."""
    blur: NonNegativeFloat = 2.0
    """Largest standard deviation of the blur of a crop, in voxels (reference)."""
    noise: NonNegativeFloat = 0.25
    """Largest standard deviation of the noise of a crop (reference)."""
    log_gamma: NonNegativeFloat = 0.3
    """Largest logarithm, up or down, of the power that intensities are raised to (reference)."""
    swaps: NonNegativeInt = 100
    """How often two patches of a large crop are swapped (reference: torchio's default)."""
    swap_patch: Sides3 = (8, 4, 4)
    """Voxels of such a patch (reference)."""
    standardise: bool = True
    """Whether crops are brought to zero mean and unit variance, each by itself, before the network
    sees them (reference). What is to be restored never is."""
    skips: bool = False
    """Whether the decoder gets what comes across its skips, or zeros (reference: it has none)."""
    sigmoid: bool = True
    """Whether outputs pass through a sigmoid (reference)."""

    @model_validator(mode="after")
    def _fit_together(self) -> "PCRLv2Config":
        for size in self.sizes:
            if _exceeds(size, self.window):
                raise ValueError(f"size {size} does not fit into the window {self.window}")
            for local in self.local_sizes:
                if _exceeds(local, size):
                    raise ValueError(f"a small crop of {local} does not fit into a large of {size}")
        if _exceeds(self.swap_patch, self.crop):
            raise ValueError(f"swap_patch {self.swap_patch} does not fit into crop {self.crop}")
        return self

    def build(self, backbone: Backbone) -> "PCRLv2":
        """PCRLv2 around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of these sizes.
        """
        return PCRLv2(self, backbone)


class Views(NamedTuple):
    """What the network sees, and what it is to make of it.

    Attributes:
        looks: The two large crops of each volume, changed.
        small: The small ones, changed.
        target: What is to be restored of the first large crop, from 0 to 1.
        stages: Of the decoder: where the large crops agree and the first is restored, and then
            where each large crop agrees with each small one.
        boxes: Where the crops were cut out, the large ones first.
    """

    looks: Crops
    small: Crops
    target: Volumes
    stages: Int64[Tensor, "b draws"]
    boxes: Int64[Tensor, "b n 2 3"]


class Embedded(NamedTuple):
    """Embeddings at one stage, and what they predict of others."""

    embedding: Embeddings
    prediction: Embeddings


class StageHead(nn.Module):
    """What is made of one stage of the decoder.

    Args:
        features: Channels of the stage.
        channels: Of the volumes.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.norm = BatchStandardisation(features=features)
        self.predictor = projector((features, 2 * features, features), learnt=True)
        # No bias: the standardisation after it would take it away.
        self.output = Conv3d(features, channels, 3, padding=1, bias=False)
        self.output_norm = BatchStandardisation(features=channels)

    def forward(self, stage: Level) -> Embedded:
        """Embeddings and predictions, one row for each volume."""
        embedding = self.norm(level_mean(stage))
        return Embedded(embedding, self.predictor(embedding))

    def restored(self, stage: Level) -> Level:
        """What the stage restores, at its own resolution, before the sigmoid."""
        voxels = at_least_float32(self.output(stage)).movedim(1, -1)
        return self.output_norm(voxels.flatten(0, 3)).view_as(voxels).movedim(-1, 1)


class PCRLv2(Method):
    """Restoration without skips, and agreement at every stage of the decoder.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own, with a channel for each of the input.

    Raises:
        ConfigError: If the backbone does not take crops of these sizes.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: PCRLv2Config, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        backbone.check_size(config.local_crop)
        self.config = config
        self.window = config.window
        self.backbone = backbone
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(
            backbone, lambda network: decoded_stages(network, probe, skips=config.skips)[-1]
        )
        self.heads = nn.ModuleList(
            StageHead(features, channels) for features in backbone.stage_channels
        )
        self.output = nn.Conv3d(backbone.decoded_channels, channels, 1)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut large and small crops, move and change them; where the volumes are."""
        config, draws, count = self.config, step.draws, len(volumes)
        large = overlapping_boxes(
            draws.child(1), count, config.sizes, config.window, config.least_overlap
        )
        inner = draw_inner_boxes(draws.child(2), large, config.local_count, config.local_sizes)
        looks = self._moved(cut_to(volumes, large, config.crop), draws.child(3))
        small = self._moved(cut_to(volumes, inner, config.local_crop), draws.child(4))
        number = 1 + 2 * config.local_count
        stages = draws.child(7).integers(count, number, high=len(self.heads))
        return Views(
            self._changed(looks, draws.child(5), config.swaps),
            self._changed(small, draws.child(6), 0),
            looks[:, 0],
            stages.to(volumes.device),
            torch.cat([large, inner], dim=1),
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        views = self.views(batch, step)
        count = len(batch)
        stages = self._stages(views.looks.transpose(0, 1).flatten(0, 1))
        local_stages = self._stages(views.small.flatten(0, 1))
        halves = [stage.chunk(2) for stage in stages]
        first, second = (
            [head(half[at]) for head, half in zip(self.heads, halves, strict=True)]
            for at in range(2)
        )
        small = [
            Embedded(*(rows.unflatten(0, (count, -1)) for rows in head(stage)))
            for head, stage in zip(self.heads, local_stages, strict=True)
        ]
        drawn = views.stages[:, 0]
        weight = deep_weight(step.progress)
        losses = {
            "restoration": restoration_errors(self._restored(halves[-1][0]), views.target).mean(),
            "agreement": chosen(agreements(first, second), drawn).mean(),
            "deep_restoration": weight
            * chosen(self._deep_errors([half[0] for half in halves], views.target), drawn).mean(),
            "local_agreement": local_agreement((first, second), small, views.stages[:, 1:]),
        }
        return Outcome(losses, self._health(first, second, views.target, weight))

    def handover(self) -> Backbone:
        """The backbone, encoder and decoder; the method's own layers stay behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """A window with its crops, crops as the network sees them, and what is to be restored."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            restored = self._restored(self._stages(views.looks[:, 0])[-1])
        box = views.boxes[0]
        names = ["first", "second", *map(str, range(1, len(box) - 1))]
        level = int(box[0, :, 2].sum()) // 2
        pictures = {
            "first crop": views.looks[:, 0],
            "restored": restored,
            "target": views.target,
            "second crop": views.looks[:, 1],
            "first small crop": views.small[:, 0],
        }
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [boxes_panel("window with crops", volumes[0], box, names, level)] + [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(restored))
            for name, images in slices.items()
        ]

    def _moved(self, crops: Crops, draws: Draws) -> Crops:
        config = self.config
        return swayed(
            scaled(crops, config.intensities),
            draws,
            flip_probability=config.flip_probability,
            scale=config.scale,
            degrees=config.degrees,
        )

    def _changed(self, crops: Crops, draws: Draws, swaps: int) -> Crops:
        """Crops from 0 to 1 as the network sees them."""
        config, (count, each) = self.config, crops.shape[:2]
        flat = blurred(crops, draws.child(1), config.blur).flatten(0, 1)
        stds = draws.child(2).uniform(count * each) * config.noise
        seeds = draws.child(3).integers(count * each, high=1 << 62)
        powers = (draws.child(4).uniform(count * each) * 2 - 1) * config.log_gamma
        flat = add_noise(flat, stds.to(flat), seeds)
        flat = to_power(flat, powers.exp())
        flat = swapped(flat, draws.child(5), swaps, config.swap_patch)
        flat = standardised(flat) if config.standardise else unscaled(flat, config.intensities)
        return flat.view_as(crops)

    def _stages(self, volumes: Volumes) -> list[Level]:
        return decoded_stages(self.backbone, volumes, skips=self.config.skips)

    def _restored(self, decoded: Level) -> Volumes:
        return self._ended(at_least_float32(self.output(decoded)))

    def _ended(self, found: Volumes) -> Volumes:
        if self.config.sigmoid:
            return found.sigmoid()
        return found.clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)

    def _deep_errors(self, stages: list[Level], target: Volumes) -> Float[Tensor, "b stages"]:
        """What each stage costs, if it is to restore the target."""
        errors = []
        for head, stage in zip(self.heads, stages, strict=True):
            # After the sigmoid, as in the reference.
            found = self._ended(head.restored(stage))  # pyright: ignore[reportCallIssue]
            errors.append(restoration_errors(_enlarged(found, target), target))
        return torch.stack(errors, dim=1)

    @torch.no_grad()
    def _health(
        self, first: list[Embedded], second: list[Embedded], target: Volumes, weight: float
    ) -> dict[str, Tensor]:
        """How well pairs are told at the coarsest stage, and whether embeddings collapse.

        ``spread``: how much embeddings at unit length vary, over all stages; 1 in all directions
        alike, 0 if they are all the same. ``restoration_chance``: of restoring the mean of each
        target; ``loss_chance``: of that with embeddings that have nothing to do with each other.
        """
        own, other = first[0].embedding, second[0].embedding
        health = pair_health(own, other, torch.arange(len(own), device=own.device))
        spreads = [
            spread(torch.cat([a.embedding, b.embedding]))
            for a, b in zip(first, second, strict=True)
        ]
        guess = target.mean(dim=(1, 2, 3, 4), keepdim=True).expand_as(target)
        chance = restoration_errors(guess, target).mean()
        health["spread"] = torch.stack(spreads).mean()
        health["effective_rank"] = effective_rank(own)
        health["restoration_chance"] = chance
        health["loss_chance"] = (1 + weight) * chance
        health["outside_share"] = ((target < 0) | (target > 1)).float().mean()
        return health


def decoded_stages(backbone: Backbone, volumes: Volumes, *, skips: bool) -> list[Level]:
    """Features after each stage of the decoder, coarsest first.

    Args:
        backbone: The network.
        volumes: What it sees.
        skips: Whether all levels reach the decoder, or the coarsest alone, with zeros for others.
    """
    pyramid = backbone.encode(volumes)
    if not skips:
        pyramid = [*(torch.zeros_like(level) for level in pyramid[:-1]), pyramid[-1]]
    return backbone.decode_stages(pyramid)


# ---- losses -----------------------------------------------------------------------------------


def agreements(first: list[Embedded], second: list[Embedded]) -> Float[Tensor, "... stages"]:
    """Minus the cosine of predictions and embeddings at each stage, the mean of both directions.

    From -1, where both predict each other; 0 where they have nothing to do with each other. What
    is predicted gets no gradient.
    """
    ways = [
        (cosine(one.prediction, other.embedding), cosine(other.prediction, one.embedding))
        for one, other in zip(first, second, strict=True)
    ]
    return torch.stack([-(forth + back) / 2 for forth, back in ways], dim=-1)


def local_agreement(
    large: tuple[list[Embedded], ...],
    small: list[Embedded],
    stages: Int64[Tensor, "b draws"],
) -> Float[Tensor, ""]:
    """The mean agreement of each large crop with each small one.

    Args:
        large: Of the first and of the second large crops, at every stage.
        small: Of the small crops, volume by volume.
        stages: Which counts, for the first large crop with every small one, then for the second.
    """
    found = []
    for looks, drawn in zip(large, stages.chunk(len(large), dim=1), strict=True):
        wide = [Embedded(*(rows[:, None] for rows in embedded)) for embedded in looks]
        found.append(chosen(agreements(wide, small), drawn))
    return torch.stack(found).mean()


def cosine(prediction: Embeddings, embedding: Embeddings) -> Float[Tensor, "..."]:
    """Cosine, in at least float32; no gradient reaches the embedding."""
    return (unit(prediction) * unit(embedding.detach())).sum(dim=-1)


def chosen(values: Float[Tensor, "*b stages"], stages: Int64[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The value of the stage that was drawn."""
    return values.gather(-1, stages[..., None])[..., 0]


def restoration_errors(found: Volumes, target: Volumes) -> Float[Tensor, "b"]:
    """Mean squared error of each volume; in at least float32."""
    errors = at_least_float32(found) - at_least_float32(target)
    return errors.square().mean(dim=(1, 2, 3, 4))


def deep_weight(progress: float) -> float:
    """Weight of restoring from a stage: from 1 at the start to 0 at the end, along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def spread(rows: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """How much rows at unit length vary: 1 in all directions alike, 0 not at all.

    The mean over features of the standard deviation, times the root of their number.
    """
    return unit(rows).std(dim=0, correction=0).mean() * math.sqrt(rows.shape[1])


# ---- crops and their changes ------------------------------------------------------------------


def draw_inner_boxes(
    draws: Draws,
    boxes: Int64[Tensor, "b n 2 3"],
    number: int,
    sizes: tuple[Shape3, ...],
) -> Int64[Tensor, "b m 2 3"]:
    """Boxes of many sizes, anywhere between the outer faces of others.

    Args:
        draws: Random numbers.
        boxes: The others, each of them at least as large as any of the sizes.
        number: Boxes of each volume.
        sizes: Voxels that a box may have; each is equally likely.
    """
    count = len(boxes)
    low, high = boxes[:, :, 0].amin(dim=1), boxes[:, :, 1].amax(dim=1)
    size = torch.tensor(sizes)[draws.integers(count, number, high=len(sizes))]
    start = between(draws.uniform(count, number, 3), low[:, None], high[:, None] - size)
    return torch.stack([start, start + size], dim=2)


def to_power(volumes: Volumes, powers: Float[Tensor, "b"]) -> Volumes:
    """Intensities raised to a power, with the sign that they have."""
    return volumes.sign() * volumes.abs() ** powers.to(volumes).view(-1, 1, 1, 1, 1)


def swapped(volumes: Volumes, draws: Draws, swaps: int, patch: Shape3) -> Volumes:
    """Volumes with patches swapped in pairs, one pair after the other.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        swaps: How many pairs; two patches that overlap stay.
        patch: Voxels of a patch.
    """
    if not swaps:
        return volumes
    x, y, z = volumes.shape[2:]
    room = torch.tensor((x, y, z)) - torch.tensor(patch)
    starts = between(draws.uniform(len(volumes), swaps, 2, 3), torch.zeros_like(room), room)
    order = swapped_order(starts, (x, y, z), patch).to(volumes.device)
    return volumes.flatten(2).take_along_dim(order[:, None], dim=2).view_as(volumes)


def swapped_order(
    starts: Int64[Tensor, "b n 2 3"], size: Shape3, patch: Shape3
) -> Int64[Tensor, "b v"]:
    """From which voxel each voxel of a volume comes, if pairs of patches are swapped.

    Args:
        starts: First voxels of both patches of each pair; the pairs are swapped in their order.
        size: Voxels of a volume; they are numbered with z innermost.
        patch: Voxels of a patch.
    """
    steps = torch.tensor([size[1] * size[2], size[2], 1])
    inner = (torch.cartesian_prod(*(torch.arange(side) for side in patch)) * steps).sum(dim=1)
    one, other = (starts * steps).sum(dim=-1).unbind(dim=2)
    apart = ((starts[:, :, 0] - starts[:, :, 1]).abs() >= torch.tensor(patch)).any(dim=-1)
    other = torch.where(apart, other, one)
    order = torch.arange(math.prod(size)).repeat(len(starts), 1)
    for pair in range(starts.shape[1]):
        here, there = one[:, pair, None] + inner, other[:, pair, None] + inner
        held = order.gather(1, here)
        order.scatter_(1, here, order.gather(1, there))
        order.scatter_(1, there, held)
    return order


def standardised(volumes: Volumes) -> Volumes:
    """Volumes at zero mean and unit variance, each by itself; one of a single intensity is zero."""
    # In float64 the mean of a volume does not depend on how many others there are.
    axes = (1, 2, 3, 4)
    centred = volumes - volumes.mean(dim=axes, keepdim=True, dtype=torch.float64).to(volumes)
    variance = centred.double().square().mean(dim=axes, keepdim=True)
    return centred * (variance + 1e-8).rsqrt().to(volumes)


def _enlarged(found: Level, target: Volumes) -> Volumes:
    x, y, z = target.shape[2:]
    return F.interpolate(found, size=(x, y, z), mode="trilinear", align_corners=False)


def _exceeds(size: Shape3, room: Shape3) -> bool:
    return any(side > most for side, most in zip(size, room, strict=True))
