"""MAE3D: hide most of a volume's patches from a transformer, and have it paint them.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022 (arXiv 2111.06377), in
three dimensions. A volume is cut into cubes; the encoder sees only a few of them; a small
transformer, which is thrown away, gets what it made of those and a learnt token in place of each
hidden one, and regresses the hidden voxels. Two public versions in 3D:

- ``standardised``: ``cvlab-stonybrook/SelfMedMAE`` (Zhou et al., ISBI 2023): targets standardised
  within each cube, squared error, decoder of width 384.
- ``raw``: ``chenz53/MIM-Med3D`` (Chen et al., WACV 2023): intensities as they are, absolute error.
  Its decoder of width 512 with 8 heads and an MLP of 2048 is to be set.

The share of cubes that are hidden is 0.75 in the settings of both, but SelfMedMAE's own scripts
override it with 0.125; which of them its published figures have is not known. What differs here:

- The encoder is the backbone's own, with its learnt position code and its last norm; no class
  token. SelfMedMAE has a fixed code and such a token; MIM-Med3D leaves out the norm.
- The decoder's position code is SelfMedMAE's, fixed sines and cosines, in both.
- Windows are cut without regard to labels; SelfMedMAE cuts its own around them.
- The recipe's optimizer decays the mask token not at all, as all vectors.

What is handed on are the weights behind the tokens. Convolutions between tokens and decoder, which
some backbones have, are not trained by this.
"""

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.spatial import draw_flips, flip
from voco.backbone import Backbone, Part, TokenBackbone
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.unit import at_least_float32
from voco.shapes import Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Cubes = Float[Tensor, "b _ v"]
"""Voxels of cubes, one row for each."""

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""
_SHOWN = 4


class MAE3DConfig(MethodConfig):
    """Settings of MAE3D."""

    name: Literal["mae3d"] = "mae3d"
    """Selects this method."""
    variant: Literal["standardised", "raw"] = "standardised"
    """Targets and loss: cubes ``standardised`` each by itself and squared errors (SelfMedMAE), or
    ``raw`` intensities and absolute errors (MIM-Med3D)."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a volume (both references)."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the cubes that are hidden (settings of both references)."""
    flip_probability: float = Field(default=0.2, ge=0, le=1)
    """Of mirroring along an axis, for each axis alone (SelfMedMAE; 0 in MIM-Med3D)."""
    width: PositiveInt = 384
    """Length of the decoder's tokens (SelfMedMAE); a multiple of 6 and of ``heads``."""
    depth: PositiveInt = 8
    """Blocks of the decoder (both references)."""
    heads: PositiveInt = 12
    """Attention heads of a block of the decoder (SelfMedMAE)."""
    hidden: PositiveInt = 1536
    """Hidden units of a block's MLP in the decoder (SelfMedMAE)."""

    @model_validator(mode="after")
    def _width_divides(self) -> "MAE3DConfig":
        if self.width % 6 or self.width % self.heads:
            raise ValueError(
                f"width {self.width} must be a multiple of 6 (a sine and a cosine for each axis) "
                f"and of heads, {self.heads}"
            )
        return self

    def build(self, backbone: Backbone) -> "MAE3D":
        """MAE3D around a backbone.

        Raises:
            ConfigError: If the backbone cannot leave out tokens, or does not take this size.
        """
        return MAE3D(self, backbone)


class Views(NamedTuple):
    """Mirrored volumes, and a random order of their cubes, of which the first ones are seen."""

    volumes: Volumes
    order: Int64[Tensor, "b t"]


