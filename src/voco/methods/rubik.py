"""Rubik++: turn slabs of a cube as on a Rubik's cube, and have them turned back.

Tao et al., *Revisiting Rubik's Cube: Self-supervised Learning with Volume-Wise Transformation for
3D Medical Image Segmentation*, MICCAI 2020 (arXiv 2007.08826). A cube is cut into slabs along x,
and some of them are turned about x by quarter turns; then the same along y, then along z. The
network gives back the cube as it was: encoder *and* decoder are trained. A second network, the
discriminator, sees the turned cube beside either the true one or the one given back, tells for
each place which of the two it is, and the first network learns to deceive it as well.

No code of the authors is known. How many slabs there are and how many are turned, and how restoring
and deceiving are weighted, is not known either: ``slabs``, ``turned_slabs``, ``restoration_weight``
and ``adversarial_weight`` are our choices. Turns, discriminator and losses (absolute errors, and
squares as in LSGAN) are as a third party re-implemented them. How the network was trained that the
VoCo paper compares with is not known. What differs from the re-implementation:

- **Both networks learn at once.** It steps them in turn. Here one pass gives the losses of both,
  each of which has gradients for its own network alone: the loss of deceiving goes through the
  discriminator as through a function whose weights are constants, and the loss of telling apart
  sees what was given back as an image from nowhere. One optimizer then moves both, once each:
  alternation one to one, but for that either moves before it sees where the other went. So a
  checkpoint and a group of processes hold both networks as they hold any other.
- **One optimizer has one setting.** The momentum of 0.5 that is usual for discriminators
  (``optimizer.betas``) is then that of both networks; the recipe has it, as ``StepwisePretraining``
  has for its own Rubik's cube. Clipping (``optimizer.clip_norm``) would tie both networks' step to
  the longer gradient; the recipe does not clip.
- The discriminator's batch norm is over the batch of all processes, and has no memory. It works in
  float32 whatever the precision of the run.
- Intensities need not lie in [0, 1]: ``intensities`` says which range they have, and target and
  discriminator see them cut to it, for the output cannot leave it.
- The network is the recipe's; that of the re-implementation is a residual U-Net. Others may copy
  what was not turned straight from the input, and ``finest_skip: false`` closes that path.

``jlianglab/StepwisePretraining`` names something else after the cube (eight cubes that change
places and make half turns, a Wasserstein loss whose penalty sees no condition). It is not here.

**Shortcuts.** Voxels must be as long along z as along x and y (``voco prepare --spacing_mm``), else
blur tells which slabs were turned; so does padding, where windows reach beyond a scan. With few
turned slabs most voxels stay, and giving the input back is nearly right: ``moved_share`` should be
above a half, and ``loss_chance`` says what that costs.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from voco.augment.spatial import turn
from voco.backbone import Backbone
from voco.draws import Draws
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.convolution import Conv3d
from voco.nn.freeze import freeze_unreached
from voco.nn.heads import BatchStandardisation
from voco.nn.unit import at_least_float32
from voco.shapes import Level, Volumes
from voco.task import Outcome, Step

SlabTurns = Int64[Tensor, "b 3 n"]
"""Quarter turns of each slab about x, y and z, from 0 to 3."""
Verdicts = Float[Tensor, "b 1 _ _ _"]
"""What a discriminator says of each place: 1 for true, 0 for given back."""

_SHOWN = 4
_LARGEST_VERDICT = 1e4
"""Verdicts are cut here, so that their squares stay finite."""
_UNDECIDED = 0.5


class RubikConfig(MethodConfig):
    """Settings of Rubik++."""

    name: Literal["rubik"] = "rubik"
    """Selects this method."""
    side: PositiveInt = 96
    """Voxels of each side of the cube; our choice. The article's is not known."""
    intensities: tuple[float, float] = (0.0, 1.0)
    """Least and largest intensity of the network's input: 0 and 1 for windows and percentiles,
    -5 and 5 for z-scores. What lies outside cannot be given back; ``outside_share`` says how much
    that is."""
    slabs: int = Field(default=4, ge=2)
    """Slabs along each axis; our choice, the article's number is not known. Must divide
    ``side``."""
    turned_slabs: PositiveInt = 2
    """Slabs along each axis that are turned; our choice, the article's number is not known. Of all
    voxels about ``1 - (1 - turned_slabs / slabs) ** 3`` move."""
    finest_skip: bool = True
    """Whether the decoder sees the finest level of the encoder, as in a U-Net (re-implementation).
    With ``false`` it sees zeros there. What then leads nowhere is not trained: in Swin UNETR the
    block that reads the volume itself."""
    restoration_weight: PositiveFloat = 100.0
    """Weight of the mean absolute error; our choice, the article's is not known
    (``StepwisePretraining`` has 100 in its own Rubik's cube)."""
    adversarial_weight: NonNegativeFloat = 1.0
    """Weight of deceiving the discriminator; our choice, the article's is not known. 0 is
    restoration alone: there is no discriminator."""
    discriminator_channels: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128, 256), min_length=1
    )
    """Channels of the discriminator's layers, each of which halves the resolution
    (re-implementation)."""

    @model_validator(mode="after")
    def _fit_together(self) -> "RubikConfig":
        low, high = self.intensities
        if low >= high:
            raise ValueError(f"the least intensity {low} is not below the largest {high}")
        if self.side % self.slabs:
            raise ValueError(f"side {self.side} is no multiple of slabs {self.slabs}")
        if self.turned_slabs > self.slabs:
            raise ValueError(f"turned_slabs {self.turned_slabs} is above slabs {self.slabs}")
        least = 2 ** len(self.discriminator_channels)
        if self.adversarial_weight and self.side < least:
            raise ValueError(
                f"side {self.side} is too short for a discriminator of "
                f"{len(self.discriminator_channels)} layers, which needs {least}: shorten "
                "discriminator_channels"
            )
        return self

    def build(self, backbone: Backbone) -> "Rubik":
        """Rubik++ around a backbone.

        Raises:
            ConfigError: If the backbone does not take cubes of this size.
        """
        return Rubik(self, backbone)


