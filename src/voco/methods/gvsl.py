"""GVSL: restore a damaged volume, and warp another patient's volume onto it.

He et al., *Geometric Visual Similarity Learning in 3D Medical Image Self-supervised Pre-training*,
CVPR 2023; code ``YutingHe-list/GVSL``. The inside of two patients looks alike, part by part. Of
each pair, volume A is damaged, and one network gives features of damaged A and of B. From those of
A the undamaged A is restored; from those of both, first an affine map and then a dense flow are
predicted that bring B onto A. That works only if corresponding parts have corresponding features.
``L = w1 * (1 - correlation(warped B, A)) + w2 * |restored A - A|^2 + w3 * |gradient of flow|^2``.
Encoder *and* decoder are trained.

Where the code does not do what it seems to mean, a setting has both, repaired by default:

- ``affine: detached`` (code, and ``MIC-DKFZ/nnssl``): the affine map is taken apart into numbers
  and put together anew, so that no gradient reaches its head. It keeps its random first weights,
  and only the flow learns. Whether the published weights were trained so is not known.
- ``shift_units: reference``: the head's output, divided by the side, is read in units of which the
  side is two: 1 shifts by half a voxel, so that hardly any shift is learnt. Nothing bounds it, and
  where x and z differ, each is divided by the side of the other.
- ``coordinates: reference``: bent places are half a voxel off at the edges, and turns distort
  volumes whose sides differ (see :data:`voco.augment.deform.Coordinates`).

Two more things one would not expect are kept by default: one order of voxels is shared by all
blocks that are shuffled (``shuffle_order``), and A, damaged A and B are moved, all alike, which
the code does and the article does not mention (``move_probability: 0``).

What differs here:

- The network is the backbone of the recipe; the affine map is predicted from its coarsest level.
  The reference has a U-Net of its own, with group norm.
- A batch has any number of volumes: the B of each A is the next volume of the batch, whoever shares
  it out, so that each is an A and a B once. The reference draws both anew, one pair at a time, and
  now and then a volume with itself.
- Volumes are sampled once, at places that flow and affine map (or bend and affine map) give
  together. The reference samples twice, which blurs, and loses what the first sampling moved out.
- What lies outside a volume is the least intensity; so it is in the reference, where that is 0.
- The augmentation's own shift by half a voxel, where sides are even, is left out: all volumes of a
  pair have it. Blocks to shuffle may touch the far border.
- All channels of a volume are damaged alike, and correlated each on its own; the code has one.
- Intensities need not lie in [0, 1]: ``intensities`` says which range damage, output and losses
  are in. A correlation is computed in float64 from sums that nearly cancel, and kept in [0, 1];
  in float32 rounding can turn a variance negative and the loss infinite.
- Training is by the optimizer of the recipe; ``weight_decay: 0`` and ``final_share: 1`` make it
  the Adam of the reference.

Volumes must show the same part of the body, or nothing corresponds: ``windows.fit: resize`` brings
whole volumes to one size. Beyond the border, windows of the correlation count zeros, as in the
reference: there even two constant volumes correlate.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from voco.augment.blocks import draw_blocks
from voco.augment.damage import Order, covered_by, curved, shuffled
from voco.augment.deform import (
    Coordinates,
    MotionConfig,
    Places,
    affine_matrices,
    bent,
    draw_motions,
    filtered,
    mapped,
    own_places,
    sampled,
)
from voco.backbone import Backbone
from voco.draws import Draws
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.convolution import Conv3d
from voco.nn.freeze import freeze_unreached
from voco.nn.gather import following_rows, world_size
from voco.nn.pooling import level_mean
from voco.nn.restoration import restoration_health, restoration_loss
from voco.nn.unit import at_least_float32
from voco.shapes import Level, Volumes
from voco.task import Losses, Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Flow = Float[Tensor, "b 3 x y z"]
"""Displacements in voxels along x, y and z."""

_TURN, _SCALE, _SHEAR = math.pi / 9, 0.25, math.pi / 18
"""Largest predicted turn, change of scale and shear."""
_WINDOW = 9
"""Voxels along each side of the window of a local correlation."""
_EPSILON = 1e-5
"""Added to the product of two sums of squares."""
_SLOPE = 0.2
"""Of leaky ReLU."""
_BORDER = 3
"""Voxels between a painted box and the border, where there is room."""
_LARGEST_FLOW = 1e4
"""Displacements are cut here (voxels), so that their squares stay finite."""
_LARGEST_OUTPUT = 1e4
_SHOWN = 4


class GVSLConfig(MethodConfig):
    """Settings of GVSL."""

    name: Literal["gvsl"] = "gvsl"
    """Selects this method."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a volume; our choice. That of the reference, which takes whole volumes, is not
    known; nnssl has 160."""
    intensities: tuple[float, float] = (0.0, 1.0)
    """Least and largest intensity of the network's input: 0 and 1 for windows and percentiles,
    -5 and 5 for z-scores. Damages stay within; ``outside_share`` says how much does not."""
    affine: Literal["learnt", "detached"] = "learnt"
    """Whether the head of the affine map is ``learnt``, or ``detached`` as in the reference, where
    it stays as it was drawn. Learnt is the default: an affine map is what the head is for."""
    shift_units: Literal["sides", "reference"] = "sides"
    """What the affine head's output of 1 shifts by: ``shift_share`` of the side, and no more; or
    half a voxel, as in the reference. Sides are the default: half voxels bridge no distance."""
    shift_share: float = Field(default=0.1, gt=0, le=1)
    """Largest predicted shift, as a share of the side. Our choice: what the reference's
    augmentation is written to draw."""
    coordinates: Coordinates = "exact"
    """Whether places are ``exact`` or off at the edges as in the reference. Exact is the default:
    a flow of zero then leaves volumes as they are."""
    move_probability: float = Field(default=1.0, ge=0, le=1)
    """Of moving A, damaged A and B, all alike (reference). Not in the article."""
    motion: MotionConfig = MotionConfig()
    """How far they are moved."""
    shuffle_probability: float = Field(default=0.8, ge=0, le=1)
    """Of shuffling voxels within blocks (reference)."""
    shuffle_blocks: PositiveInt = 5000
    """Blocks of a volume (reference)."""
    shuffle_share: float = Field(default=0.05, gt=0, le=1)
    """Side of a block as a share of the volume's, rounded down to voxels (reference). Blocks of
    one voxel change nothing: sides below 40 voxels need a larger share."""
    shuffle_order: Order = "shared"
    """Whether one random order is ``shared`` by all blocks of a volume, as in the reference, or
    each block has its ``own``. Shared is the default: it is what was published, and nothing
    depends on it."""
    curve_probability: float = Field(default=0.9, ge=0, le=1)
    """Of sending intensities through a curve, which always rises (reference)."""
    paint_probability: float = Field(default=0.95, ge=0, le=1)
    """Of a box of noise, and after each box of another one (reference). Boxes have sides of a tenth
    to a fifth of the volume's."""
    most_boxes: PositiveInt = 30
    """Most boxes of noise (reference)."""
    affine_width: int = Field(default=256, gt=0, multiple_of=8)
    """Channels of the affine head (reference)."""
    flow_width: int = Field(default=16, gt=0, multiple_of=8)
    """Channels of the head of the flow (reference)."""
    restoration_width: int = Field(default=16, gt=0, multiple_of=4)
    """Channels of the head that restores (reference)."""
    registration_weight: PositiveFloat = 1.0
    """Weight of the correlation of warped B with A (reference)."""
    smoothness_weight: NonNegativeFloat = 1.0
    """Weight of the smoothness of the flow (reference)."""
    restoration_weight: NonNegativeFloat = 1.0
    """Weight of restoring A (reference); 0 leaves it out."""

    @field_validator("intensities")
    @classmethod
    def _in_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] >= ends[1]:
            raise ValueError(f"the least intensity {ends[0]} is not below the largest {ends[1]}")
        return ends

    def build(self, backbone: Backbone) -> "GVSL":
        """GVSL around a backbone.

        Raises:
            ConfigError: If the backbone does not take volumes of this size.
        """
        return GVSL(self, backbone)


