"""SimMIM: hide cubes of a volume behind a learnt token, and restore them with a light head.

Xie et al., *SimMIM: A Simple Framework for Masked Image Modeling*, CVPR 2022 (arXiv 2111.09886), in
three dimensions. Unlike in an autoencoder of visible patches (MAE), all patches go through the
network: those in hidden cubes with a learnt token in place of their embedding. So it also trains
networks that merge patches. The head, which is thrown away, gives the voxels. Public versions:

- ``Project-MONAI/research-contributions``, folder ``DAE`` (Valanarasu et al., arXiv 2307.16896):
  Swin UNETR with patches of 2 voxels, cubes of 16, 0.6 of them hidden. The defaults here.
- ``chenz53/MIM-Med3D`` (Chen et al., WACV 2023): a ViT with ``mask_ratio: 0.75``,
  ``rounding: down``, ``head: linear`` and ``token_std: 1``; the recipe ``simmim-vit``.
- ``microsoft/SimMIM``, in two dimensions: ``head: linear`` and squares of 32 pixels.
- ``MIC-DKFZ/nnssl``: ``mask_ratio: 0.75``, ``rounding: down``, ``error: squared`` and
  ``token_std: 1e-6``. Its network, Primus, with its cubes of 8 voxels and its head of transposed
  convolutions, is not among the backbones.

What differs here:

- The encoder is the backbone's own, with its last norm. On Swin that norm has no scale and shift;
  the reference has them and throws them away, and the head's first layer can do the same. On UNETR
  it is learnt; MIM-Med3D leaves it out.
- Convolutions of the head that are followed by a norm have no bias, since the norm takes it away.
- ``counted: all`` is the mean over all voxels; the first reference forgets to average there.
- The first reference knows more heads: transposed convolutions, residual blocks, and a decoder with
  skips, which its scripts name last. Which head and which loss gave the figures that articles state
  for "SimMIM" in 3D is not known.

MIM-Med3D on Swin hides single patches of 4 voxels, which can be guessed from the nearest voxels:
``cube`` could be set to that, but is not meant to be.

Handed on are the weights that make the tokens: on Swin UNETR those of the Swin transformer, which
are 19 % of the encoder (35 % with ``use_v2``).
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.masking import draw_cells, spread
from voco.backbone import Backbone, MaskedBackbone, Part
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.health import masked_mean
from voco.nn.unit import at_least_float32
from voco.nn.upsampling import upsampler
from voco.shapes import Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Cells = Bool[Tensor, "b i j k"]
"""Which cubes of each volume."""
Error = Literal["absolute", "squared"]

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""
_SHOWN = 4


class SimMIMConfig(MethodConfig):
    """Settings of SimMIM."""

    name: Literal["simmim"] = "simmim"
    """Selects this method."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a volume (Swin UNETR and ViT references); multiples of ``cube``."""
    cube: Sides3 = (16, 16, 16)
    """Voxels of a cube that is hidden or seen as a whole (Swin UNETR and ViT references); whole
    patches of the network, which on Swin UNETR have 2 voxels and on UNETR 16."""
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """Share of the cubes that are hidden: 0.6 in SimMIM and its Swin UNETR version, 0.75 in
    MIM-Med3D and nnssl."""
    rounding: Literal["up", "down"] = "up"
    """To which whole number of cubes: ``up`` in SimMIM and its Swin UNETR version, ``down`` in
    MIM-Med3D and nnssl."""
    token_std: NonNegativeFloat = 0.02
    """Standard deviation of the numbers that the token starts with: 0.02 in SimMIM and its Swin
    UNETR version, 1 in MIM-Med3D, 1e-6 in nnssl."""
    head: Literal["upsampling", "linear"] = "upsampling"
    """From the last map to voxels: convolutions between trilinear steps (``vae2`` of the Swin UNETR
    reference), or one linear layer to all voxels of a place (SimMIM, MIM-Med3D; the Swin UNETR
    reference calls it ``pixel_shuffle``)."""
    error: Error = "absolute"
    """Of a voxel: ``absolute`` in all references but nnssl, which has ``squared``."""
    counted: Literal["hidden", "all"] = "hidden"
    """Which voxels make the loss: ``hidden`` in all references; ``all`` is an option of the Swin
    UNETR one."""

    @model_validator(mode="after")
    def _cubes_fill_the_crop_and_are_hidden_in_part(self) -> "SimMIMConfig":
        if any(side % edge for side, edge in zip(self.crop, self.cube, strict=True)):
            raise ValueError(f"crop {self.crop} must be a whole number of cubes of {self.cube}")
        total = math.prod(self.grid)
        if not 0 < self.hidden_cubes < total:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} hides {self.hidden_cubes} of {total} cubes; at "
                "least one must be hidden and one seen. Choose another ratio, a larger crop or "
                "smaller cubes"
            )
        return self

    @property
    def grid(self) -> Shape3:
        """Cubes along each axis."""
        x, y, z = (side // edge for side, edge in zip(self.crop, self.cube, strict=True))
        return (x, y, z)

    @property
    def hidden_cubes(self) -> int:
        """How many cubes of a volume are hidden."""
        share = math.prod(self.grid) * self.mask_ratio
        return math.ceil(share) if self.rounding == "up" else int(share)

    def build(self, backbone: Backbone) -> "SimMIM":
        """SimMIM around a backbone.

        Raises:
            ConfigError: If the backbone cannot hide patches, or does not take this size.
        """
        return SimMIM(self, backbone)


class Views(NamedTuple):
    """Volumes, and which of their cubes are hidden."""

    volumes: Volumes
    hidden: Cells


class SimMIM(Method):
    """Restoring hidden cubes.

    Args:
        config: The settings.
        backbone: The network to train; only what makes its tokens is.

    Raises:
        ConfigError: If the backbone cannot hide patches, does not take volumes of this size, or
            has patches that do not fill the cubes.
    """

    def __init__(self, config: SimMIMConfig, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, MaskedBackbone):
            raise ConfigError(
                f"simmim hides patches from the network, and {type(backbone).__name__} has none "
                "that a token can stand in for. Backbones that fit: swin_unetr, unetr."
            )
        backbone.check_size(config.crop)
        self.config, self.window, self.backbone = config, config.crop, backbone
        self.patches = patches_of(config.cube, backbone.patch)
        channels, stride = backbone.config.in_channels, backbone.strides[-1]
        token = torch.empty(backbone.embedding_width).normal_(std=config.token_std)
        self.mask_token = nn.Parameter(token)
        make = upsampling_head if config.head == "upsampling" else linear_head
        self.head = make(backbone.channels[-1], stride, channels)
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        hidden = spread(torch.zeros(1, *config.grid).bool(), self.patches).to("meta")
        freeze_unreached(
            backbone, lambda network: network.encode_masked(probe, hidden, token.to("meta"))
        )

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Choose which cubes are hidden; nothing else is done to the volumes (Swin reference)."""
        config = self.config
        hidden = draw_cells(step.draws.child(1), len(volumes), config.grid, config.hidden_cubes)
        return Views(volumes, hidden.to(volumes.device))

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """The loss of a batch, and what a guess would cost."""
        volumes, hidden = self.views(batch, step)
        loss = self._cost(self._restored(volumes, hidden), volumes, hidden)
        return Outcome({"reconstruction": loss}, self._health(volumes, hidden))

    def handover(self) -> Backbone:
        """The backbone; token and head stay behind."""
        return self.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """What makes the tokens; convolutions beside it are not trained."""
        return ("tokens",)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """What is seen of volumes, all of them with hidden cubes restored, and as they were."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            found = self._restored(*views).to(views.volumes)
        voxels = spread(views.hidden, self.config.cube)[:, None]
        pictures = {
            "seen": views.volumes.masked_fill(voxels, 0),
            "restored": torch.where(voxels, found, views.volumes),
            "volume": views.volumes,
        }
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(views.volumes))
            for name, images in slices.items()
        ]

    def _restored(self, volumes: Volumes, hidden: Cells) -> Volumes:
        """What is predicted of all voxels."""
        patches = spread(hidden, self.patches)
        return self.head(self.backbone.encode_masked(volumes, patches, self.mask_token))

    def _cost(self, found: Volumes, volumes: Volumes, hidden: Cells) -> Float[Tensor, ""]:
        cells = hidden if self.config.counted == "hidden" else torch.ones_like(hidden)
        voxels = spread(cells, self.config.cube)
        return reconstruction_loss(found, volumes, voxels, self.config.error)

    @torch.no_grad()
    def _health(self, volumes: Volumes, hidden: Cells) -> dict[str, Tensor]:
        """What a guess that knows nothing of the hidden cubes costs, and how many are empty.

        ``loss_chance`` is of the one value that fits the seen voxels of a volume best.
        ``uniform_share``: of the hidden cubes, those of a single intensity.
        """
        guess = best_constant(volumes, spread(hidden, self.config.cube), self.config.error)
        return {
            "loss_chance": self._cost(guess, volumes, hidden),
            "uniform_share": masked_mean(uniform(volumes, self.config.cube).float(), hidden),
        }


