"""GL-MAE: paint what is hidden of large and small crops, and agree with who saw the large ones.

Zhuang et al., *Global-Local Masked Autoencoder*, IEEE TMI 2025 (arXiv 2306.08913). A transformer
sees a few cubes of large ("global") and small ("local") crops of a volume, and a small decoder
paints the others, as in MAE3D. A copy that follows slowly sees the global crops with nothing
hidden; the student must say of every crop what the copy says of them.

**The code of pre-training was never published.** Known are, from the figure, the table and the
fine-tuning code in ``JiaxinZhuang/GL-MAE``: the sizes of the crops, the encoder, the decoder, that
the position code is frozen, squared errors, what agrees with what, and that a class token and two
projection heads carry it. The weights are stored as a run of DINO's code would, so what is missing
is taken from there (``facebookresearch/dino``): heads, temperatures, centre, momentum. Each setting
says where its value comes from; "not known" means that the authors' value is not.

What differs here, or had to be decided:

- The encoder is the backbone's own. MONAI's UNETR has no class token: this one is the method's,
  enters with the cubes, and stays behind, since the network that is handed on has no place for it
  (the reference drops its row of the position code, too). ``summary: mean`` does without.
- The network is of one of the two sizes, and its position code is stretched over the other.
- ``position_code: fixed`` (known to be frozen) writes sines and cosines (only implied) into the
  network; fine-tuning finds them there, and may train them.
- The decoder gets no class token, and its sines and cosines are those of each grid, not stretched.
- The form of the agreement is DINO's cross-entropy. Cosines, which the figure does not rule out,
  are not offered: nothing in it would then keep the two from collapse.
- DINO compares different crops; here a masked global crop is compared with itself intact, and every
  local crop with all global ones of its volume, as in the figure.
- Crops are cut, zoomed and mirrored; the two kinds of augmentation in the figure have no names.
- The copy follows before the step's forward pass instead of after the one before: the same.

What is handed on are the weights behind the student's tokens, neither the copy's nor convolutions.
Crops of 160 voxels have 1000 tokens, and the copy sees them all: it takes most of the time.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.cut import cut_to
from voco.augment.spatial import draw_flips
from voco.augment.zoom import draw_zoomed
from voco.backbone import Backbone, Part, TokenBackbone
from voco.draws import Draws
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, boxes_panel, grey, middle_slices
from voco.nn.cubes import (
    Cubes,
    Targets,
    blind_painting,
    cube_grid,
    hidden_targets,
    painted_views,
    painting_loss,
    seen_count,
    to_cubes,
)
from voco.nn.decoder import Decoder
from voco.nn.ema import distance, follow, rising, teacher_of
from voco.nn.freeze import freeze_unreached
from voco.nn.gather import first_row, gathered_rows, mean_over_processes
from voco.nn.health import position_accuracy
from voco.nn.positions import position_code
from voco.nn.prototypes import PrototypeHead
from voco.nn.unit import at_least_float32
from voco.shapes import Crops, Shape3, Volumes
from voco.task import Health, Losses, Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Answers = Float[Tensor, "b n k"]
"""What is said of each crop of a volume: a number for each prototype."""

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their quotients stay finite."""


