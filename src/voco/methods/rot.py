"""ROT: by which right angle was a volume turned?

Gidaris et al., *Unsupervised Representation Learning by Predicting Image Rotations*, ICLR 2018
(arXiv 1803.07728), in three dimensions by Taleb et al., *3D Self-Supervised Methods for Medical
Imaging*, NeurIPS 2020 (arXiv 2006.03829). Reference: ``HealthML/self-supervised-3d-tasks``. How
many rotations the VoCo paper's comparison has is not known; ten is the reference's number.

What differs from the reference:

- Features are averaged over space; the reference joins all voxels of the last level.
- The head's batch norm is a layer norm: with a few volumes per batch, each would be judged by the
  others. ``hidden: []`` makes the head linear.
- AdamW where the reference has Adam.

**Shortcuts.** Voxels must be as long along z as along x and y (``voco prepare --spacing_mm``):
else the blur of thick slices tells the axis. The table, the circle of the field of view and
padding tell it, too; ``windows.foreground`` keeps windows on the body, and ``mask: sphere`` hides
the corners. Mirroring is left out, since two mirrorings are a rotation. On CT the task is easy:
nearly perfect answers after a few thousand steps say little about what the features are worth.
"""

from itertools import permutations, product
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from voco.augment.intensity import draw_shifts, shift
from voco.backbone import Backbone
from voco.embedding import pooled
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.classifier import Classifier, answer_health, classification_loss
from voco.nn.freeze import freeze_unreached
from voco.shapes import Crops, Volumes
from voco.task import Outcome, Step


class ROTConfig(MethodConfig):
    """Settings of ROT."""

    name: Literal["rot"] = "rot"
    """Selects this method."""
    side: PositiveInt = 128
    """Voxels of each side of the cube (reference)."""
    rotations: Literal[4, 10, 24] = 10
    """Among how many rotations the head chooses: 4, quarter turns about z (as in the pre-training
    of Swin UNETR); 10, quarter turns about any one axis (reference); 24, all of a cube."""
    per_volume: Literal["one", "all"] = "one"
    """Whether each volume is shown in one rotation, drawn (reference), or in all of them."""
    mask: Literal["none", "sphere"] = "none"
    """Whether all outside the largest sphere is set to 0; none in the reference."""
    shift_probability: float = Field(default=0.0, ge=0, le=1)
    """Of shifting a volume's intensities; not in the reference."""
    shift: float = Field(default=0.1, ge=0)
    """Largest shift, in units of the network's input; ours."""
    hidden: tuple[PositiveInt, ...] = (2048, 1024)
    """Widths of the head's hidden layers (reference)."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the head's hidden features (reference)."""
    crops_at_once: PositiveInt | None = None
    """Volumes that pass through the backbone together; ``None`` is all on a GPU, and on a CPU
    as many as have 800,000 voxels together. Fewer need less memory at once; results do not
    depend on it."""

    def build(self, backbone: Backbone) -> "ROT":
        """ROT around a backbone.

        Raises:
            ConfigError: If the backbone does not take cubes of this size, or not in pieces.
        """
        return ROT(self, backbone)


class Views(NamedTuple):
    """Rotated volumes, and by which rotation."""

    rotated: Crops
    labels: Int64[Tensor, "b n"]


