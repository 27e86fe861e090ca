"""Models Genesis: damage a volume, restore it.

Zhou et al., *Models Genesis*, MICCAI 2019 and Medical Image Analysis 2021 (arXiv 1908.06912,
2004.07882); code ``MrGiovanni/ModelsGenesis``. A volume is mirrored; then voxels are shuffled
within small blocks, intensities go through a random curve, and boxes, or all but some boxes, become
noise. The network gives back the volume as it was before the three damages: encoder *and* decoder
are trained. Probabilities, sizes and the order of the steps are those of the code.

The code does two things that one would not expect, and both are the default here, as in every
published result:

- ``flips: reference`` draws one of three axes, of which the first is that of the channels: x or y
  is mirrored, z never, and a third of the mirrorings do nothing. ``all_axes`` is the repair.
- Curves run from 1 to 0 along their parameter, so that sorting only their inputs makes half of
  them *fall*: dark and bright are exchanged. ``inverted_probability: 0`` leaves the rising ones.

What differs here:

- All channels of a volume are damaged alike. The code shuffles the first one alone, and draws
  noise for each.
- Intensities need not lie in [0, 1]: ``intensities`` says which range curve, noise, output and
  target have. The reference has its input there already; z-scored inputs without that setting
  would lose all that lies outside of it.
- The reference leaves out cubes with much air; ``windows.foreground`` keeps windows on the body.
- Training is by the optimizer of the recipe, AdamW. The reference has SGD with a learning rate of
  1, which suits its network alone (``genesis_unet``): batch norm throughout, a sigmoid at the end.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from voco.augment.damage import block_sides, curved, painted, shuffled
from voco.augment.spatial import flip
from voco.backbone import Backbone
from voco.draws import Draws
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.restoration import restoration_health, restoration_loss
from voco.nn.unit import at_least_float32
from voco.shapes import Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]

_FLIP_AGAIN, _MOST_FLIPS = 0.4, 3
_SHOWN = 4
_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""


class ModelsGenesisConfig(MethodConfig):
    """Settings of Models Genesis."""

    name: Literal["modelsgenesis"] = "modelsgenesis"
    """Selects this method."""
    crop: Sides3 = (64, 64, 32)
    """Voxels of a volume (reference)."""
    intensities: tuple[float, float] = (0.0, 1.0)
    """Least and largest intensity of the network's input: 0 and 1 for windows and percentiles,
    -5 and 5 for z-scores. Curve and noise stay within; what lies outside is cut where a curve is
    applied, and ``outside_share`` says how much that is."""
    flips: Literal["reference", "all_axes"] = "reference"
    """Which axes may be mirrored: x and y, as in the reference, or all."""
    shuffle_probability: float = Field(default=0.5, ge=0, le=1)
    """Of shuffling voxels within blocks."""
    shuffle_blocks: PositiveInt = 10_000
    """Blocks of a volume, with sides up to a tenth of its own. They may overlap: every voxel comes
    from the last block it lies in, and from the volume as it was."""
    curve_probability: float = Field(default=0.9, ge=0, le=1)
    """Of sending intensities through a curve."""
    inverted_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of the curves that fall."""
    paint_probability: float = Field(default=0.9, ge=0, le=1)
    """Of painting."""
    inpaint_share: float = Field(default=0.2, ge=0, le=1)
    """Share of paintings in which boxes become noise; in the others, all outside of them does."""
    sigmoid: bool = True
    """Whether the output passes through a sigmoid (reference). Not so in nnssl's port."""

    @field_validator("intensities")
    @classmethod
    def _in_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] >= ends[1]:
            raise ValueError(f"the least intensity {ends[0]} is not below the largest {ends[1]}")
        return ends

    def build(self, backbone: Backbone) -> "ModelsGenesis":
        """Models Genesis around a backbone.

        Raises:
            ConfigError: If the backbone does not take volumes of this size.
        """
        return ModelsGenesis(self, backbone)


class Views(NamedTuple):
    """Volumes as the network sees them, and as they were; both mirrored alike."""

    damaged: Volumes
    clean: Volumes


class ModelsGenesis(Method):
    """Restoring damaged volumes.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own, with a channel for each of the input.

    Raises:
        ConfigError: If the backbone does not take volumes of this size.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: ModelsGenesisConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        self.config = config
        self.window = config.crop
        self.backbone = backbone
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: network.decode(network.encode(probe)))
        self.head = nn.Conv3d(backbone.decoded_channels, channels, 1)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Mirror the volumes and damage them, where they are."""
        config, draws, count = self.config, step.draws, len(volumes)
        clean = flip(volumes, draw_flips(draws.child(1), count, config.flips).flatten(0, 1))
        values = self._scaled(clean)
        shortest, longest = block_sides(config.crop)
        values = shuffled(
            values,
            draws.child(2),
            probability=config.shuffle_probability,
            blocks=config.shuffle_blocks,
            shortest=shortest,
            longest=longest,
        )
        values = curved(
            values,
            draws.child(3),
            probability=config.curve_probability,
            inverted_probability=config.inverted_probability,
        )
        values = painted(
            values,
            draws.child(4),
            probability=config.paint_probability,
            inpaint_share=config.inpaint_share,
        )
        low, high = config.intensities
        return Views(low + values * (high - low), clean)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """The loss of a batch, and what guesses would cost."""
        damaged, clean = self.views(batch, step)
        found = self._restored(damaged)
        damaged, clean = self._scaled(damaged), self._scaled(clean)
        loss = restoration_loss(found, clean)
        return Outcome({"restoration": loss}, restoration_health(damaged, clean))

    def handover(self) -> Backbone:
        """The backbone, encoder and decoder; the method's own output layer stays behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Volumes as the network sees them, as it restores them, and as they were."""
        with torch.no_grad():
            damaged, clean = self.views(volumes, step)
            found = self._restored(damaged)
        pictures = {"damaged": damaged, "restored": found, "clean": clean}
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(min(_SHOWN, len(volumes)))
            for name, images in slices.items()
        ]

    def _scaled(self, volumes: Volumes) -> Volumes:
        """From the network's range to [0, 1]."""
        low, high = self.config.intensities
        return (volumes - low) / (high - low)

    def _restored(self, damaged: Volumes) -> Volumes:
        found = at_least_float32(self.head(self.backbone.decode(self.backbone.encode(damaged))))
        if self.config.sigmoid:
            return found.sigmoid()
        return found.clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)


# ---- mirroring --------------------------------------------------------------------------------


def draw_flips(
    draws: Draws, count: int, axes: Literal["reference", "all_axes"]
) -> Bool[Tensor, "b 1 three"]:
    """Along which axes volumes are mirrored: up to three times, each less likely than the last.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        axes: Which may be mirrored; see :class:`ModelsGenesisConfig`.
    """
    again = (draws.uniform(count, _MOST_FLIPS) < _FLIP_AGAIN).long().cumprod(dim=1)
    # Axis 0 of the reference is that of the channels, where nothing is mirrored.
    chosen = draws.integers(count, _MOST_FLIPS, high=3) - int(axes == "reference")
    times = (again[..., None] * (chosen[..., None] == torch.arange(3))).sum(dim=1, keepdim=True)
    return times % 2 == 1
