"""PositionLabel: where does each token lie, and how far are two apart?

Zhang & Gong, *Positional Label for Self-Supervised Vision Transformer*, AAAI 2023 (arXiv
2206.04981); reference: ``zhangzhemin/PositionalLabel``. There both tasks support a supervised loss
or a masked autoencoder; here they stand alone. Which of the two the VoCo paper compares with is
not known, so both are on, and a weight of 0 leaves one out.

The tokens are the voxels of one level of the pyramid (by default the last). A head names the place
of each token in the grid, from the first half of its channels; another names the displacement of
an ordered pair, from the first half of the one and the second half of the other. What differs:

- Three dimensions, with as many classes as the grid of tokens asks for.
- Tokens whose patch is flat (air) all look the same; they are left out.
- Of a fine grid, so many pairs of each volume are drawn as ``pairs`` says.

**Shortcuts.** Whatever tells a token its place without anatomy must be off. ``position_code: off``
sets learned position codes to zero and freezes them (the reference removes the relative one; it
keeps the absolute one of its plain transformer, which can be copied). Zeros around a volume tell a
3x3x3 convolution where the border is, and in a grid of 3x3x3 tokens that is all there is to tell;
``padding: replicate`` lets the border go on instead. What is left is measured: with held-out
cases, ``absolute_accuracy_flat`` is the accuracy on a volume of one value and must be at
``absolute_chance``. The windows of Swin UNETR are filled up with zeros where tokens do not fill
them, which nothing here prevents.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.intensity import draw_shifts, shift
from voco.backbone import Backbone
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, grey, middle_slices
from voco.nn.freeze import freeze_unreached
from voco.nn.health import masked_mean
from voco.nn.unit import at_least_float32
from voco.shapes import Shape3, Volumes
from voco.task import Health, Losses, Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class PositionLabelConfig(MethodConfig):
    """Settings of PositionLabel."""

    name: Literal["positionlabel"] = "positionlabel"
    """Selects this method."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a crop; ours, as the reference has photographs of 224 x 224."""
    level: int = -1
    """Which level of the pyramid holds the tokens; -1 is the last (reference)."""
    absolute_weight: float = Field(default=0.5, ge=0)
    """Weight of naming places (reference: 0.5, beside another loss)."""
    relative_weight: float = Field(default=0.5, ge=0)
    """Weight of naming displacements (reference: 0.5, beside another loss)."""
    pairs: PositiveInt | None = 4096
    """Ordered pairs of each volume, drawn where the grid has more; ``None`` takes all
    (reference). Ours: all of a grid of up to 4 x 4 x 4."""
    position_code: Literal["off", "on"] = "off"
    """Whether learned position codes of the backbone stay. ``off``: they are zero while
    pre-training, are handed over as zero and are learned in fine-tuning."""
    padding: Literal["replicate", "zeros"] = "replicate"
    """What convolutions see beyond a volume while pre-training: its border going on (ours; see
    above), or ``zeros``, as the backbones do otherwise."""
    least_range: float | None = Field(default=0.01, ge=0)
    """Tokens whose patch spans no more than this, in units of the network's input, are left out;
    ours. ``None`` keeps all (reference)."""
    shift_probability: float = Field(default=0.5, ge=0, le=1)
    """Of shifting a crop's intensities; ours."""
    shift: float = Field(default=0.1, ge=0)
    """Largest shift, in units of the network's input; ours."""

    @model_validator(mode="after")
    def _asks_something(self) -> "PositionLabelConfig":
        if not self.absolute_weight + self.relative_weight:
            raise ValueError("absolute_weight and relative_weight are both 0; nothing is learnt")
        return self

    def build(self, backbone: Backbone) -> "PositionLabel":
        """PositionLabel around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size, or its level has less
                than two tokens along every axis, or does not exist.
        """
        return PositionLabel(self, backbone)


class Views(NamedTuple):
    """Crops, which of their tokens show something, and the pairs that are compared."""

    crops: Volumes
    shown: Bool[Tensor, "b t"]
    pairs: Int64[Tensor, "b p two"]


class Answers(NamedTuple):
    """Logits of one head, the right classes, and which rows count."""

    logits: Float[Tensor, "b n classes"]
    labels: Int64[Tensor, "b n"]
    counted: Bool[Tensor, "b n"]