def patches_of(cube: Shape3, patch: Shape3) -> Shape3:
    """Patches in a cube along each axis.

    Raises:
        ConfigError: If they do not fill it.
    """
    if any(side % edge for side, edge in zip(cube, patch, strict=True)):
        fits = tuple(
            max(1, round(side / edge)) * edge for side, edge in zip(cube, patch, strict=True)
        )
        raise ConfigError(
            f"method.cube {cube} must be whole patches of the network, which have {patch} voxels. "
            f"The nearest that fits is {fits}."
        )
    x, y, z = (side // edge for side, edge in zip(cube, patch, strict=True))
    return (x, y, z)


# ---- heads ------------------------------------------------------------------------------------


def upsampling_head(features: int, stride: int, channels: int) -> nn.Sequential:
    """Half the channels and twice the sides, as often as it takes to get to voxels.

    Args:
        features: Channels of the map.
        stride: Voxels per place of the map along an axis; a power of two.
        channels: Of a volume.
    """
    doublings = stride.bit_length() - 1
    widths = [max(1, features >> times) for times in range(doublings + 1)]
    return upsampler(widths, channels)


def linear_head(features: int, stride: int, channels: int) -> nn.Sequential:
    """One linear layer from a place of the map to all of its voxels.

    Args:
        features: Channels of the map.
        stride: Voxels per place of the map along an axis.
        channels: Of a volume.
    """
    places = "b (c x y z) i j k -> b c (i x) (j y) (k z)"
    return nn.Sequential(
        nn.Conv3d(features, channels * stride**3, 1),
        Rearrange(places, x=stride, y=stride, z=stride),
    )


# ---- losses and guesses -----------------------------------------------------------------------


def reconstruction_loss(
    found: Volumes, true: Volumes, counted: Bool[Tensor, "b x y z"], error: Error
) -> Float[Tensor, ""]:
    """Mean error of the voxels that count, over all channels.

    In at least float32, with autocast off.

    Args:
        found: Predictions.
        true: The volumes.
        counted: Which voxels; at least one.
        error: ``absolute`` or ``squared``.
    """
    with torch.autocast(found.device.type, enabled=False):
        cut = at_least_float32(found).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        apart = cut - at_least_float32(true)
        errors = apart.square() if error == "squared" else apart.abs()
        return (errors * counted[:, None]).sum() / (counted.sum() * true.shape[1])


def best_constant(volumes: Volumes, hidden: Bool[Tensor, "b x y z"], error: Error) -> Volumes:
    """For each channel of each volume the one value with the least error where voxels are seen.

    That is the median for absolute errors and the mean for squared ones.
    """
    seen = at_least_float32(volumes).masked_fill(hidden[:, None], torch.nan).flatten(2)
    best = seen.nanmedian(dim=2).values if error == "absolute" else seen.nanmean(dim=2)
    return best[:, :, None, None, None].expand_as(volumes)


def uniform(volumes: Volumes, cube: Shape3) -> Cells:
    """Which cubes are of a single intensity in every channel."""
    return (F.max_pool3d(volumes, cube) == -F.max_pool3d(-volumes, cube)).all(dim=1)