class Views(NamedTuple):
    """Cubes as the network sees them and as they were, and what was done to them, on the CPU."""

    turned: Volumes
    clean: Volumes
    turns: SlabTurns


class Rubik(Method):
    """Turning back the slabs of a cube.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own, with a channel for each of the input.

    Raises:
        ConfigError: If the backbone does not take cubes of this size.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: RubikConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.window = (config.side, config.side, config.side)
        backbone.check_size(self.window)
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *self.window, device="meta")
        freeze_unreached(
            backbone, lambda network: decoded(network, probe, finest_skip=config.finest_skip)
        )
        self.head = nn.Conv3d(backbone.decoded_channels, channels, 1)
        self.discriminator = (
            Discriminator(channels, config.discriminator_channels)
            if config.adversarial_weight
            else None
        )

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Turn slabs, where the volumes are."""
        config = self.config
        turns = draw_slab_turns(
            step.draws.child(1), len(volumes), config.slabs, config.turned_slabs
        )
        return Views(disarranged(volumes, turns), volumes, turns)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """The losses of both networks, and health figures of a batch.

        The loss ``discriminator`` trains the discriminator and nothing else, the other two all but
        the discriminator.
        """
        views, config = self.views(batch, step), self.config
        found = self._restored(views.turned)
        clean, turned = self._scaled(views.clean), self._scaled(views.turned)
        losses = {"restoration": config.restoration_weight * restoration_loss(found, clean)}
        health = self._health(found, clean, turned, views)
        if self.discriminator is not None:
            # Beside the other network it costs little, and half precision upsets such games.
            with torch.autocast(found.device.type, enabled=False):
                verdicts = judged(self.discriminator, found, clean, turned)
            deceiving = deception_loss(verdicts.deceived)
            losses["adversarial"] = config.adversarial_weight * deceiving
            losses["discriminator"] = discriminator_loss(verdicts.true, verdicts.restored)
            health |= verdict_health(verdicts.true, verdicts.restored)
        return Outcome(losses, health)

    def handover(self) -> Backbone:
        """The backbone, encoder and decoder; output layer and discriminator stay behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Cubes as the network sees them, as it gives them back, and as they were."""
        with torch.no_grad():
            turned, clean, _ = self.views(volumes[:_SHOWN], step)
            found = self._restored(turned)
        pictures = {"turned": turned, "restored": found, "clean": clean}
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(clean))
            for name, images in slices.items()
        ]

    def _scaled(self, volumes: Volumes) -> Volumes:
        """From the network's range to [0, 1]; what lies outside is cut."""
        low, high = self.config.intensities
        return ((volumes - low) / (high - low)).clamp(0, 1)

    def _restored(self, turned: Volumes) -> Volumes:
        """Cubes as the network gives them back, in [0, 1]."""
        features = decoded(self.backbone, turned, finest_skip=self.config.finest_skip)
        return at_least_float32(self.head(features)).sigmoid()

    @torch.no_grad()
    def _health(
        self, found: Volumes, clean: Volumes, turned: Volumes, views: Views
    ) -> dict[str, Tensor]:
        """How far what is given back is from the truth, and what giving back the input costs.

        Returns:
            ``restoration_error``: mean absolute error, as a share of the range of intensities;
            ``restoration_error_chance``: that of the input as it is. ``loss_chance``: what all
            losses are for the input as it is and an undecided discriminator. ``moved_share``: of
            the voxels. ``outside_share``: of the voxels, those outside of ``intensities``.
        """
        config = self.config
        untouched = restoration_loss(turned, clean)
        deceiving = config.adversarial_weight * (1 - _UNDECIDED) ** 2
        telling = _UNDECIDED**2 if self.discriminator is not None else 0.0
        low, high = config.intensities
        return {
            "restoration_error": restoration_loss(found, clean),
            "restoration_error_chance": untouched,
            "loss_chance": config.restoration_weight * untouched + deceiving + telling,
            "moved_share": moved_share(views.turns, config.side, clean.device),
            "outside_share": ((views.clean < low) | (views.clean > high)).float().mean(),
        }