class Views(NamedTuple):
    """Each volume as A, damaged and clean, with intensities from 0 to 1; both are moved alike.

    The places say where their voxels come from: B is moved likewise.
    """

    damaged: Volumes
    clean: Volumes
    places: Places


class Found(NamedTuple):
    """What is found of pairs: A restored, B under the affine map alone and under flow and map."""

    restored: Volumes | None
    mapped: Volumes
    warped: Volumes
    flow: Flow


class GVSL(Method):
    """Restoring volumes and registering them with each other.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has heads of its own.

    Raises:
        ConfigError: If the backbone does not take volumes of this size.
    """

    trains_decoder: ClassVar[bool] = True

    def __init__(self, config: GVSLConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        self.config = config
        self.window = config.crop
        self.backbone = backbone
        channels, features = backbone.config.in_channels, backbone.decoded_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: network.decode(network.encode(probe)))
        self.affine = AffineHead(backbone.channels[-1], config)
        if config.affine == "detached":
            self.affine.requires_grad_(requires_grad=False)
        self.flow = FlowHead(features, config.flow_width)
        self.restoration = (
            restoration_head(features, config.restoration_width, channels)
            if config.restoration_weight
            else None
        )

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Damage the volumes and move them; where they are."""
        config, draws = self.config, step.draws
        clean = self._scaled(volumes)
        damaged = damage(clean, draws.child(1), config)
        places = draw_motions(
            draws.child(2),
            volumes,
            config.motion,
            probability=config.move_probability,
            coordinates=config.coordinates,
        )
        return Views(self._moved(damaged, places), self._moved(clean, places), places)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch.

        Raises:
            ConfigError: If the batch is a single volume, which has nothing to be registered with.
        """
        if self.training and len(batch) * world_size() < 2:
            raise ConfigError(
                "gvsl registers every volume with another one of its micro-batch, and a "
                "micro-batch has 1: set batch_size (over optimizer.accumulate) to 2 or more."
            )
        views = self.views(batch, step)
        other = self._others(batch, views.places)
        found = self._found(views.damaged, other)
        losses = self._losses(found, views.clean)
        health = registration_health(found, other, views.clean)
        if found.restored is not None:
            health |= restoration_health(views.damaged, views.clean)
        return Outcome(losses, health)

    def handover(self) -> Backbone:
        """The backbone, encoder and decoder; the method's own heads stay behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """A damaged, restored and clean; B as it was and warped onto A; how far it was bent."""
        with torch.no_grad():
            views = self.views(volumes, step)
            other = self._others(volumes, views.places)
            found = self._found(views.damaged, other)
        pictures = {"damaged": views.damaged, "restored": found.restored, "clean": views.clean}
        pictures |= {"other": other, "other, warped": found.warped}
        pictures["bent by"] = found.flow.norm(dim=1, keepdim=True)
        slices = {
            name: middle_slices(view, _SHOWN) for name, view in pictures.items() if view is not None
        }
        return [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(min(_SHOWN, len(volumes)))
            for name, images in slices.items()
        ]

    def _scaled(self, volumes: Volumes) -> Volumes:
        """From the network's range to [0, 1]."""
        low, high = self.config.intensities
        return (volumes - low) / (high - low)

    def _moved(self, volumes: Volumes, places: Places) -> Volumes:
        return sampled(volumes, places) if self.config.move_probability else volumes

    def _others(self, volumes: Volumes, places: Places) -> Volumes:
        """The B of each A, moved like A, with intensities from 0 to 1."""
        # A process that evaluates may be alone in it.
        other = following_rows(volumes, everywhere=self.training)
        return self._moved(self._scaled(other), places)

    def _found(self, damaged: Volumes, other: Volumes) -> Found:
        low, high = self.config.intensities
        pyramid = self.backbone.encode(low + torch.cat([damaged, other]) * (high - low))
        decoded = self.backbone.decode(pyramid)
        fixed, moving = decoded.chunk(2)
        coarse_fixed, coarse_moving = pyramid[-1].chunk(2)
        own = own_places(self.config.crop, other).expand(len(other), -1, -1, -1, -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.affine == "learnt"):
            matrices, shifts = self.affine(coarse_moving, coarse_fixed)

        def under_map(places: Places) -> Places:
            return mapped(places, matrices, shifts, self.config.coordinates)

        places = under_map(own)
        flow = self.flow(sampled(moving, places), fixed)
        warped = sampled(other, under_map(bent(own, flow, self.config.coordinates)))
        restored = None
        if self.restoration is not None:
            restored = at_least_float32(self.restoration(fixed))
            restored = restored.clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        with torch.no_grad():
            return Found(restored, sampled(other, places), warped, flow)

    def _losses(self, found: Found, clean: Volumes) -> Losses:
        config = self.config
        loss = registration_loss(found.warped, clean)
        losses = {"registration": config.registration_weight * loss}
        if config.smoothness_weight:
            losses["smoothness"] = config.smoothness_weight * smoothness_loss(found.flow)
        if found.restored is not None:
            loss = restoration_loss(found.restored, clean)
            losses["restoration"] = config.restoration_weight * loss
        return losses