class ROT(Method):
    """Rotation prediction.

    Args:
        config: The settings.
        backbone: The network to train; its decoder and output layer are frozen.

    Raises:
        ConfigError: If the backbone does not take cubes of this size, or not in pieces.
    """

    def __init__(self, config: ROTConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.window = (config.side, config.side, config.side)
        backbone.check_size(self.window)
        backbone.check_pieces(config.crops_at_once)
        self.levels = (len(backbone.channels) - 1,)
        cube = torch.zeros(1, backbone.config.in_channels, *self.window, device="meta")
        freeze_unreached(backbone, lambda probe: pooled(probe, [cube], self.levels))
        widths = (backbone.channels[-1], *config.hidden, config.rotations)
        self.head = Classifier(widths, dropout=config.dropout)
        self.rotations = rotations(config.rotations)

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Shift intensities and rotate."""
        count, total = len(volumes), self.config.rotations
        labels = torch.arange(total).expand(count, -1)
        if self.config.per_volume == "one":
            labels = step.draws.child(1).integers(count, 1, high=total)
        shifts = draw_shifts(
            step.draws.child(2), count, 1, self.config.shift, self.config.shift_probability
        )
        cubes = shift(volumes, shifts[:, 0])
        if self.config.mask == "sphere":
            cubes = torch.where(sphere(self.config.side).to(cubes.device), cubes, 0)
        shown = [
            torch.stack([rotated(cube, self.rotations[label]) for label in row])
            for cube, row in zip(cubes, labels.tolist(), strict=True)
        ]
        return Views(torch.stack(shown), labels.to(volumes.device))

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        cubes, labels = self.views(batch, step)
        rows = pooled(
            self.backbone,
            [cubes.flatten(0, 1)],
            self.levels,
            at_once=self.config.crops_at_once,
        )
        logits = self.head(rows, step.draws.child(3))
        loss = classification_loss(logits, labels.flatten())
        return Outcome({"rotation": loss}, answer_health(logits, labels.flatten()))

    def handover(self) -> Backbone:
        """The backbone; the head stays behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Each volume as it is and as it is shown."""
        cubes, labels = self.views(volumes, step)
        images = [grey(image) for image in middle_slices(cubes)]
        names = [self.rotations[label].name for label in labels.flatten().tolist()]
        own = [Panel(f"volume {i}", grey(image)) for i, image in enumerate(middle_slices(volumes))]
        return own + [Panel(name, image) for name, image in zip(names, images, strict=False)]


class Rotation(NamedTuple):
    """A rotation of a cube: which axis of the cube each axis of the result shows, and mirrored.

    Attributes:
        axes: For x, y and z of the result, the axis of the cube.
        mirrored: For x, y and z of the result, whether it runs the other way.
    """

    axes: tuple[int, int, int]
    mirrored: tuple[bool, bool, bool]

    @property
    def name(self) -> str:
        """Such as ``(-y, x, z)``: what x, y and z of the result show."""
        parts = [
            f"{'-' if back else ''}{'xyz'[axis]}"
            for axis, back in zip(self.axes, self.mirrored, strict=True)
        ]
        return f"({', '.join(parts)})"

    def inverse(self) -> "Rotation":
        """The rotation that undoes this one."""
        x, y, z = (self.axes.index(axis) for axis in range(3))
        back = self.mirrored
        return Rotation((x, y, z), (back[x], back[y], back[z]))


def rotated(cube: Float[Tensor, "c s s s"], rotation: Rotation) -> Float[Tensor, "c s s s"]:
    """A rotated cube."""
    turned = cube.permute(0, *(axis + 1 for axis in rotation.axes))
    return turned.flip([i + 1 for i, back in enumerate(rotation.mirrored) if back])


def rotations(count: int) -> list[Rotation]:
    """Sets of rotations, the identity first: see :attr:`ROTConfig.rotations`."""
    everything = [
        Rotation(axes, mirrored)
        for axes in permutations(range(3), 3)
        for mirrored in product((False, True), (False, True), (False, True))
        if _is_proper(axes, mirrored)
    ]
    if count == 4:
        return [one for one in everything if one.axes[2] == 2 and not one.mirrored[2]]
    if count == 10:
        return [one for one in everything if _fixed_axes(one)]
    return everything


def sphere(side: int) -> Bool[Tensor, "s s s"]:
    """Which voxels of a cube lie in its largest sphere."""
    squares = (torch.arange(side) - (side - 1) / 2).square()
    return squares[:, None, None] + squares[:, None] + squares <= (side / 2) ** 2


def _is_proper(axes: tuple[int, ...], mirrored: tuple[bool, ...]) -> bool:
    """Whether it can be done to a rigid body: not an odd number of mirrorings and swaps."""
    swaps = sum(axes[i] > axes[j] for i in range(3) for j in range(i + 1, 3))
    return (swaps + sum(mirrored)) % 2 == 0


def _fixed_axes(rotation: Rotation) -> int:
    """How many axes stay as they are."""
    pairs = enumerate(zip(rotation.axes, rotation.mirrored, strict=True))
    return sum(axis == place and not back for place, (axis, back) in pairs)