class MAE3D(Method):
    """A masked autoencoder on cubes.

    Args:
        config: The settings.
        backbone: The network to train; only what makes its tokens is.

    Raises:
        ConfigError: If the backbone cannot leave out tokens, does not take volumes of this size,
            or too few cubes are left to hide and to see.
    """

    def __init__(self, config: MAE3DConfig, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ConfigError(
                f"mae3d hides tokens from the network, and {type(backbone).__name__} has none that "
                "can be left out. Backbones that fit: unetr."
            )
        backbone.check_size(config.crop)
        self.config, self.window, self.backbone = config, config.crop, backbone
        sides = (side // cube for side, cube in zip(config.crop, backbone.patch, strict=True))
        x, y, z = sides
        self.grid: Shape3 = (x, y, z)
        total = math.prod(self.grid)
        self.seen = int(total * (1 - config.mask_ratio))
        if not 0 < self.seen < total:
            raise ConfigError(
                f"method.mask_ratio {config.mask_ratio} leaves {self.seen} of {total} cubes to be "
                "seen; at least one must be seen and one hidden. Choose it between "
                f"{1 / total:.3f} and {1 - 1 / total:.3f}, or a larger method.crop."
            )
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        keep = torch.zeros(1, self.seen, dtype=torch.int64, device="meta")
        freeze_unreached(backbone, lambda network: network.tokens(probe, keep))
        self.decoder = Decoder(
            config, backbone.width, self.grid, channels * math.prod(backbone.patch)
        )

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Mirror volumes and choose which cubes are seen; where the volumes are."""
        draws, count = step.draws, len(volumes)
        flips = draw_flips(draws.child(1), count, 1, self.config.flip_probability)
        order = draws.child(2).permutations(count, math.prod(self.grid))
        return Views(flip(volumes, flips.flatten(0, 1)), order.to(volumes.device))

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """The loss of a batch, and what guesses would cost."""
        volumes, order = self.views(batch, step)
        found = self._painted(volumes, order)
        cubes = to_cubes(volumes, self.backbone.patch)
        targets = standardised(cubes) if self.config.variant == "standardised" else cubes
        hidden = targets.take_along_dim(order[:, self.seen :, None], dim=1)
        loss = reconstruction_loss(found, hidden, self.config.variant)
        return Outcome({"reconstruction": loss}, self._health(cubes, hidden, order))

    def handover(self) -> Backbone:
        """The backbone; the decoder here is not the backbone's, and stays behind."""
        return self.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """What makes the tokens; convolutions beside it are not trained."""
        return ("tokens",)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """What is seen of volumes, all of them painted, and as they were."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            pictures = self._pictures(*views)
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(views.volumes))
            for name, images in slices.items()
        ]

    def _painted(self, volumes: Volumes, order: Int64[Tensor, "b t"]) -> Cubes:
        """What is predicted of the hidden cubes, in their order."""
        tokens = self.backbone.tokens(volumes, order[:, : self.seen])
        return self.decoder(tokens, order)

    def _pictures(self, volumes: Volumes, order: Int64[Tensor, "b t"]) -> dict[str, Volumes]:
        cubes = to_cubes(volumes, self.backbone.patch)
        found = self._painted(volumes, order).to(cubes)
        at = order[:, self.seen :, None].expand_as(found)
        if self.config.variant == "standardised":
            # The true mean and spread of a cube bring its prediction back to the volume's range.
            truth = cubes.gather(1, at)
            found = found * truth.std(dim=2, keepdim=True) + truth.mean(dim=2, keepdim=True)
        views = {
            "seen": cubes.scatter(1, at, torch.zeros_like(found)),
            "painted": cubes.scatter(1, at, found),
            "volume": cubes,
        }
        return {
            name: from_cubes(view, self.grid, self.backbone.patch) for name, view in views.items()
        }

    @torch.no_grad()
    def _health(self, cubes: Cubes, hidden: Cubes, order: Tensor) -> dict[str, Tensor]:
        """What a guess that knows nothing of a hidden cube costs, and how many have no contrast.

        ``loss_chance`` is of guessing 0, the mean of standardised targets, or, where they are raw,
        the mean of the cubes that are seen. ``uniform_share``: of the hidden cubes, those of a
        single intensity.
        """
        guess = torch.zeros_like(hidden)
        if self.config.variant == "raw":
            seen = cubes.take_along_dim(order[:, : self.seen, None], dim=1)
            guess = guess + seen.mean(dim=(1, 2), keepdim=True)
        uniform = hidden.amax(dim=2) == hidden.amin(dim=2)
        return {
            "loss_chance": reconstruction_loss(guess, hidden, self.config.variant),
            "uniform_share": uniform.float().mean(),
        }


class Decoder(nn.Module):
    """A transformer from the tokens of seen cubes to the voxels of hidden ones.

    Args:
        config: The settings.
        features: Length of an encoded token.
        grid: Cubes along each axis.
        voxels: Numbers in a cube, over all channels.
    """

    position: Tensor

    def __init__(self, config: MAE3DConfig, features: int, grid: Shape3, voxels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width).normal_(std=0.02))
        self.register_buffer("position", position_code(grid, config.width), persistent=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                config.hidden,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, voxels)

    def forward(self, seen: Float[Tensor, "b s e"], order: Int64[Tensor, "b t"]) -> Cubes:
        """Predictions of the hidden cubes, in their order.

        Args:
            seen: Encoded tokens of the first cubes of the order.
            order: Of all cubes.
        """
        count, known = seen.shape[:2]
        embedded = self.embed(seen)
        masks = self.mask_token.to(embedded).expand(count, order.shape[1] - known, -1)
        tokens = torch.cat([embedded, masks], dim=1) + self.position[order].to(embedded)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens[:, known:]))


def to_cubes(volumes: Volumes, cube: Shape3) -> Cubes:
    """Volumes cut into cubes, in row-major order; within a cube, channels run innermost."""
    x, y, z = cube
    return rearrange(
        volumes, "b c (i x) (j y) (k z) -> b (i j k) (x y z c)", x=x, y=y, z=z
    ).contiguous()


def from_cubes(cubes: Cubes, grid: Shape3, cube: Shape3) -> Volumes:
    """Volumes put together from their cubes: undoes :func:`to_cubes`."""
    (i, j, _), (x, y, z) = grid, cube
    return rearrange(cubes, "b (i j k) (x y z c) -> b c (i x) (j y) (k z)", i=i, j=j, x=x, y=y, z=z)


def standardised(cubes: Cubes) -> Cubes:
    """Cubes at zero mean and unit variance, each by itself; one of a single intensity is zero."""
    values = at_least_float32(cubes)
    centred = values - values.mean(dim=2, keepdim=True)
    return centred * (centred.square().mean(dim=2, keepdim=True) + 1e-6).rsqrt()


def reconstruction_loss(
    found: Cubes, true: Cubes, variant: Literal["standardised", "raw"]
) -> Float[Tensor, ""]:
    """Mean squared (``standardised``) or absolute (``raw``) error of hidden cubes.

    In at least float32, with autocast off.
    """
    with torch.autocast(found.device.type, enabled=False):
        cut = at_least_float32(found).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        errors = cut - at_least_float32(true)
        return (errors.square() if variant == "standardised" else errors.abs()).mean()


def position_code(grid: Shape3, width: int) -> Float[Tensor, "t e"]:
    """Sines, then cosines, of where a cube is along x, then y, then z.

    Frequencies fall from 1 to nearly 1/10000, as in the transformer of Vaswani et al. (2017).

    Args:
        grid: Cubes along each axis.
        width: Length of a code; a multiple of 6.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 6) / (width // 6))
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).float()
    angles = places[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