def decoded(backbone: Backbone, volumes: Volumes, *, finest_skip: bool) -> Level:
    """Features at full resolution.

    Args:
        backbone: The network.
        volumes: Its input.
        finest_skip: Whether its decoder sees the finest level; if not, zeros are in its place.
    """
    finest, *coarser = backbone.encode(volumes)
    return backbone.decode([finest if finest_skip else torch.zeros_like(finest), *coarser])


# ---- turning slabs ----------------------------------------------------------------------------


def draw_slab_turns(draws: Draws, count: int, slabs: int, turned: int) -> SlabTurns:
    """Which slabs are turned, each by one, two or three quarters; the others by none.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        slabs: Along each axis.
        turned: Slabs along each axis that are turned.
    """
    chosen = draws.uniform(count, 3, slabs).argsort(dim=2) < turned
    return chosen * draws.integers(count, 3, slabs, low=1, high=4)


def disarranged(volumes: Float[Tensor, "b c s s s"], turns: SlabTurns) -> Volumes:
    """Cubes with slabs turned about x, then about y, then about z."""
    for axis in range(3):
        volumes = turn_slabs(volumes, turns[:, axis], axis)
    return volumes


def turn_slabs(
    volumes: Float[Tensor, "b c s s s"], turns: Int64[Tensor, "b n"], axis: int
) -> Volumes:
    """Cubes cut into slabs along an axis, each turned about it by its number of quarter turns.

    About z, from x towards y; about x, from y towards z; about y, from z towards x.
    """
    places = [2 + (axis + later) % 3 for later in (1, 2, 3)]
    upright = volumes.movedim(places, (2, 3, 4))
    count = turns.shape[1]
    slabs = turn(rearrange(upright, "b c u v (n s) -> (b n) c u v s", n=count), turns.flatten())
    whole = rearrange(slabs, "(b n) c u v s -> b c u v (n s)", n=count)
    return whole.movedim((2, 3, 4), places).contiguous()