class GLMAEConfig(MethodConfig):
    """Settings of GL-MAE."""

    name: Literal["glmae"] = "glmae"
    """Selects this method."""
    window: Sides3 = (192, 192, 192)
    """Voxels of the window that crops are cut from; our choice."""
    global_crop: Sides3 = (160, 160, 160)
    """Voxels of a global crop (the authors' figure)."""
    local_crop: Sides3 = (96, 96, 96)
    """Voxels of a local crop (the authors' figure)."""
    global_crops: PositiveInt = 2
    """Global crops of each window; not known, our choice."""
    local_crops: PositiveInt = 4
    """Local crops of each window; not known, our choice."""
    scales: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Sides of what is cut and then resampled to a crop, relative to the crop's, from least to
    largest; not known, our choice."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring a crop along an axis, for each axis alone; not known, our choice."""
    global_mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of a global crop's cubes that are hidden; not known, our choice (MAE3D's)."""
    local_mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of a local crop's cubes that are hidden; not known, our choice (MAE3D's)."""
    targets: Targets = "standardised"
    """Whether cubes are painted ``standardised`` each by itself or ``raw``; not known, our choice
    (SelfMedMAE's)."""
    summary: Literal["class_token", "mean"] = "class_token"
    """What stands for a crop as a whole: a ``class_token`` (the authors' figure), or the ``mean``
    of the crop's tokens, which trains only what is handed on."""
    position_code: Literal["fixed", "learnt"] = "fixed"
    """The network's position code: ``fixed`` sines and cosines (the authors' is frozen; that it is
    these, a comment in their code implies), or ``learnt`` from the network's own start."""
    width: PositiveInt = Field(default=512, ge=6)
    """Length of the decoder's tokens (the authors' figure); a multiple of ``heads``."""
    depth: PositiveInt = 8
    """Blocks of the decoder (the authors' figure)."""
    heads: PositiveInt = 16
    """Attention heads of a block of the decoder (the authors' figure)."""
    hidden: PositiveInt = 2048
    """Hidden units of a block's MLP in the decoder; four times the width, as in the encoder."""
    head_widths: tuple[PositiveInt, ...] = (2048, 2048, 256)
    """Of the projection head: its hidden layers, and an embedding; not known, DINO's."""
    prototypes: PositiveInt = Field(default=4096, ge=2)
    """Numbers that the projection head ends in; not known, our choice for up to some 2000 volumes
    (DINO: 65536)."""
    student_temperature: PositiveFloat = 0.1
    """What the student's cosines are divided by; not known, DINO's."""
    teacher_temperature: PositiveFloat = 0.04
    """What the copy's are divided by; not known, DINO's."""
    centre_momentum: float = Field(default=0.9, ge=0, le=1)
    """How much of the centre stays in a step; not known, DINO's."""
    momentum: float = Field(default=0.996, ge=0, le=1)
    """How much of the copy stays in the first step; not known, DINO's."""
    momentum_ramp: bool = True
    """Whether the momentum rises to 1 along a cosine; not known, DINO's."""
    frozen_prototype_steps: NonNegativeInt = 100
    """Steps at the start in which the last layer of the head stays as it is; not known, our choice:
    about an epoch (DINO's) of the authors' 746 volumes, 8 in a step. 0 is none."""
    local_reconstruction_weight: float = Field(default=1.0, ge=0)
    """Of painting local crops, relative to global ones; not known, our choice."""
    global_agreement_weight: float = Field(default=1.0, ge=0)
    """Of masked global crops agreeing with themselves intact; not known, our choice."""
    local_agreement_weight: float = Field(default=1.0, ge=0)
    """Of local crops agreeing with global ones; not known, our choice."""

    @model_validator(mode="after")
    def _fit_together(self) -> "GLMAEConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads, {self.heads}")
        low, high = self.scales
        if low > high:
            raise ValueError(f"the least of scales, {low}, is above the largest, {high}")
        for name, size in (("global_crop", self.global_crop), ("local_crop", self.local_crop)):
            largest = tuple(round(side * high) for side in size)
            if any(side > room for side, room in zip(largest, self.window, strict=True)):
                raise ValueError(
                    f"{name} {size}, of up to {largest} voxels before it is resampled, does not "
                    f"fit into the window {self.window}; enlarge the window or lower scales"
                )
        if not self.head_widths:
            raise ValueError("head_widths is empty; name the length of an embedding at least")
        return self

    def build(self, backbone: Backbone) -> "GLMAE":
        """GL-MAE around a backbone.

        Raises:
            ConfigError: If the backbone cannot leave out tokens, or its size is none of the two.
        """
        return GLMAE(self, backbone)


class Views(NamedTuple):
    """Crops; in which order their cubes come, the first of which are seen; where they were cut."""

    global_crops: Crops
    global_order: Int64[Tensor, "b n t"]
    global_boxes: Int64[Tensor, "b n 2 3"]
    local_crops: Crops
    local_order: Int64[Tensor, "b n t"]
    local_boxes: Int64[Tensor, "b n 2 3"]


class Kind(NamedTuple):
    """What crops of one kind are like: how many, their voxels, their cubes, how many are seen."""

    name: str
    crops: int
    size: Shape3
    grid: Shape3
    seen: int


class Look(NamedTuple):
    """What the student makes of the masked crops of one kind.

    Attributes:
        painted: Its hidden cubes.
        hidden: What they are.
        blind: What one would paint without looking.
        answers: Cosines of the crops with the prototypes.
    """

    painted: Cubes
    hidden: Cubes
    blind: Cubes
    answers: Answers


