"""VoCo: predict which parts of a volume a crop overlaps.

Wu, Zhuang & Chen, *VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D
Medical Image Analysis*, CVPR 2024 (arXiv 2402.17300), and its successor (arXiv 2410.09890).

Four different things carry this name; ``variant`` chooses one. ``paper`` is the method as
published, ``v0`` the first public head, ``v1`` the code of the repository ``Luffy03/VoCo``
(adds a teacher), ``v2`` that of ``Luffy03/Large-Scale-Medical`` (a teacher projector and a term
between volumes). ``docs/concepts/voco.md`` sets them side by side.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import pack, repeat
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.crops import augmented, draw_kept
from voco.backbone import Backbone
from voco.draws import Draws
from voco.embedding import Embedder, Levels
from voco.errors import ConfigError
from voco.geometry import boxes_at, grid_boxes, overlap
from voco.method import Method, MethodConfig, Panel, boxes_panel, grey, middle_slices
from voco.nn.ema import distance, follow, teacher_of
from voco.nn.gather import following_rows, world_size
from voco.nn.health import effective_rank, position_chance, share_health
from voco.nn.unit import at_least_float32, unit
from voco.shapes import Boxes, Crops, Shape3, Volumes
from voco.task import Health, Losses, Outcome, Step

Variant = Literal["paper", "v0", "v1", "v2"]
"""Which of the things that are called VoCo."""

PairGradient = Literal["both", "first"]
"""Which members of a pair of bases the regularization moves."""

PAIR_GRADIENT: dict[Variant, PairGradient] = {
    "paper": "both",
    "v0": "both",
    "v1": "first",
    "v2": "first",
}
"""What each variant does."""

Counts3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Margins3 = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class Choices(NamedTuple):
    """The settings in which the variants differ; see the fields of :class:`VoCoConfig`."""

    grid: Shape3 = (4, 4, 1)
    crop: Shape3 = (64, 64, 64)
    resize: Shape3 | None = None
    query_count: int = 2
    levels: Levels = "backbone"
    hidden: int = 2048
    width: int = 2048
    shift_probability: float = 0.1
    crop_dropout: float = 0.0
    pair_gradient: PairGradient = "both"


OWN: dict[Variant, Choices] = {
    "paper": Choices(query_count=4),
    "v0": Choices(query_count=4, levels="last"),
    "v1": Choices(crop=(96, 96, 96), resize=(64, 64, 64), pair_gradient=PAIR_GRADIENT["v1"]),
    "v2": Choices(
        grid=(3, 3, 1),
        hidden=1024,
        width=1024,
        shift_probability=0.5,
        crop_dropout=0.2,
        pair_gradient=PAIR_GRADIENT["v2"],
    ),
}
"""What each variant's own settings are."""