class PositionLabel(Method):
    """Places and displacements of tokens.

    Args:
        config: The settings.
        backbone: The network to train; what does not lead to the tokens is frozen.

    Raises:
        ConfigError: If the backbone's tokens do not fit.
    """

    def __init__(self, config: PositionLabelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.window = config.crop
        backbone.check_size(config.crop)
        self.level = _level(config, backbone)
        stride = backbone.strides[self.level]
        x, y, z = (side // stride for side in config.crop)
        self.grid: Shape3 = (x, y, z)
        if max(self.grid) < 2:
            raise ConfigError(
                f"method.crop {config.crop} leaves a single token of {stride} voxels at "
                f"method.level {config.level} of {type(backbone).__name__}; take a larger crop or "
                "a finer level."
            )
        if config.position_code == "off":
            silence(backbone)
        if config.padding == "replicate":
            pad_by_replication(backbone)
        crop = torch.zeros(1, backbone.config.in_channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda probe: probe.encode(crop)[self.level])
        self._add_heads(backbone.channels[self.level])

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Shift the intensities, look which tokens show something, and draw pairs."""
        count, device = len(volumes), volumes.device
        shifts = draw_shifts(
            step.draws.child(1), count, 1, self.config.shift, self.config.shift_probability
        )
        shown = torch.ones(count, math.prod(self.grid), dtype=torch.bool, device=device)
        if self.config.least_range is not None:
            ranges = patch_ranges(volumes, self.backbone.strides[self.level])
            shown = ranges.flatten(1) > self.config.least_range
        return Views(shift(volumes, shifts[:, 0]), shown, self._pairs(count, step).to(device))

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        views = self.views(batch, step)
        answers = self._answers(self._tokens(views.crops), views)
        losses: Losses = {
            name: self._weights[name] * counted_loss(*answer) for name, answer in answers.items()
        }
        return Outcome(losses, self._health(answers, views))

    def handover(self) -> Backbone:
        """The backbone; the heads stay behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Crops, and how often tokens find their place in them and in a volume of one value."""
        with torch.no_grad():
            views = self.views(volumes, step)
        panels = [
            Panel(f"crop {number}", grey(image))
            for number, image in enumerate(middle_slices(views.crops))
        ]
        if self.absolute is None:
            return panels
        bars = {"flat volume": (float(self._flat_accuracy(views)),)}
        return [*panels, Panel("share of tokens that find their place without anatomy", bars=bars)]

    @property
    def _weights(self) -> dict[str, float]:
        return {"absolute": self.config.absolute_weight, "relative": self.config.relative_weight}

    def _add_heads(self, channels: int) -> None:
        """Heads of the reference's widths, which halve with every layer, for what has a weight."""
        half, tokens = channels // 2, math.prod(self.grid)
        displacements = math.prod(2 * side - 1 for side in self.grid)
        self.absolute = self.relative = None
        if self.config.absolute_weight:
            self.absolute = _head(half, half, max(1, half // 2), tokens)
        if self.config.relative_weight:
            self.relative = _head(channels, half, displacements)

    def _tokens(self, crops: Volumes) -> Float[Tensor, "b t e"]:
        return self.backbone.encode(crops)[self.level].flatten(2).mT

    def _pairs(self, count: int, step: Step) -> Int64[Tensor, "b p two"]:
        """First and second token of every pair, or of so many drawn for each volume."""
        tokens = math.prod(self.grid)
        numbers = torch.arange(tokens**2).expand(count, -1)
        if self.config.pairs is not None and self.config.pairs < tokens**2:
            numbers = step.draws.child(2).integers(count, self.config.pairs, high=tokens**2)
        return torch.stack([numbers // tokens, numbers % tokens], dim=2)

    def _answers(self, tokens: Float[Tensor, "b t e"], views: Views) -> dict[str, Answers]:
        count, places, channels = tokens.shape
        half, answers = channels // 2, {}
        if self.absolute is not None:
            labels = torch.arange(places, device=tokens.device).expand(count, -1)
            answers["absolute"] = Answers(self.absolute(tokens[..., :half]), labels, views.shown)
        if self.relative is not None:
            rows = torch.arange(count, device=tokens.device)[:, None]
            first, second = views.pairs.unbind(dim=2)
            joined = torch.cat([tokens[rows, first, :half], tokens[rows, second, half:]], dim=2)
            counted = views.shown[rows, first] & views.shown[rows, second]
            labels = relative_labels(views.pairs, self.grid)
            answers["relative"] = Answers(self.relative(joined), labels, counted)
        return answers

    @torch.no_grad()
    def _health(self, answers: dict[str, Answers], views: Views) -> Health:
        health = {"shown_tokens": views.shown.float().mean()}
        for name, answer in answers.items():
            right = answer.logits.argmax(dim=2) == answer.labels
            health[f"{name}_accuracy"] = masked_mean(right.float(), answer.counted)
            loss = self._weights[name] * _blind_loss(name, self.grid)
            chances = {"": 1 / math.prod(self.grid), "_loss": loss}
            for kind, value in chances.items():
                health[f"{name}{kind}_chance"] = torch.full((), value, device=right.device)
        if not self.training and self.absolute is not None:
            health["absolute_accuracy_flat"] = self._flat_accuracy(views)
        return health

    @torch.no_grad()
    def _flat_accuracy(self, views: Views) -> Float[Tensor, ""]:
        """How many tokens find their place in a volume of one value."""
        flat = torch.full_like(views.crops[:1], 0.5)
        everything = Views(flat, torch.ones_like(views.shown[:1]), views.pairs[:1])
        answer = self._answers(self._tokens(flat), everything)["absolute"]
        # Tokens that are equal but for rounding must not profit from it.
        return (
            (answer.logits.float().round(decimals=3).argmax(dim=2) == answer.labels).float().mean()
        )


def relative_labels(pairs: Int64[Tensor, "*b two"], grid: Shape3) -> Int64[Tensor, "*b"]:
    """The class of each pair's displacement, first token minus second.

    With displacements shifted to start at 0, the number in a grid of ``2 g - 1`` per axis, x
    outermost: that of a token and itself is the middle one, and those of ``(i, j)`` and ``(j, i)``
    add up to the number of classes less one.

    Args:
        pairs: Numbers of tokens, x outermost.
        grid: Tokens along each axis.
    """
    labels = torch.zeros_like(pairs[..., 0])
    strides = (grid[1] * grid[2], grid[2], 1)
    for side, stride in zip(grid, strides, strict=True):
        places = pairs // stride % side
        labels = labels * (2 * side - 1) + places[..., 0] - places[..., 1] + side - 1
    return labels


def counted_loss(
    logits: Float[Tensor, "b n classes"],
    labels: Int64[Tensor, "b n"],
    counted: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the rows that count: their mean in each volume, then over volumes.

    A volume of which no row counts adds 0. In at least float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(at_least_float32(logits).mT, labels, reduction="none")
        sums = torch.where(counted, losses, 0).sum(dim=1)
        return (sums / counted.sum(dim=1).clamp(min=1)).mean()


def patch_ranges(volumes: Volumes, side: int) -> Float[Tensor, "b _ _ _"]:
    """Greatest less least value of each patch, over all channels."""
    greatest = F.max_pool3d(volumes, side).amax(dim=1)
    return greatest + F.max_pool3d(-volumes, side).amax(dim=1)


def silence(backbone: Backbone) -> None:
    """Set a backbone's learned position codes to zero, and freeze them."""
    for name, parameter in backbone.network.named_parameters():
        if name.endswith(backbone.position_suffixes):
            nn.init.zeros_(parameter).requires_grad_(False)  # noqa: FBT003 (torch's signature)


def pad_by_replication(module: nn.Module) -> None:
    """Let all convolutions see the border of a volume go on, where they would see zeros."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and any(part._reversed_padding_repeated_twice):
            part.padding_mode = "replicate"


def _blind_loss(name: str, grid: Shape3) -> float:
    """Loss, before its weight, of the best answer that looks at nothing: the classes' entropy."""
    if name == "absolute":
        return math.log(math.prod(grid))
    # Displacements are the more frequent the smaller they are.
    shares = [(side - abs(d)) / side**2 for side in grid for d in range(1 - side, side)]
    return -sum(share * math.log(share) for share in shares)


def _head(*widths: int) -> nn.Sequential:
    """A linear layer, GELU, and linear layers down to the classes."""
    first, *rest = [nn.Linear(before, after) for before, after in pairwise(widths)]
    return nn.Sequential(first, nn.GELU(), *rest)


def _level(config: PositionLabelConfig, backbone: Backbone) -> int:
    """The number of the level, from 0."""
    levels = len(backbone.channels)
    if not -levels <= config.level < levels:
        raise ConfigError(
            f"method.level {config.level}: {type(backbone).__name__} has {levels} levels, "
            f"{-levels} to {levels - 1}."
        )
    return config.level % levels
