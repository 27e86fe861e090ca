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
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from voco.augment.spatial import draw_flips, flip
from voco.backbone import Backbone, Part, TokenBackbone
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.cubes import (
    Cubes,
    Order,
    blind_painting,
    cube_grid,
    hidden_targets,
    painted_views,
    painting_loss,
    seen_count,
    to_cubes,
)
from voco.nn.decoder import Decoder
from voco.nn.freeze import freeze_unreached
from voco.nn.positions import position_code
from voco.shapes import Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
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
    order: Order


class MAE3D(Method):
    """A masked autoencoder on cubes.

    Args:
        config: The settings.
        backbone: The network to train; only what makes its tokens is.

    Raises:
        ConfigError: If the backbone cannot leave out tokens, does not take volumes of this size,
            or too few cubes are left to hide and to see.
    """

    position: Tensor

    def __init__(self, config: MAE3DConfig, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ConfigError(
                f"mae3d hides tokens from the network, and {type(backbone).__name__} has none that "
                "can be left out. Backbones that fit: unetr."
            )
        backbone.check_size(config.crop)
        self.config, self.window, self.backbone = config, config.crop, backbone
        self.grid = cube_grid(config.crop, backbone.patch)
        self.seen = seen_count(self.grid, config.mask_ratio, setting="mask_ratio", size="crop")
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        keep = torch.zeros(1, self.seen, dtype=torch.int64, device="meta")
        freeze_unreached(backbone, lambda network: network.tokens(probe, keep))
        self.decoder = Decoder(
            backbone.width,
            channels * math.prod(backbone.patch),
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
        )
        position = position_code(self.grid, config.width)
        self.register_buffer("position", position, persistent=False)

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
        hidden = hidden_targets(cubes, order, self.seen, self.config.variant)
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
            pictures = painted_views(
                views.volumes,
                self._painted(*views),
                views.order,
                cube=self.backbone.patch,
                targets=self.config.variant,
            )
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(views.volumes))
            for name, images in slices.items()
        ]

    def _painted(self, volumes: Volumes, order: Order) -> Cubes:
        """What is predicted of the hidden cubes, in their order."""
        tokens = self.backbone.tokens(volumes, order[:, : self.seen])
        return self.decoder(tokens, order, self.position)

    @torch.no_grad()
    def _health(self, cubes: Cubes, hidden: Cubes, order: Order) -> dict[str, Tensor]:
        """What a guess that knows nothing of a hidden cube costs, and how many have no contrast.

        ``uniform_share``: of the hidden cubes, those of a single intensity.
        """
        guess = blind_painting(cubes, order, self.seen, self.config.variant)
        uniform = hidden.amax(dim=2) == hidden.amin(dim=2)
        return {
            "loss_chance": reconstruction_loss(guess, hidden, self.config.variant),
            "uniform_share": uniform.float().mean(),
        }


def reconstruction_loss(
    found: Cubes, true: Cubes, variant: Literal["standardised", "raw"]
) -> Float[Tensor, ""]:
    """Mean squared (``standardised``) or absolute (``raw``) error of hidden cubes.

    In at least float32, with autocast off.
    """
    return painting_loss(found, true, "squared" if variant == "standardised" else "absolute")