class VoCoConfig(MethodConfig):
    """Settings of VoCo. What is left out (None) is as the variant has it."""

    name: Literal["voco"] = "voco"
    """Selects this method."""
    variant: Variant = "v1"
    """``paper`` (CVPR 2024: no teacher), ``v0`` (first public head), ``v1`` (public code: a
    teacher network), ``v2`` (successor: a teacher projector, a term between volumes). The default
    learnt position fastest where we measured (``docs/concepts/voco.md``)."""
    grid: Counts3 | None = None
    """Base crops along x, y and z. Own: 4 4 1; v2 3 3 1."""
    crop: Counts3 | None = None
    """Size of a base crop in voxels of the window. Own: v1 96 96 96, resampled to 64 64 64; v2
    64 64 64; paper and v0 64 64 64, which is our choice, as no source gives theirs."""
    resize: Counts3 | None = None
    """Crops are resampled to this size before the network. ``None`` with the variant's own crop
    is the variant's own; with a crop given here it is no resampling."""
    query_count: PositiveInt | None = None
    """Random crops per volume. Own: v1 and v2 2; paper and v0 4, which is unconfirmed (a
    comment in the nnssl port says so)."""
    query_crop: Counts3 | None = None
    """Size of a random crop in voxels of the window; ``None`` is that of a base crop."""
    margin: Margins3 = (0, 0, 0)
    """Voxels on each side of the grid into which random crops may reach (none in the references);
    the window grows by it. Must be below the random crop's size, so that every crop touches the
    grid."""
    flip_probability: float = Field(default=0.2, ge=0, le=1)
    """Of mirroring a crop along an axis, for each axis alone (v1, v2; else unconfirmed)."""
    turn_probability: float = Field(default=0.2, ge=0, le=1)
    """Of turning a crop by 90, 180 or 270 degrees in the x-y plane (v1, v2; else unconfirmed); by
    180 where x and y sides differ."""
    shift_probability: float | None = Field(default=None, ge=0, le=1)
    """Of shifting a crop's intensities. Own: v1 0.1, v2 0.5; paper and v0 0.1, unconfirmed."""
    shift: float = Field(default=0.1, ge=0)
    """Largest shift of intensities, in units of the network's input (v1, v2)."""
    levels: Levels | None = None
    """Which levels of the pyramid are averaged over space and joined: those the ``backbone``
    names, or the ``last``. Own: v0 the last; v1 and v2 the backbone's; so too for the paper,
    which does not say."""
    hidden: PositiveInt | None = None
    """Width of the projector's two hidden layers. Own: 2048 (unconfirmed for paper); v2 1024."""
    width: PositiveInt | None = None
    """Length of an embedding. Own: 2048 (unconfirmed for paper); v2 1024."""
    crop_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of zeroing a crop's pooled features before the student's projector (the others
    are scaled up). Own: 0; v2 0.2."""
    momentum: float = Field(default=0.9, ge=0, le=1)
    """Of the teacher (v1, v2): how much of it stays in each step."""
    teacher_from_student: bool = True
    """Whether the teacher starts as a copy of the student. The reference starts it elsewhere, so
    that its first targets are noise."""
    regularization_weight: float = Field(default=1.0, ge=0)
    """Weight of the regularization (lambda in the paper)."""
    pair_gradient: PairGradient | None = None
    """Which bases of a pair the regularization moves: ``both``, or the ``first`` alone, so that
    base 0 is pushed by all others and the last by none. Own: both; v1 and v2 first."""
    rectify: Literal["clamp", "halve"] = "clamp"
    """How a cosine becomes a similarity: ``clamp`` to [0, 1] (v0, v1, v2), or ``halve``,
    (1 + cosine) / 2, which always has a gradient but is another method."""
    epsilon: PositiveFloat = 1e-6
    """Added inside the logarithms (v0, v1, v2; the printed formula has none)."""
    crops_at_once: PositiveInt | None = None
    """Crops that pass through the backbone together; ``None`` is all on a GPU, and on a CPU as many
    as have 800,000 voxels together. Fewer need less memory at once; results do not depend
    on it."""
    handed_over: Literal["student", "teacher"] = "student"
    """Whose backbone goes on, where there is a teacher network (v1). Which of the two the public
    weights are is not known."""

    def choices(self) -> Choices:
        """What holds where the variants differ: what is given here, else the variant's own."""
        given = {
            name: value for name in Choices._fields if (value := getattr(self, name)) is not None
        }
        own = OWN[self.variant]
        return (own._replace(resize=None) if self.crop else own)._replace(**given)

    def resolved(self) -> "VoCoConfig":
        """The same settings with the variant's own written out."""
        return self.model_copy(update=self.choices()._asdict())

    def build(self, backbone: Backbone) -> "VoCo":
        """VoCo around a backbone; a ConfigError if that does not take crops of this size."""
        return VoCo(self, backbone)

    @model_validator(mode="after")
    def _fit_together(self) -> "VoCoConfig":
        chosen = self.choices()
        query = self.query_crop or chosen.crop
        window = _window(chosen, self.margin)
        if np.prod(chosen.grid) < 2:
            raise ValueError(f"grid {chosen.grid} has one base; at least two are needed")
        if any(side > room for side, room in zip(query, window, strict=True)):
            raise ValueError(
                f"query_crop {query} does not fit into the window of {window} voxels "
                "(grid x crop + 2 x margin)"
            )
        if any(margin >= side for margin, side in zip(self.margin, query, strict=True)):
            raise ValueError(
                f"margin {self.margin} must be below the size of a random crop, {query}, so that "
                "every crop touches the grid"
            )
        return self


class Views(NamedTuple):
    """Random crops, base crops, and the share of each of the first in each of the second."""

    queries: Crops
    bases: Crops
    overlap: Float[Tensor, "b q k"]


class Embedded(NamedTuple):
    """Embeddings of random crops and of base crops."""

    queries: Float[Tensor, "b q e"]
    bases: Float[Tensor, "b k e"]