# ---- damage -----------------------------------------------------------------------------------


def damage(volumes: Volumes, draws: Draws, config: GVSLConfig) -> Volumes:
    """Volumes with voxels shuffled within blocks, intensities bent, and boxes of noise.

    Args:
        volumes: In [0, 1].
        draws: Random numbers.
        config: How likely, how many, how large.
    """
    sides = torch.tensor(volumes.shape[2:])
    edges = (sides * config.shuffle_share).long().clamp(min=1)
    volumes = shuffled(
        volumes,
        draws.child(1),
        probability=config.shuffle_probability,
        blocks=config.shuffle_blocks,
        shortest=edges,
        longest=edges,
        order=config.shuffle_order,
    )
    volumes = curved(
        volumes, draws.child(2), probability=config.curve_probability, inverted_probability=0.0
    )
    return painted(volumes, draws.child(3), config)


def painted(volumes: Volumes, draws: Draws, config: GVSLConfig) -> Volumes:
    """Volumes with boxes of even noise from 0 to 1, later ones on top of earlier ones.

    Args:
        volumes: The volumes.
        draws: Random numbers.
        config: How likely, and how many boxes.
    """
    count, most, (x, y, z) = len(volumes), config.most_boxes, volumes.shape[2:]
    again = draws.uniform(count, most) < config.paint_probability
    sides = torch.tensor((x, y, z))
    boxes = draw_blocks(
        draws,
        count,
        most,
        (x, y, z),
        shortest=sides // 10,
        longest=sides // 5 - 1,
        border=_BORDER,
    )
    covered = covered_by(boxes, again.long().cumprod(dim=1).sum(dim=1), (x, y, z))
    noise = draws.uniform_like(volumes)
    return torch.where(covered.to(volumes.device)[:, None], noise, volumes)