class GLMAE(Method):
    """A masked autoencoder of two sizes of crops, with a teacher.

    Args:
        config: The settings.
        backbone: The network to train; only what makes its tokens is.

    Raises:
        ConfigError: If the backbone cannot leave out tokens, if its size is none of the two, or
            too few cubes are left to hide and to see.
    """

    centre: Tensor

    def __init__(self, config: GLMAEConfig, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ConfigError(
                f"glmae hides tokens from the network, and {type(backbone).__name__} has none that "
                "can be left out. Backbones that fit: unetr."
            )
        _check_sizes(config, backbone)
        self.config, self.window, self.patch = config, config.window, backbone.patch
        self.wide = _kind(config, "global", backbone.patch)
        self.narrow = _kind(config, "local", backbone.patch)
        if config.position_code == "fixed":
            fix_position_code(backbone)
        channels = backbone.config.in_channels
        crop = torch.zeros(1, channels, *config.local_crop, device="meta")
        freeze_unreached(backbone, lambda network: network.tokens(crop))
        self.student = Encoder(config, backbone)
        self.decoder = Decoder(
            backbone.width,
            channels * math.prod(backbone.patch),
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
        )
        for kind in (self.wide, self.narrow):
            code = position_code(kind.grid, config.width)
            self.register_buffer(f"{kind.name}_position", code, persistent=False)
        self.teacher = teacher_of(self.student)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self._answered: list[Float[Tensor, "k"]] = []

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut, zoom and mirror crops, and choose which cubes are seen; where the volumes are."""
        return Views(
            *self._cut(volumes, step.draws.child(1), self.wide),
            *self._cut(volumes, step.draws.child(2), self.narrow),
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        views = self.views(batch, step)
        with torch.no_grad():
            intact = views.global_crops.flatten(0, 1)
            answers = self.teacher(intact)[1].unflatten(0, views.global_crops.shape[:2])
            if self.training:
                self._answered.append(mean_over_processes(answers.mean(dim=(0, 1))))
            targets = teacher_shares(answers, self.centre, self.config.teacher_temperature)
        wide = self._look(views.global_crops, views.global_order, self.wide)
        narrow = self._look(views.local_crops, views.local_order, self.narrow)
        return Outcome(self._losses(wide, narrow, targets), self._health(wide, narrow, targets))

    def before_step(self, step: Step) -> None:
        """Let the copy follow the student of the step before, ahead of this step's forward."""
        self._answered.clear()
        follow(self.teacher, self.student, self.chosen_momentum(step))

    def after_backward(self, step: Step) -> None:
        """Leave out the last layer of the head in the first steps."""
        if step.number < self.config.frozen_prototype_steps:
            # With a gradient of zero the optimizer would still decay it.
            self.student.head.prototypes.grad = None

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Let the centre follow what the copy said in this step, in all micro-batches."""
        if self._answered:
            mean = torch.stack(self._answered).mean(dim=0).to(self.centre)
            self.centre.lerp_(mean, 1 - self.config.centre_momentum)
            self._answered.clear()

    def chosen_momentum(self, step: Step) -> float:
        """How much of the copy stays in a step."""
        momentum = self.config.momentum
        return rising(momentum, step.progress) if self.config.momentum_ramp else momentum

    def handover(self) -> Backbone:
        """The backbone that is trained by gradients; the copy and the heads stay behind."""
        return self.student.backbone

    def trained_parts(self) -> tuple[Part, ...]:
        """What makes the tokens; convolutions beside it are not trained."""
        return ("tokens",)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its crops; what is seen of one of each kind, and painted."""
        kinds = (self.wide, self.narrow)
        with torch.no_grad():
            views = self.views(volumes[:1], step)
            pictures = [
                self._pictures(views.global_crops, views.global_order, self.wide),
                self._pictures(views.local_crops, views.local_order, self.narrow),
            ]
        boxes = torch.cat([views.global_boxes[0], views.local_boxes[0]])
        names = [f"{kind.name} {at}" for kind in kinds for at in range(kind.crops)]
        level = self.window[2] // 2
        return [
            boxes_panel("window with its crops", volumes[0], boxes, names, level),
            *(
                Panel(f"{kind.name} crop, {name}", grey(middle_slices(view)[0]))
                for kind, made in zip(kinds, pictures, strict=True)
                for name, view in made.items()
            ),
        ]

    def _cut(
        self, volumes: Volumes, draws: Draws, kind: Kind
    ) -> tuple[Crops, Int64[Tensor, "b n t"], Int64[Tensor, "b n 2 3"]]:
        count = len(volumes)
        boxes = draw_zoomed(
            draws, count, kind.crops, size=kind.size, within=self.window, scales=self.config.scales
        )
        flips = draw_flips(draws, count, kind.crops, self.config.flip_probability)
        order = draws.uniform(count, kind.crops, math.prod(kind.grid)).argsort(dim=2)
        crops = cut_to(volumes, boxes, kind.size, flips)
        return crops, order.to(volumes.device), boxes

    def _look(self, crops: Crops, order: Int64[Tensor, "b n t"], kind: Kind) -> Look:
        flat, orders = crops.flatten(0, 1), order.flatten(0, 1)
        painted, answers = self._painted(flat, orders, kind)
        cubes = to_cubes(flat, self.patch)
        return Look(
            painted,
            hidden_targets(cubes, orders, kind.seen, self.config.targets),
            blind_painting(cubes, orders, kind.seen, self.config.targets),
            answers.unflatten(0, crops.shape[:2]),
        )

    def _painted(
        self, volumes: Volumes, order: Int64[Tensor, "b t"], kind: Kind
    ) -> tuple[Cubes, Float[Tensor, "b k"]]:
        tokens, answers = self.student(volumes, order[:, : kind.seen])
        return self.decoder(tokens, order, self.get_buffer(f"{kind.name}_position")), answers

    def _losses(self, wide: Look, narrow: Look, targets: Answers) -> Losses:
        config = self.config
        # A cross-entropy is linear in the targets: the mean over pairs is that with their mean.
        everything = targets.mean(dim=1, keepdim=True)
        temperature = config.student_temperature
        return {
            "global_reconstruction": painting_loss(wide.painted, wide.hidden, "squared"),
            "local_reconstruction": config.local_reconstruction_weight
            * painting_loss(narrow.painted, narrow.hidden, "squared"),
            "global_agreement": config.global_agreement_weight
            * agreement_loss(targets, wide.answers, temperature),
            "local_agreement": config.local_agreement_weight
            * agreement_loss(everything, narrow.answers, temperature),
        }

    @torch.no_grad()
    def _health(self, wide: Look, narrow: Look, targets: Answers) -> Health:
        """What blind answers cost, whether crops are recognised, and signs of collapse.

        ``agreement_accuracy``: how often what the student says of a local crop is closest to what
        the copy says of the same volume, among all of the batch. ``teacher_entropy``: of what the
        copy says of a crop, in nats; near 0 it names one prototype, at ``largest_entropy`` all
        alike. ``teacher_information``: by how much that is less than the entropy of what it says
        of the whole batch. At 0 it says the same of all crops, whichever: it has collapsed.
        """
        chances = self._blind_losses(wide, narrow)
        everyone = gathered_rows(targets.mean(dim=1), everywhere=self.training)
        start = first_row(len(targets), everywhere=self.training)
        own = torch.arange(start, start + len(targets), device=targets.device)
        right = F.one_hot(own, len(everyone)).to(targets)[:, None]
        entropy = torch.special.entr(targets).sum(dim=2).mean()
        entropy = mean_over_processes(entropy) if self.training else entropy
        together = torch.special.entr(everyone.mean(dim=0)).sum()
        said = log_shares(narrow.answers, self.config.student_temperature)
        with torch.autocast(said.device.type, enabled=False):
            closeness = said @ everyone.mT
        return {
            **{f"{name}_loss_chance": value for name, value in chances.items()},
            "loss_chance": torch.stack(list(chances.values())).sum(),
            "agreement_accuracy": position_accuracy(closeness, right.expand_as(closeness)),
            "agreement_chance": torch.full_like(targets[0, 0, 0], 1 / len(everyone)),
            "teacher_entropy": entropy,
            "largest_entropy": torch.full_like(targets[0, 0, 0], math.log(targets.shape[2])),
            "teacher_information": together - entropy,
            "teacher_distance": distance(self.teacher, self.student),
        }

    def _blind_losses(self, wide: Look, narrow: Look) -> Losses:
        """What painting blindly costs, and answering that all prototypes are equally likely."""
        unsure = torch.zeros_like(wide.answers), torch.zeros_like(narrow.answers)
        blind = [
            look._replace(painted=look.blind, answers=answers)
            for look, answers in zip((wide, narrow), unsure, strict=True)
        ]
        even = torch.full_like(wide.answers, 1 / wide.answers.shape[2])
        return self._losses(blind[0], blind[1], even)

    def _pictures(
        self, crops: Crops, order: Int64[Tensor, "b n t"], kind: Kind
    ) -> dict[str, Volumes]:
        volumes, orders = crops[:1, 0], order[:1, 0]
        painted, _ = self._painted(volumes, orders, kind)
        targets = self.config.targets
        return painted_views(volumes, painted, orders, cube=self.patch, targets=targets)


class Encoder(nn.Module):
    """A backbone's tokens, and what a head says of the crop as a whole.

    Args:
        config: The settings.
        backbone: The network.
    """

    def __init__(self, config: GLMAEConfig, backbone: TokenBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_token = None
        if config.summary == "class_token":
            self.class_token = nn.Parameter(torch.empty(1, backbone.width).normal_(std=0.02))
        self.head = PrototypeHead((backbone.width, *config.head_widths), config.prototypes)

    def forward(
        self, volumes: Volumes, keep: Int64[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b _ e"], Float[Tensor, "b k"]]:
        """Tokens of the cubes, and cosines of the crops with the prototypes.

        Args:
            volumes: Crops of one size.
            keep: Which cubes are seen; ``None`` is all.
        """
        tokens = self.backbone.tokens(volumes, keep, leading=self.class_token)
        if self.class_token is None:
            return tokens, self.head(tokens.mean(dim=1))
        return tokens[:, 1:], self.head(tokens[:, 0])


def fix_position_code(backbone: TokenBackbone) -> None:
    """Write sines and cosines into a network's learned position code, and freeze it.

    Raises:
        ConfigError: If its tokens are too short for a sine and a cosine of each axis.
    """
    if backbone.fixed_size is None:
        return  # a network for any size has no code for each place
    for name, parameter in backbone.network.named_parameters():
        if not name.endswith(backbone.position_suffixes):
            continue
        if backbone.width < 6:
            raise ConfigError(
                f"method.position_code fixed needs tokens of 6 numbers at least, and those of "
                f"{type(backbone).__name__} have {backbone.width}. Set it to learnt."
            )
        code = position_code(cube_grid(backbone.fixed_size, backbone.patch), backbone.width)
        parameter.requires_grad_(False).copy_(code.view_as(parameter))  # noqa: FBT003 (torch's)


def teacher_shares(
    answers: Float[Tensor, "*n k"], centre: Float[Tensor, "k"], temperature: float
) -> Float[Tensor, "*n k"]:
    """How likely a teacher holds each prototype to be: sharpened, after taking off what is usual.

    Args:
        answers: Cosines.
        centre: Their running mean over all crops.
        temperature: What the difference is divided by.
    """
    return log_shares(at_least_float32(answers) - centre, temperature).exp()


def agreement_loss(
    targets: Float[Tensor, "*#n k"], answers: Float[Tensor, "*#n k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of a student's answers with a teacher's shares.

    It is the logarithm of the number of prototypes where the student finds all equally likely.

    Args:
        targets: Shares, which sum to 1.
        answers: Cosines.
        temperature: What the cosines are divided by.
    """
    return -(at_least_float32(targets) * log_shares(answers, temperature)).sum(dim=-1).mean()


def log_shares(answers: Float[Tensor, "*n k"], temperature: float) -> Float[Tensor, "*n k"]:
    """The log-softmax of answers over a temperature; in at least float32, autocast off."""
    with torch.autocast(answers.device.type, enabled=False):
        cut = at_least_float32(answers).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        return (cut / temperature).log_softmax(dim=-1)


def _kind(config: GLMAEConfig, name: Literal["global", "local"], cube: Shape3) -> Kind:
    crops, size, ratio = {
        "global": (config.global_crops, config.global_crop, config.global_mask_ratio),
        "local": (config.local_crops, config.local_crop, config.local_mask_ratio),
    }[name]
    grid = cube_grid(size, cube)
    seen = seen_count(grid, ratio, setting=f"{name}_mask_ratio", size=f"{name}_crop")
    return Kind(name, crops, size, grid, seen)


def _check_sizes(config: GLMAEConfig, backbone: TokenBackbone) -> None:
    """Refuse sizes that are no tokens, and a network that is of neither size.

    Its position code would not be trained on the grid on which it is handed on.
    """
    sizes = (config.global_crop, config.local_crop)
    for size in sizes:
        backbone.check_token_size(size)
    if backbone.fixed_size not in (None, *sizes):
        raise ConfigError(
            f"{type(backbone).__name__} was built for volumes of {backbone.fixed_size} voxels, "
            f"which is neither method.global_crop {sizes[0]} nor method.local_crop {sizes[1]}. Set "
            "the backbone's size to one of them, that of the crops to fine-tune on."
        )