def moved_share(
    turns: SlabTurns, side: int, device: torch.device | None = None
) -> Float[Tensor, ""]:
    """Share of the voxels of cubes that are somewhere else after the turns."""
    places = torch.arange(side**3, device=device, dtype=torch.float64)
    places = places.view(1, 1, side, side, side).expand(len(turns), -1, -1, -1, -1)
    return (disarranged(places, turns) != places).float().mean()


# ---- the discriminator ------------------------------------------------------------------------


class Discriminator(nn.Module):
    """Tells, for each of many overlapping places, a true cube from one that was given back.

    Layers of a convolution that halves the resolution, batch norm and leaky ReLU; then a linear
    layer for each place.

    Args:
        channels: Of a cube.
        widths: Channels of the layers.
    """

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        narrow = (2 * channels, *widths[:-1])
        self.layers = nn.Sequential(
            *(_Layer(before, after) for before, after in zip(narrow, widths, strict=True))
        )
        self.out = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, cubes: Volumes, turned: Volumes) -> Verdicts:
        """Verdicts on cubes beside which their turned form is seen."""
        return self.out(self.layers(torch.cat([cubes, turned], dim=1)))


class _Layer(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = Conv3d(before, after, 4, stride=2, padding=1, bias=False)
        self.norm = BatchStandardisation(features=after)

    def forward(self, features: Level) -> Level:
        last = self.conv(features).movedim(1, -1)
        rows = self.norm(last.flatten(0, 3))
        return F.leaky_relu(rows.view(last.shape).movedim(-1, 1), 0.2)


class Judged(NamedTuple):
    """Verdicts on true cubes, on those given back, and on the latter as who made them sees it.

    Attributes:
        true: With gradients for the discriminator.
        restored: With gradients for the discriminator alone.
        deceived: The same numbers, with gradients for what gave the cubes back alone.
    """

    true: Verdicts
    restored: Verdicts
    deceived: Verdicts


def judged(discriminator: Discriminator, found: Volumes, clean: Volumes, turned: Volumes) -> Judged:
    """Verdicts on both kinds of cubes, each kind with its own statistics in the batch norm.

    Args:
        discriminator: Who judges.
        found: Cubes as they were given back.
        clean: The true ones.
        turned: What is seen beside either.
    """
    constants = {name: tensor.detach() for name, tensor in discriminator.named_parameters()}
    return Judged(
        discriminator(clean, turned),
        discriminator(found.detach(), turned),
        functional_call(discriminator, constants, (found, turned)),
    )


# ---- losses -----------------------------------------------------------------------------------


def restoration_loss(found: Volumes, clean: Volumes) -> Float[Tensor, ""]:
    """Mean absolute error over all voxels, moved or not; in at least float32."""
    return (at_least_float32(found) - at_least_float32(clean)).abs().mean()


def deception_loss(restored: Verdicts) -> Float[Tensor, ""]:
    """Mean square of how far verdicts on what was given back are from 1 (Mao et al., LSGAN).

    1/4 if the discriminator is undecided. In at least float32.
    """
    return _mean_square(restored, 1)


def discriminator_loss(true: Verdicts, restored: Verdicts) -> Float[Tensor, ""]:
    """Mean square of how far verdicts are from 1 on what is true and from 0 on what is not.

    1/4 if the discriminator is undecided. In at least float32.
    """
    return (_mean_square(true, 1) + _mean_square(restored, 0)) / 2


@torch.no_grad()
def verdict_health(true: Verdicts, restored: Verdicts) -> dict[str, Tensor]:
    """How often the discriminator is right.

    Near chance it is deceived, near 1 it sees through all.

    Returns:
        ``discriminator_right``: the share of right verdicts on both kinds;
        ``discriminator_right_chance``, that of one who always says the same.
    """
    right = (true > _UNDECIDED).float().mean() + (restored <= _UNDECIDED).float().mean()
    return {
        "discriminator_right": right / 2,
        "discriminator_right_chance": torch.full((), 0.5, device=true.device),
    }


def _mean_square(verdicts: Verdicts, truth: int) -> Float[Tensor, ""]:
    with torch.autocast(verdicts.device.type, enabled=False):
        cut = at_least_float32(verdicts).clamp(-_LARGEST_VERDICT, _LARGEST_VERDICT)
        return (cut - truth).square().mean()