# ---- heads ------------------------------------------------------------------------------------


class AffineHead(nn.Module):
    """From coarse features of two volumes to an affine map that brings one onto the other.

    Args:
        channels: Of the features of one volume.
        config: How wide the head is, and what its outputs mean.
    """

    def __init__(self, channels: int, config: GVSLConfig) -> None:
        super().__init__()
        self.config = config
        self.convolutions = two_convolutions(2 * channels, config.affine_width)
        self.amounts = nn.Linear(config.affine_width, 15)

    def forward(
        self, moving: Level, fixed: Level
    ) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
        """Matrices, and shifts in voxels; in at least float32."""
        found = at_least_float32(self.convolutions(torch.cat([moving, fixed], dim=1)))
        with torch.autocast(found.device.type, enabled=False):
            amounts = self.amounts(level_mean(found))
            return affine_map(amounts, self.config)


def affine_map(
    amounts: Float[Tensor, "b 15"], config: GVSLConfig
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """The map that a head's outputs mean: no more than 20 degrees, a quarter, and 10 degrees.

    Args:
        amounts: Three for turns, three for scales, three for shifts, six for shears.
        config: What shifts are, and of how many voxels volumes.

    Returns:
        Matrices, and shifts in voxels.
    """
    turns, scales, shifts, shears = amounts.split([3, 3, 3, 6], dim=1)
    matrices = affine_matrices(
        turns.clamp(-1, 1) * _TURN, 1 + scales.clamp(-1, 1) * _SCALE, shears.clamp(-1, 1) * _SHEAR
    )
    sides = torch.tensor(config.crop).to(amounts)
    if config.shift_units == "sides":
        return matrices, shifts.clamp(-1, 1) * config.shift_share * sides
    shifts = shifts.clamp(-_LARGEST_FLOW, _LARGEST_FLOW)
    return matrices, shifts / sides.flip(0) * sides / 2


class FlowHead(nn.Module):
    """From features of two volumes at full resolution to a flow.

    Args:
        channels: Of the features of one volume.
        width: Channels in between.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = two_convolutions(2 * channels, width)
        self.out = Conv3d(width, 3, 3, padding=1)

    def forward(self, moving: Level, fixed: Level) -> Flow:
        """Displacements in voxels; in at least float32."""
        flow = self.out(self.convolutions(torch.cat([moving, fixed.to(moving)], dim=1)))
        return at_least_float32(flow).clamp(-_LARGEST_FLOW, _LARGEST_FLOW)


def restoration_head(channels: int, width: int, out_channels: int) -> nn.Sequential:
    """From features at full resolution to a volume.

    Args:
        channels: Of the features.
        width: Channels in between, a multiple of 4.
        out_channels: Of the volume.
    """
    return nn.Sequential(
        Conv3d(channels, width, 3, padding=1),
        nn.GroupNorm(width // 4, width),
        nn.LeakyReLU(_SLOPE),
        nn.Conv3d(width, out_channels, 1),
    )


def two_convolutions(channels: int, width: int) -> nn.Sequential:
    """Twice a 3x3x3 convolution, group norm with eight channels to a group, and leaky ReLU."""
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers += [Conv3d(before, width, 3, padding=1), nn.GroupNorm(width // 8, width)]
        layers.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*layers)


# ---- losses and health ------------------------------------------------------------------------


def local_correlation(first: Volumes, second: Volumes) -> Float[Tensor, "b c x y z"]:
    """Squared correlation of two volumes in a window of 9x9x9 voxels around each voxel.

    From 0 to 1; 0 where either is constant. Beyond the border, both are zero. In float64, with
    autocast off.
    """
    with torch.autocast(first.device.type, enabled=False):
        one, other = first.double(), second.double()
        products = [one, other, one.square(), other.square(), one * other]
        sums = filtered(torch.cat(products, dim=1), lambda side: _window_weights(side, one))
        ones, others, one_squares, other_squares, both = sums.chunk(5, dim=1)
        voxels = _WINDOW**3
        common = both - ones * others / voxels
        # Rounding can take what is zero below zero, and a correlation above one.
        one_spread = (one_squares - ones.square() / voxels).clamp(min=0)
        other_spread = (other_squares - others.square() / voxels).clamp(min=0)
        return (common.square() / (one_spread * other_spread + _EPSILON)).clamp(max=1)


def registration_loss(warped: Volumes, fixed: Volumes) -> Float[Tensor, ""]:
    """One minus the mean squared local correlation; in at least float32."""
    loss = 1 - local_correlation(warped, fixed).mean()
    return loss.to(torch.promote_types(fixed.dtype, torch.float32))


def smoothness_loss(flow: Flow) -> Float[Tensor, ""]:
    """Mean squared difference of neighbouring displacements, averaged over the three axes."""
    return torch.stack([flow.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()


@torch.no_grad()
def registration_health(found: Found, other: Volumes, clean: Volumes) -> dict[str, Tensor]:
    """How well B is brought onto A.

    Args:
        found: Of pairs.
        other: B as it was.
        clean: A.

    Returns:
        ``correlation``: mean squared local correlation of warped B with A;
        ``correlation_chance``: of B as it was; ``correlation_affine``: under the affine map alone.
        ``flow_voxels``: mean length of a displacement; ``folded_share``: see :func:`folded_share`.
    """
    return {
        "correlation": 1 - registration_loss(found.warped, clean),
        "correlation_chance": 1 - registration_loss(other, clean),
        "correlation_affine": 1 - registration_loss(found.mapped, clean),
        "flow_voxels": found.flow.norm(dim=1).mean(),
        "folded_share": folded_share(found.flow),
    }


@torch.no_grad()
def folded_share(flow: Flow) -> Float[Tensor, ""]:
    """Share of voxels where a flow turns space inside out, or flattens it."""
    sides = [side - 1 for side in flow.shape[2:]]
    columns = [
        flow.diff(dim=axis + 2)[:, :, : sides[0], : sides[1], : sides[2]]
        + torch.eye(3, device=flow.device)[axis].view(3, 1, 1, 1)
        for axis in range(3)
    ]
    volume = (columns[0] * torch.linalg.cross(columns[1], columns[2], dim=1)).sum(dim=1)
    return (volume <= 0).float().mean()


def _window_weights(side: int, like: Tensor) -> Float[Tensor, "n n"]:
    at = torch.arange(side, device=like.device)
    return ((at[:, None] - at).abs() <= _WINDOW // 2).to(like)