class VoCo(Method):
    """Volume contrast. Freezes the backbone's decoder and output layer."""

    def __init__(self, config: VoCoConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.chosen = chosen = config.choices()
        self.query_crop: Shape3 = config.query_crop or chosen.crop
        self.window = _window(chosen, config.margin)
        for size in {chosen.resize or chosen.crop, chosen.resize or self.query_crop}:
            backbone.check_size(size)
        self.student = Embedder(
            backbone,
            levels=chosen.levels,
            widths=(chosen.hidden, chosen.hidden, chosen.width),
            size=chosen.resize or chosen.crop,
            at_once=config.crops_at_once,
            std=0.02 if config.variant == "v0" else None,
        )
        self.teacher = self._teacher()
        chance = position_chance(self.base_boxes(), self.query_crop, self.window)
        self.register_buffer("position_chance", chance, persistent=False)

    def base_boxes(self) -> Boxes:
        """Where the bases lie in the window."""
        return grid_boxes(self.chosen.grid, self.chosen.crop, origin=self.config.margin)

    def query_boxes(self, count: int, step: Step) -> Int64[Tensor, "b q 2 3"]:
        """Where the random crops of ``count`` volumes lie in their windows."""
        places = step.draws.child(1).uniform(count, self.chosen.query_count, 3)
        boxes = boxes_at(places.flatten(0, 1), self.query_crop, self.window)
        return boxes.unflatten(0, (count, self.chosen.query_count))

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut, resample and augment the crops, each on its own; where the volumes are."""
        draws = step.draws.child(2)
        queries = self.query_boxes(len(volumes), step)
        bases = repeat(self.base_boxes(), "k two three -> b k two three", b=len(volumes))
        return Views(
            self._augmented(volumes, queries, self.query_crop, draws),
            self._augmented(volumes, bases, self.chosen.crop, draws),
            overlap(queries, bases).to(volumes.device, non_blocking=True),
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        views = self.views(batch, step)
        student, teacher = self._embedded(views, step)
        predicted = self.predicted(student, teacher)
        losses = self.losses(student, teacher, predicted, views.overlap)
        return Outcome(losses, self._health(predicted.detach(), views.overlap, student))

    def handover(self) -> Backbone:
        """The student's backbone, or the teacher's if the settings say so."""
        if self.config.handed_over == "teacher" and isinstance(self.teacher, Embedder):
            return self.teacher.backbone
        return self.student.backbone

    def before_step(self, step: Step) -> None:
        """Let the teacher follow the student of the step before, ahead of this step's forward."""
        if self.teacher is not None:
            follow(self.teacher, self._followed(), self.config.momentum)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its bases and random crops; true and predicted shares."""
        training = self.training
        # Other processes do not take part: nothing may wait for them.
        self.eval()
        with torch.no_grad():
            views = self.views(volumes[:1], step)
            predicted = self.predicted(*self._embedded(views, step))
        self.train(training)
        return self._panels(volumes[:1], views, predicted, self.query_boxes(1, step)[0])

    def _augmented(self, volumes: Volumes, boxes: Tensor, own: Shape3, draws: Draws) -> Crops:
        return augmented(
            volumes,
            boxes,
            draws,
            size=self.chosen.resize or own,
            flip_probability=self.config.flip_probability,
            turn_probability=self.config.turn_probability,
            shift_probability=self.chosen.shift_probability,
            shift_strength=self.config.shift,
        )

    def _teacher(self) -> nn.Module | None:
        if self.config.variant not in ("v1", "v2"):
            return None
        return teacher_of(self._followed(), copied=self.config.teacher_from_student)

    def _followed(self) -> nn.Module:
        """What the teacher is the average of."""
        return self.student if self.config.variant == "v1" else self.student.projector

    def _embedded(self, views: Views, step: Step) -> tuple[Embedded, Embedded | None]:
        parts = [views.queries.flatten(0, 1), views.bases.flatten(0, 1)]
        with torch.no_grad():
            taught = self.teacher(*parts) if self.config.variant == "v1" and self.teacher else None
        features = self.student.pool(*parts)
        rows = self.student.projector(features * self._kept(views.overlap, step).to(features))
        if self.config.variant == "v2" and self.teacher:
            with torch.no_grad():
                taught = self.teacher(features)
        return _split(rows, views), None if taught is None else _split(taught, views)

    def _kept(self, shares: Float[Tensor, "b q k"], step: Step) -> Float[Tensor, "n 1"]:
        """What the pooled features of each crop are multiplied by; rows as of the features."""
        rate = self.chosen.crop_dropout if self.training else 0.0
        volumes, queries, bases = shares.shape
        kept = draw_kept(step.draws.child(3), volumes, queries + bases, rate)
        parts, _ = pack([kept[:, :queries].flatten(), kept[:, queries:].flatten()], "*")
        return parts[:, None]

    def predicted(self, student: Embedded, teacher: Embedded | None) -> Float[Tensor, "b q k"]:
        """Predicted share of each random crop in each base."""
        if teacher is None:
            return self._similarity(student.queries, student.bases.detach())
        forth = self._similarity(student.queries, teacher.bases)
        if self.config.variant == "v2":
            return forth
        return (forth + self._similarity(teacher.queries, student.bases)) / 2

    def losses(
        self, student: Embedded, teacher: Embedded | None, predicted: Tensor, shares: Tensor
    ) -> Losses:
        """The losses by name, of embeddings, predicted shares (:meth:`predicted`) and true ones."""
        variant, weight = self.config.variant, self.config.regularization_weight
        alike = regularization_loss(student.bases, variant, pair_gradient=self.chosen.pair_gradient)
        prediction = self._prediction_loss(predicted, shares)
        if variant != "v2" or teacher is None:
            return {"prediction": prediction, "regularization": weight * alike}
        inter = self._inter(student, teacher)
        return {"intra": prediction, "inter": inter, "regularization": weight * alike}

    def _inter(self, student: Embedded, teacher: Embedded) -> Float[Tensor, ""]:
        """What the teacher says of a volume's random crops and the next volume's bases."""
        volumes = len(student.bases) * (world_size() if self.training else 1)
        if volumes == 1:
            if self.training:
                raise ConfigError(
                    "variant v2 compares each volume of a batch with the next and got a batch of "
                    "one; set batch_size (divided by optimizer.accumulate) to at least 2, or "
                    "choose another method.variant."
                )
            return student.bases.new_zeros((), dtype=torch.float32)
        everywhere = self.training
        with torch.no_grad():
            bases = following_rows(teacher.bases, everywhere=everywhere)
            target = self._similarity(teacher.queries, bases)
        bases = following_rows(student.bases, everywhere=everywhere)
        return self._prediction_loss(self._similarity(student.queries, bases), target)

    def _similarity(self, queries: Tensor, bases: Tensor) -> Tensor:
        return similarity(queries, bases, rectify=self.config.rectify)

    def _prediction_loss(self, predicted: Tensor, shares: Tensor) -> Tensor:
        return prediction_loss(predicted, shares, self.config.variant, epsilon=self.config.epsilon)

    @torch.no_grad()
    def _health(self, predicted: Tensor, shares: Tensor, student: Embedded) -> Health:
        health = {
            **share_health(predicted, shares),
            "position_chance": self.position_chance,
            "effective_rank": effective_rank(student.bases.flatten(0, 1)),
        }
        if self.teacher is not None:
            health["teacher_distance"] = distance(self.teacher, self._followed())
        return health

    def _panels(
        self, volumes: Volumes, views: Views, predicted: Tensor, queries: Boxes
    ) -> list[Panel]:
        # Names of bases tell their place; z is left out where there is one layer.
        axes = 3 if self.chosen.grid[2] > 1 else 2
        places = [" ".join(map(str, place[:axes])) for place in np.ndindex(self.chosen.grid)]
        names = places + [f"crop {number}" for number in range(len(queries))]
        boxes = torch.cat([self.base_boxes(), queries])
        level = int(queries[0, :, 2].sum()) // 2
        title = "window with bases and random crops"
        panels = [boxes_panel(title, volumes[0], boxes, names, level)]
        for number, image in enumerate(middle_slices(views.queries[0])):
            pairs = torch.stack([views.overlap[0, number], predicted[0, number]], dim=1)
            bars = {name: tuple(pair) for name, pair in zip(places, pairs.tolist(), strict=True)}
            panels += [
                Panel(f"crop {number} as the network sees it", grey(image)),
                Panel(f"crop {number}: true share, predicted similarity", bars=bars),
            ]
        return panels


def _split(rows: Float[Tensor, "n e"], views: Views) -> Embedded:
    """Rows of all random crops and then of all base crops, by volume."""
    volumes, queries, bases = views.overlap.shape
    parts = rows.split([volumes * queries, volumes * bases])
    return Embedded(
        parts[0].unflatten(0, (volumes, queries)), parts[1].unflatten(0, (volumes, bases))
    )


def _window(chosen: Choices, margin: Shape3) -> Shape3:
    parts = zip(chosen.grid, chosen.crop, margin, strict=True)
    x, y, z = (cells * side + 2 * edge for cells, side, edge in parts)
    return (x, y, z)


# The losses. All are computed in at least float32 with autocast off, and are finite in value and
# gradient for every finite input; their parameters say what bounds them.


def similarity(
    queries: Float[Tensor, "*n q e"],
    bases: Float[Tensor, "*n k e"],
    *,
    rectify: Literal["clamp", "halve"] = "clamp",
) -> Float[Tensor, "*n q k"]:
    """How much each query is like each base, from 0 to 1: the cosine, brought to that range.

    At least float32, whatever comes in. A vector of zeros is unlike everything.

    Args:
        queries: Embeddings of random crops.
        bases: Embeddings of base crops.
        rectify: ``clamp`` to [0, 1]; or ``halve``, ``(1 + cosine) / 2``.
    """
    with torch.autocast(queries.device.type, enabled=False):
        cosines = unit(queries) @ unit(bases).mT
        values = cosines.relu() if rectify == "clamp" else (1 + cosines).relu() / 2
        # Rounding takes cosines of equal vectors above 1.
        return values.clamp(max=1)


def prediction_loss(
    similarity: Float[Tensor, "*n q k"],
    overlap: Float[Tensor, "*n q k"],
    variant: Variant = "paper",
    *,
    epsilon: float = 1e-6,
) -> Float[Tensor, ""]:
    """How far predicted shares are from true ones; per volume, then averaged over volumes.

    With ``y`` the true and ``l`` the predicted share and ``d = |y - l|``:

    - ``paper``: the mean of ``-log(1 - d)`` over all pairs;
    - ``v0``: its mean where ``y > 0``, plus the mean of ``l^2`` where ``y = 0``;
    - ``v1``: as v0, the first mean weighted by ``y``;
    - ``v2``: as v1, with ``-log(1 - l)`` in place of ``l^2``.

    Args:
        similarity: Predicted shares; clamped to [0, 1].
        overlap: True shares; clamped to [0, 1]. No gradient is meant to reach them.
        variant: Which of the four.
        epsilon: Added inside the logarithms, which are then cut at 0: at ``d = 0`` the loss is
            exactly 0, at ``d = 1`` it is ``-log(epsilon)`` with a slope of ``1 / epsilon``.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        predicted = at_least_float32(similarity).clamp(0, 1)
        true = at_least_float32(overlap).clamp(0, 1)
        near = _surprise((true - predicted).abs(), epsilon)
        if variant == "paper":
            return near.mean()
        far = _surprise(predicted, epsilon) if variant == "v2" else predicted.square()
        weights = (true > 0).to(near) if variant == "v0" else true
        return (_weighted_mean(near, weights) + _weighted_mean(far, (true == 0).to(far))).mean()


def regularization_loss(
    bases: Float[Tensor, "*n k e"],
    variant: Variant = "paper",
    *,
    pair_gradient: PairGradient | None = None,
) -> Float[Tensor, ""]:
    """How alike the bases of a volume are, from 0 to 1: the mean over pairs, then over volumes.

    ``paper``: the absolute cosine; ``v0``, ``v1``, ``v2``: the square of its positive part. A
    single base is like nothing: 0. It is *added* to the loss, as in all public code; subtracted,
    it would reward bases that are all the same.

    Args:
        bases: Embeddings of base crops.
        variant: Which of the four.
        pair_gradient: Which base of a pair the gradient moves; ``None`` is the variant's own.
    """
    first = (pair_gradient or PAIR_GRADIENT[variant]) == "first"
    with torch.autocast(bases.device.type, enabled=False):
        directions = unit(bases)
        others = directions.detach() if first else directions
        cosines = (directions @ others.mT).triu(diagonal=1)
        penalties = cosines.abs() if variant == "paper" else cosines.relu().square()
        count = bases.shape[-2]
        return (penalties.sum(dim=(-2, -1)) / max(1, count * (count - 1) // 2)).mean()


def _surprise(gap: Tensor, epsilon: float) -> Tensor:
    return -torch.log((1 - gap + epsilon).clamp(max=1))


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean over the pairs of each volume; 0 where nothing has weight."""
    total = (values * weights).sum(dim=(-2, -1))
    return total / (weights.sum(dim=(-2, -1)) + 1e-6)
