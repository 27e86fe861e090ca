"""S3D: hide blocks of a volume from a U-Net, and have it paint them.

Wald et al., *Revisiting MAE pre-training for 3D medical image segmentation*, 2024 (arXiv
2410.23132); code ``MIC-DKFZ/nnssl``, after SparK (Tian et al., ICLR 2023). Two variants:

- ``sparse`` (nnssl's ``SparkMAETrainer``): the encoder works on what is seen alone
  (:mod:`voco.nn.sparse`); then, in each level, what is hidden is filled with a learnt token and,
  but for the finest level, passed through a convolution; the decoder paints the hidden voxels.
- ``dense`` (nnssl's ``BaseMAETrainer``): hidden voxels are 0 in the input, and nothing else.

Both minimise the squared error of hidden voxels, their intensities as they are. Which settings
stand behind the article's own figures (batch, learning rate, ratio, whether the input was masked)
is not known. What differs here:

- The input is zero where it is hidden, as in SparK. nnssl's sparse encoder is given the whole
  volume, so that its first convolution looks one voxel over the edge of what is seen;
  ``mask_input: false`` restores that.
- Each layer of the encoder is there once. nnssl's conversion makes two of every convolution and
  saves both; only that under ``all_modules`` is trained.
- A level coarser than the blocks is seen as a whole; nnssl has a token for it too, which nothing
  uses, so here there is none.
- Volumes are mirrored. nnssl also rotates some by up to 30 degrees and scales them by 0.7 to 1.4.
- The output layer is one of the method's own, with a channel for each of the input.
- Training is by the optimizer of the recipe, AdamW, where nnssl has SGD with Nesterov momentum.

Not here are nnssl's trainers that keep removed faces out of the loss, take windows around anatomy,
choose scans by quality, or fill in no tokens.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.spatial import draw_flips, flip
from voco.backbone import Backbone, Part
from voco.draws import Draws
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.convolution import Conv3d
from voco.nn.freeze import freeze_unreached
from voco.nn.instance_norm import InstanceNorm3d
from voco.nn.sparse import Seen, layers_of, size_of, sparse, unfit
from voco.nn.unit import at_least_float32
from voco.shapes import Level, Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]

_TOKEN_STD = 0.02
_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""
_SHOWN = 4


class S3DConfig(MethodConfig):
    """Settings of S3D."""

    name: Literal["s3d"] = "s3d"
    """Selects this method."""
    variant: Literal["sparse", "dense"] = "sparse"
    """Whether the encoder works on what is seen alone (S3D), or takes hidden voxels for zeros
    (nnssl's plain masked autoencoder, which fits every backbone)."""
    crop: Sides3 = (160, 160, 160)
    """Voxels of a volume (nnssl)."""
    block: PositiveInt = 16
    """Voxels along each edge of a block (nnssl)."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the blocks that are hidden (nnssl)."""
    largest_mask_ratio: float | None = Field(default=None, gt=0, lt=1)
    """If set, the share is drawn anew for each batch, from ``mask_ratio`` to this (0.6 and 0.9 in
    nnssl's variable trainer)."""
    mask_input: bool = True
    """Whether hidden voxels are zero in the input of the sparse encoder (SparK; not in nnssl)."""
    efficient: bool = False
    """Whether levels are filled with tokens alone, without norms and convolutions (nnssl's
    ``EfficientSpark3D``)."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring along an axis, for each axis alone (what the library that nnssl uses does)."""
    hand_on_decoder: bool = False
    """Whether the decoder's weights are handed on too; nnssl hands on encoder and stem."""

    @model_validator(mode="after")
    def _fit_together(self) -> "S3DConfig":
        if any(side % self.block for side in self.crop):
            fits = tuple(max(1, round(side / self.block)) * self.block for side in self.crop)
            raise ValueError(
                f"crop {self.crop} cannot be cut into blocks of {self.block} voxels; the nearest "
                f"that can is {fits}"
            )
        most = self.largest_mask_ratio
        if most is not None and most < self.mask_ratio:
            raise ValueError(f"largest_mask_ratio {most} is below mask_ratio {self.mask_ratio}")
        if self.variant == "dense" and not self.mask_input:
            raise ValueError("variant dense needs mask_input, which alone hides anything from it")
        if self.variant == "dense" and self.efficient:
            raise ValueError("efficient is of variant sparse; variant dense fills nothing in")
        return self

    @property
    def ratios(self) -> tuple[float, float]:
        """Least and largest share of the blocks that are hidden."""
        return (self.mask_ratio, self.largest_mask_ratio or self.mask_ratio)

    @property
    def grid(self) -> Shape3:
        """Blocks along each axis."""
        x, y, z = (side // self.block for side in self.crop)
        return (x, y, z)

    def build(self, backbone: Backbone) -> "S3D":
        """S3D around a backbone.

        Raises:
            ConfigError: If the backbone's encoder cannot be made sparse, or it does not take
                volumes or blocks of these sizes.
        """
        return S3D(self, backbone)


class Views(NamedTuple):
    """Mirrored volumes, and which of their blocks are seen."""

    volumes: Volumes
    seen: Bool[Tensor, "b i j k"]


class S3D(Method):
    """A masked autoencoder on a network of convolutions.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own.

    Raises:
        ConfigError: If the backbone's encoder cannot be made sparse, it does not take volumes or
            blocks of these sizes, or too few blocks are left to hide and to see.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: S3DConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        _check_ratios(config)
        self.config = config
        self.window = config.crop
        self.backbone = backbone
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: network.decode(network.encode(probe)))
        self.fillers = nn.ModuleList()
        if config.variant == "sparse":
            _check_layers(backbone)
            _check_strides(config.block, backbone.strides)
            self.fillers.extend(
                Filler(
                    width,
                    hidden=stride <= config.block,
                    normalised=not config.efficient,
                    convolved=not config.efficient and level > 0,
                )
                for level, (width, stride) in enumerate(
                    zip(backbone.channels, backbone.strides, strict=True)
                )
            )
        self.head = nn.Conv3d(backbone.decoded_channels, channels, 1)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Mirror volumes, where they are, and choose which blocks are seen, on the CPU."""
        config, draws, count = self.config, step.draws, len(volumes)
        flips = draw_flips(draws.child(1), count, 1, config.flip_probability)
        seen = draw_seen(draws.child(2), count, config.grid, config.ratios)
        return Views(flip(volumes, flips.flatten(0, 1)), seen)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """The loss of a batch, and what a guess would cost."""
        volumes, blocks = self.views(batch, step)
        seen = Seen(blocks, volumes.device)
        found = self._painted(volumes, seen)
        hidden = ~seen.voxels(self.window)
        loss = reconstruction_loss(found, volumes, hidden)
        return Outcome({"reconstruction": loss}, painting_health(volumes, hidden))

    def handover(self) -> Backbone:
        """The backbone; what fills its levels, and the output layer, stay behind."""
        return self.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """The encoder, and the decoder if the settings say so."""
        return ("encoder", "decoder") if self.config.hand_on_decoder else ("encoder",)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """What is seen of volumes, all of them with what is painted, and as they were."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            seen = Seen(views.seen, volumes.device)
            found = self._painted(views.volumes, seen).to(views.volumes)
        pictures = {
            "seen": seen.only(views.volumes),
            "painted": torch.where(seen.voxels(self.window), views.volumes, found),
            "volume": views.volumes,
        }
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(views.volumes))
            for name, images in slices.items()
        ]

    def _painted(self, volumes: Volumes, seen: Seen) -> Volumes:
        return self.head(self.backbone.decode(self._pyramid(volumes, seen)))

    def _pyramid(self, volumes: Volumes, seen: Seen) -> list[Level]:
        """What the decoder gets."""
        shown = seen.only(volumes) if self.config.mask_input else volumes
        if self.config.variant == "dense":
            return self.backbone.encode(shown)
        with sparse(_encoder_layers(self.backbone), seen):
            pyramid = self.backbone.encode(shown)
        return [fill(level, seen) for fill, level in zip(self.fillers, pyramid, strict=True)]


class Filler(nn.Module):
    """Fills one level of a pyramid where nothing is seen, so that a usual decoder can go on.

    Args:
        channels: Of the level.
        hidden: Whether anything is hidden in the level; only then is there a token.
        normalised: Whether each channel is first brought to zero mean and unit variance over what
            is seen, without a learnt scale.
        convolved: Whether a convolution follows.
    """

    def __init__(self, channels: int, *, hidden: bool, normalised: bool, convolved: bool) -> None:
        super().__init__()
        self.token = None
        if hidden:
            self.token = nn.Parameter(torch.empty(channels))
            # Cut at one standard deviation, as in nnssl.
            nn.init.trunc_normal_(self.token, std=_TOKEN_STD, a=-_TOKEN_STD, b=_TOKEN_STD)
        self.norm = InstanceNorm3d(channels) if normalised else None
        self.conv = Conv3d(channels, channels, 3, padding=1) if convolved else None

    def forward(self, features: Level, seen: Seen) -> Level:
        """The level without gaps.

        Args:
            features: Zero where nothing is seen.
            seen: What is seen.
        """
        if self.norm is not None:
            features = seen.unpacked(self.norm(seen.packed(features)), like=features)
        if self.token is not None:
            token = self.token.to(features).view(1, -1, 1, 1, 1)
            features = torch.where(seen.voxels(size_of(features)), features, token)
        return features if self.conv is None else self.conv(features)


def draw_seen(
    draws: Draws, count: int, grid: Shape3, ratios: tuple[float, float]
) -> Bool[Tensor, "b i j k"]:
    """Which blocks of each volume are seen: everywhere as many, in all processes.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        grid: Blocks along each axis.
        ratios: Least and largest share of the blocks that are hidden, drawn once for all volumes.
    """
    low, high = ratios
    total = math.prod(grid)
    ratio = low + (high - low) * draws.shared()
    hidden = draws.permutations(count, total)[:, : hidden_count(total, ratio)]
    seen = torch.ones(count, total, dtype=torch.bool).scatter(1, hidden, value=False)
    return seen.view(count, *grid)


def hidden_count(total: int, ratio: float) -> int:
    """Of so many blocks, how many are hidden: the share, rounded down (nnssl)."""
    return int(total * ratio)


def reconstruction_loss(
    found: Volumes, true: Volumes, hidden: Bool[Tensor, "b 1 x y z"]
) -> Float[Tensor, ""]:
    """Mean squared error of hidden voxels; in at least float32, with autocast off."""
    with torch.autocast(found.device.type, enabled=False):
        cut = at_least_float32(found).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        errors = (cut - at_least_float32(true)).square()
        return (errors * hidden).sum() / (hidden.sum() * true.shape[1])


@torch.no_grad()
def painting_health(volumes: Volumes, hidden: Bool[Tensor, "b 1 x y z"]) -> dict[str, Tensor]:
    """What a guess that knows nothing of the hidden voxels costs, and how many they are.

    Returns:
        ``loss_chance``: of painting, in each channel, the mean of the volume's seen voxels.
        ``hidden_share``: of all voxels.
    """
    values, axes = at_least_float32(volumes), (2, 3, 4)
    total = (values * ~hidden).sum(dim=axes, keepdim=True)
    mean = total / (~hidden).sum(dim=axes, keepdim=True)
    return {
        "loss_chance": reconstruction_loss(mean.expand_as(values), values, hidden),
        "hidden_share": hidden.float().mean(),
    }


def _encoder_layers(backbone: Backbone) -> list[nn.Module]:
    return layers_of(backbone.network, backbone.encoder_prefixes)


def _check_layers(backbone: Backbone) -> None:
    others = unfit(_encoder_layers(backbone))
    if others:
        raise ConfigError(
            f"s3d runs an encoder on what is seen of a volume, which one of 3D convolutions, "
            f"pooling and instance norms can do; that of {type(backbone).__name__} also has "
            f"{', '.join(others)}. Backbones that fit: resenc_unet, unet; with method.variant "
            "dense, all do."
        )


def _check_strides(block: int, strides: tuple[int, ...]) -> None:
    finer = [stride for stride in strides if stride <= block]
    if any(block % stride for stride in finer):
        raise ConfigError(
            f"method.block {block} must be a multiple of every stride of the backbone that is not "
            f"above it, {finer}, so that each level can be cut into the same blocks. Choose one "
            f"of the strides {strides}, or a multiple of the largest."
        )


def _check_ratios(config: S3DConfig) -> None:
    total = math.prod(config.grid)
    # One value has no variance, so a norm at the resolution of the blocks needs two to be seen.
    least = 2 if config.variant == "sparse" else 1
    low, high = (hidden_count(total, ratio) for ratio in config.ratios)
    if low < 1 or total - high < least:
        raise ConfigError(
            f"Of the {total} blocks of method.crop {config.crop}, {low} to {high} would be hidden; "
            f"at least 1 must be hidden and {least} seen. Choose method.mask_ratio between "
            f"{1 / total:.3f} and {1 - least / total:.3f}, a larger method.crop, or a smaller "
            "method.block."
        )
