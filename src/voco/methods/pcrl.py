"""PCRL: tell places apart, and keep enough of an image to restore it, mirrored and turned.

Zhou et al., *Preservational Learning Improves Self-supervised Medical Image Models by
Reconstructing Diverse Contexts*, ICCV 2021 (arXiv 2109.04379); code ``Luchixiang/PCRL``. Two
overlapping crops of a volume are changed and damaged. The network sees the first; a copy of it,
which follows slowly, sees the second.

- *Contrast*: the embedding of the first must be nearer to that of the second than to those of
  thousands of earlier crops, which a queue remembers.
- *Restoration*: the decoder gives back the first crop mirrored and turned at random. It is told how
  by a code that opens and closes channels of the coarsest level. A second time it starts from the
  features of both networks, blended at all levels, and gives back the same blend of both crops.
- Both once more for mixtures of each crop with that of the next volume, without a code. The
  embedding of such a mixture must also match the same mixture of two embeddings.

Encoder *and* decoder are trained and handed on; the copy stays behind. Four things in the code are
not what they seem meant to be. The repair is the default of each, and a setting restores the code:

- ``targets: damaged``: what is to be restored is the crop with its damages, just as the network
  sees it: nothing is repaired, and noise is to be kept. ``clean`` is the crop before blur,
  shuffling and painting.
- ``mixed_targets: unaligned``: what is to be restored of a mixture are crops before they were
  mirrored, turned and stretched by amounts that nothing tells, so that a blur is the best answer.
  ``aligned`` is moved as the network's input is.
- ``contrast: memory_bank``: a two-way guess for each candidate instead of one choice among all.
  Its scale is frozen at what the untrained network gave in the first step. The number of training
  images that the formula asks for is there the number of batches; it cancels but for 1e-5, which
  is left out here. ``infonce`` is the plain choice.
- ``queued: all``: keys of mixtures go into the queue too, and all of them before the next term is
  computed. So the two places that a mixture was made of stand among those it must differ from.
  ``keys`` puts the keys of whole crops there, after the step.

What differs besides:

- Pairs of crops are drawn anew in every step; the reference draws 16 of each scan once.
- Shares of mixtures and blends are drawn for each volume, in the code once for a batch; a mixture
  has a part of the *next* volume, in the code of a random one.
- Damages of the two crops are drawn each on their own; in the code both are painted, or none.
- Blur has one width along all axes; crops are resampled linearly, without smoothing before.
- The queue starts at random, as in the code, but its rows count at unit length.
- No shuffled batch norm: most backbones here have none, and that of `genesis_unet` is over the
  batch of all processes.
- The reference leaves out crops with much air; ``windows.foreground`` keeps windows on the body.
- Training is by the optimizer of the recipe, AdamW; the reference has SGD.

The article describes another way of telling the transform, an outer product, which its code does
not have; nor does this. Crops come out of a window, whose size is our choice, not out of a whole
scan. The smallest of the reference's sizes hardly ever finds a partner that overlaps enough.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from voco.augment.appearance import blurred
from voco.augment.cut import cut_to
from voco.augment.damage import block_sides, painted, shuffled
from voco.augment.intensity import IntensityRange, scaled, unscaled
from voco.augment.pairs import moved, overlapping_boxes, swayed
from voco.augment.spatial import draw_flips, draw_turns
from voco.backbone import Backbone
from voco.draws import Draws
from voco.method import Method, MethodConfig, Panel, grey, middle_slices, pair_panels
from voco.nn.ema import distance, follow, teacher_of
from voco.nn.freeze import freeze_unreached
from voco.nn.gather import following_rows, gathered_rows
from voco.nn.health import effective_rank
from voco.nn.info_nce import info_nce, pair_health
from voco.nn.pooling import level_means
from voco.nn.unit import at_least_float32, unit
from voco.shapes import Crops, Level, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Embeddings = Float[Tensor, "b e"]

_CODE = 7
"""Numbers in a code: whether mirrored along x, y, z; and none, one, two or three quarter turns."""
_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""
_SHOWN = 4


class PCRLConfig(MethodConfig):
    """Settings of PCRL."""

    name: Literal["pcrl"] = "pcrl"
    """Selects this method."""
    window: Sides3 = (128, 128, 112)
    """Voxels of the window that crops are cut from; our choice (a whole scan in the reference)."""
    sizes: tuple[Sides3, ...] = Field(
        default=((64, 64, 32), (96, 96, 48), (96, 96, 96), (32, 32, 16), (112, 112, 64)),
        min_length=1,
    )
    """Voxels that a crop may have in the window (reference)."""
    least_overlap: float = Field(default=0.25, ge=0, lt=1)
    """What two crops share is more than this share of what they cover together (reference)."""
    crop: Sides3 = (64, 64, 32)
    """Voxels that every crop is resampled to (reference)."""
    intensities: IntensityRange = (0.0, 1.0)
    """Least and largest intensity of the network's input: 0 and 1 for windows and percentiles,
    -5 and 5 for z-scores. Noise and targets are in that range."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring a crop along x before the network sees it (reference)."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """By how much each axis of a crop is stretched or shrunk at most, as a share (reference)."""
    degrees: NonNegativeFloat = 10.0
    """By how much a crop is turned about each axis at most (reference)."""
    blur: NonNegativeFloat = 2.0
    """Largest standard deviation of the blur of a crop, in voxels (reference)."""
    shuffle_probability: float = Field(default=0.5, ge=0, le=1)
    """Of shuffling voxels of a crop within blocks (reference)."""
    shuffle_blocks: PositiveInt = 10_000
    """Blocks of a crop, with sides up to a tenth of its own (reference)."""
    paint_probability: float = Field(default=0.9, ge=0, le=1)
    """Of painting a crop (reference)."""
    inpaint_share: float = Field(default=0.2, ge=0, le=1)
    """Share of paintings in which boxes become noise; in the others, all outside of them does
    (reference)."""
    targets: Literal["clean", "damaged"] = "clean"
    """Whether a crop is to be restored as it was before blur and damage, or with both
    (reference)."""
    mixed_targets: Literal["aligned", "unaligned"] = "aligned"
    """Whether what is to be restored of a mixture lies where the network sees it, or where it lay
    before it was mirrored, turned and stretched (reference)."""
    contrast: Literal["infonce", "memory_bank"] = "infonce"
    """One choice among all candidates, or a two-way guess for each with a frozen scale
    (reference)."""
    queued: Literal["keys", "all"] = "keys"
    """Which keys the queue remembers: those of whole crops, or those of mixtures too
    (reference)."""
    queue: PositiveInt = 16_384
    """Keys that are remembered (reference)."""
    width: PositiveInt = 128
    """Length of an embedding, and width of the head's hidden layer (reference)."""
    temperature: PositiveFloat = 0.2
    """What cosines are divided by (reference)."""
    momentum: float = Field(default=0.999, ge=0, le=1)
    """How much of the copy stays in each step (reference)."""
    code_hidden: PositiveInt = 256
    """Hidden units between a code and the channels that it opens and closes (reference)."""
    sigmoid: bool = True
    """Whether the output passes through a sigmoid (reference)."""
    contrast_weight: PositiveFloat = 1.0
    """Weight of the mean of the three contrasts (reference)."""
    restoration_weight: PositiveFloat = 1.0
    """Weight of the mean of the four restorations (reference)."""

    @model_validator(mode="after")
    def _fit_together(self) -> "PCRLConfig":
        for size in self.sizes:
            if any(side > room for side, room in zip(size, self.window, strict=True)):
                raise ValueError(f"size {size} does not fit into the window {self.window}")
        return self

    def build(self, backbone: Backbone) -> "PCRL":
        """PCRL around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size.
        """
        return PCRL(self, backbone)


class Views(NamedTuple):
    """What the two networks see, and what they are to make of it.

    Attributes:
        looks: The two crops of each volume, changed and damaged.
        targets: What is to be restored of them, from 0 to 1: mirrored and turned.
        clean: What is to be restored of mixtures of them, before it is mixed; from 0 to 1.
        codes: How each target is mirrored and turned.
        shares: Of the first network in the blend of features; of the volume itself in mixtures;
            and of the first network in the blend of features of mixtures.
        boxes: Where the crops were cut out.
    """

    looks: Crops
    targets: Crops
    clean: Crops
    codes: Float[Tensor, "b n code"]
    shares: Float[Tensor, "b three"]
    boxes: Int64[Tensor, "b n 2 3"]


class Branch(NamedTuple):
    """What is made of a pair of crops.

    Attributes:
        query: Embedding of the first.
        key: Embedding of the second, by the copy.
        restored: From the features of the first.
        restored_blend: From those of both, blended.
    """

    query: Embeddings
    key: Embeddings
    restored: Volumes
    restored_blend: Volumes


class Encoder(nn.Module):
    """A backbone, and a head on the mean of its coarsest level.

    Args:
        backbone: The network.
        width: Of the head's two layers.
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        features = backbone.channels[-1]
        self.head = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, volumes: Volumes) -> tuple[list[Level], Embeddings]:
        """The pyramid, and an embedding."""
        pyramid = self.backbone.encode(volumes)
        return pyramid, self.head(level_means(pyramid, (len(pyramid) - 1,)))


class Queue(nn.Module):
    """The last keys, the same in all processes; it starts with random ones.

    Args:
        size: Keys that are remembered.
        width: Length of a key.
    """

    rows: Tensor
    taken: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(size, width))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def empty(self) -> Bool[Tensor, "k"]:
        """Which rows it started with."""
        return torch.arange(len(self.rows), device=self.rows.device) >= self.taken

    @torch.no_grad()
    def add(self, keys: Embeddings) -> None:
        """Put keys in place of the oldest."""
        self.rows.copy_(enqueued(self.rows, keys, self.taken))
        self.taken += len(keys)


class PCRL(Method):
    """Contrast with a queue, and restoration of mirrored and turned crops.

    Args:
        config: The settings.
        backbone: The network to train, encoder and decoder; its output layer is frozen, since the
            method has one of its own, with a channel for each of the input.

    Raises:
        ConfigError: If the backbone does not take crops of this size.
    """

    trains_decoder: ClassVar[bool] = True
    bank_scale: Tensor

    def __init__(self, config: PCRLConfig, backbone: Backbone) -> None:
        super().__init__()
        backbone.check_size(config.crop)
        self.config = config
        self.window = config.window
        channels = backbone.config.in_channels
        probe = torch.zeros(1, channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda network: network.decode(network.encode(probe)))
        self.student = Encoder(backbone, config.width)
        self.gates = nn.Sequential(
            nn.Linear(_CODE, config.code_hidden),
            nn.ReLU(),
            nn.Linear(config.code_hidden, backbone.channels[-1]),
            nn.Sigmoid(),
        )
        self.output = nn.Conv3d(backbone.decoded_channels, channels, 1)
        self.teacher = teacher_of(self.student)
        self.queue = Queue(config.queue, config.width)
        # Logarithm of the frozen scale of the memory bank; infinite until it is known.
        self.register_buffer("bank_scale", torch.tensor(math.inf))
        self._new_keys: list[Embeddings] = []
        self._new_scales: list[Tensor] = []

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut pairs of crops, move them, change and damage them; where the volumes are."""
        config, draws, count = self.config, step.draws, len(volumes)
        boxes = overlapping_boxes(
            draws.child(1), count, config.sizes, config.window, config.least_overlap
        )
        cut = scaled(cut_to(volumes, boxes, config.crop), config.intensities)
        still = swayed(
            cut,
            draws.child(2),
            flip_probability=config.flip_probability,
            scale=config.scale,
            degrees=config.degrees,
        )
        damaged = self._damaged(still, draws.child(3))
        codes = draw_codes(draws.child(4), count, 2, square=config.crop[0] == config.crop[1])
        targets = transformed(still if config.targets == "clean" else damaged, codes)
        drawn = draws.child(5).uniform(count, 3)
        return Views(
            unscaled(damaged, config.intensities),
            targets,
            still if config.mixed_targets == "aligned" else cut,
            codes.to(volumes),
            drawn.maximum(1 - drawn).to(volumes),
            boxes,
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch; remembers what :meth:`after_step` keeps."""
        views = self.views(batch, step)
        blend_share, mix_share, mixed_blend_share = views.shares.unbind(dim=1)
        whole = self._branch(views.looks, blend_share, views.codes)
        mixture = self._branch(self._mixed(views.looks, mix_share), mixed_blend_share)
        pairs = (
            (whole.query, whole.key),
            (mixture.query, mixture.key),
            (mixture.query, self._mixed(whole.key, mix_share)),
        )
        found = (whole.restored, mixture.restored, whole.restored_blend, mixture.restored_blend)
        targets = self._targets(views)
        losses = {
            "contrast": self.config.contrast_weight * self._contrast(pairs),
            "restoration": self.config.restoration_weight * restoration_loss(found, targets),
        }
        return Outcome(losses, self._health(whole, targets))

    def before_step(self, step: Step) -> None:
        """Let the copy follow the network of the step before, ahead of this step's forward."""
        follow(self.teacher, self.student, self.config.momentum)
        self._new_keys, self._new_scales = [], []

    def after_step(self, step: Step) -> None:
        """Put the keys of the step into the queue; freeze the scale of the first step."""
        for keys in self._new_keys:
            self.queue.add(keys)
        for scale in self._new_scales[:1]:
            self.bank_scale.copy_(scale)  # which is the frozen one, if there is one already
        self._new_keys, self._new_scales = [], []

    def handover(self) -> Backbone:
        """The backbone that is trained by gradients, encoder and decoder, as in the reference."""
        return self.student.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """A window with its two crops, and what is and should be restored of the first."""
        with torch.no_grad():
            views = self.views(volumes[:_SHOWN], step)
            pyramid, _ = self.student(views.looks[:, 0])
            restored = self._restored(self._gated(pyramid, views.codes[:, 0]))
        pictures = {
            "damaged": views.looks[:, 0],
            "restored, mirrored and turned": restored,
            "target": views.targets[:, 0],
        }
        slices = {name: middle_slices(view, _SHOWN) for name, view in pictures.items()}
        return pair_panels(volumes[0], views.boxes[0], views.looks[0]) + [
            Panel(f"{name} {at}", grey(images[at]))
            for at in range(len(restored))
            for name, images in slices.items()
        ]

    def _damaged(self, crops: Crops, draws: Draws) -> Crops:
        config = self.config
        flat = blurred(crops, draws.child(1), config.blur).flatten(0, 1)
        shortest, longest = block_sides(config.crop)
        flat = shuffled(
            flat,
            draws.child(2),
            probability=config.shuffle_probability,
            blocks=config.shuffle_blocks,
            shortest=shortest,
            longest=longest,
        )
        flat = painted(
            flat,
            draws.child(3),
            probability=config.paint_probability,
            inpaint_share=config.inpaint_share,
        )
        return flat.view_as(crops)

    def _branch(
        self, looks: Crops, shares: Float[Tensor, "b"], codes: Tensor | None = None
    ) -> Branch:
        pyramid, query = self.student(looks[:, 0])
        with torch.no_grad():
            others, key = self.teacher(looks[:, 1])
        if codes is not None:
            pyramid = self._gated(pyramid, codes[:, 0])
            others = self._gated(others, codes[:, 1])
        blend = [mixed(own, other, shares) for own, other in zip(pyramid, others, strict=True)]
        return Branch(query, key, self._restored(pyramid), self._restored(blend))

    def _gated(self, pyramid: list[Level], codes: Float[Tensor, "b code"]) -> list[Level]:
        """The pyramid with channels of its coarsest level opened and closed by the codes."""
        return [*pyramid[:-1], pyramid[-1] * self.gates(codes)[:, :, None, None, None]]

    def _restored(self, pyramid: list[Level]) -> Volumes:
        found = at_least_float32(self.output(self.student.backbone.decode(pyramid)))
        if self.config.sigmoid:
            return found.sigmoid()
        return found.clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)

    def _mixed(self, rows: Float[Tensor, "b *n"], shares: Float[Tensor, "b"]) -> Tensor:
        """Rows mixed with the next of the batch of all processes."""
        return mixed(rows, following_rows(rows, everywhere=self.training), shares)

    def _targets(self, views: Views) -> tuple[Volumes, Volumes, Volumes, Volumes]:
        """What is to be restored of crops and of mixtures; then of both blends, likewise."""
        blend_share, mix_share, mixed_blend_share = views.shares.unbind(dim=1)
        first, second = views.targets.unbind(dim=1)
        mixed_first, mixed_second = self._mixed(views.clean, mix_share).unbind(dim=1)
        return (
            first,
            mixed_first,
            mixed(first, second, blend_share),
            mixed(mixed_first, mixed_second, mixed_blend_share),
        )

    def _contrast(self, pairs: tuple[tuple[Embeddings, Embeddings], ...]) -> Float[Tensor, ""]:
        """The mean over pairs of queries and keys."""
        config, queue, taken = self.config, self.queue.rows, self.queue.taken
        scale, losses = self.bank_scale, []
        for number, (query, key) in enumerate(pairs):
            if config.contrast == "infonce":
                losses.append(queue_loss(query, key, queue, config.temperature))
            else:
                if number == 0:
                    new = first_scale(
                        query, key, queue, config.temperature, everywhere=self.training
                    )
                    scale = torch.where(scale.isinf(), new, scale)
                losses.append(memory_bank_loss(query, key, queue, config.temperature, scale))
            if number > 0 and config.queued == "keys":
                continue
            keys = gathered_rows(unit(key), everywhere=self.training)
            if self.training:
                self._new_keys.append(keys)
            if config.queued == "all":
                queue, taken = enqueued(queue, keys, taken), taken + len(keys)
        if self.training and config.contrast == "memory_bank":
            self._new_scales.append(scale)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _health(self, whole: Branch, targets: tuple[Volumes, ...]) -> dict[str, Tensor]:
        """How well pairs are told among the keys that are remembered, and what guesses cost.

        The rows that a queue starts with are no keys: to be unlike them shows nothing.

        ``contrast_chance`` is of equal embeddings, ``restoration_chance`` of restoring the mean of
        each target, ``loss_chance`` of both with their weights.
        """
        config = self.config
        others, positives, excluded = candidates(whole.key, self.queue.rows)
        excluded[:, len(positives) :] |= self.queue.empty()
        health = pair_health(whole.query, others, positives, excluded)
        means = [target.mean(dim=(1, 2, 3, 4), keepdim=True) for target in targets]
        guesses = [mean.expand_as(target) for mean, target in zip(means, targets, strict=True)]
        restoration = restoration_loss(guesses, targets)
        chance = contrast_chance(len(self.queue.rows), config.contrast)
        health["contrast_chance"] = restoration.new_tensor(chance)
        health["restoration_chance"] = restoration
        health["loss_chance"] = (
            config.contrast_weight * chance + config.restoration_weight * restoration
        )
        health["effective_rank"] = effective_rank(whole.query)
        health["teacher_distance"] = distance(self.teacher, self.student)
        health["queue_filled"] = 1 - self.queue.empty().float().mean()
        outside = (targets[0] < 0) | (targets[0] > 1)
        health["outside_share"] = outside.float().mean()
        return health


def mixed(
    rows: Float[Tensor, "b *n"], others: Float[Tensor, "b *n"], shares: Float[Tensor, "b"]
) -> Float[Tensor, "b *n"]:
    """``share * row + (1 - share) * other``, with a share for each row."""
    weights = shares.to(rows).view(-1, *[1] * (rows.ndim - 1))
    return weights * rows + (1 - weights) * others


# ---- how targets are transformed --------------------------------------------------------------


def draw_codes(draws: Draws, count: int, crops: int, *, square: bool) -> Int64[Tensor, "b n code"]:
    """How crops are mirrored and turned: three flags, and one of four for the quarter turns.

    Every flag is set for half of the crops; every number of turns is equally likely.

    Args:
        draws: Random numbers.
        count: Volumes of this process.
        crops: Of each volume.
        square: Whether x and y sides are equal; if not, a crop is turned by two quarters or none.
    """
    flips = draw_flips(draws, count, crops, 0.5)
    turns = draw_turns(draws, count, crops, 0.75 if square else 0.5, square=square)
    return torch.cat([flips.long(), F.one_hot(turns, 4)], dim=-1)


def transformed(crops: Crops, codes: Int64[Tensor, "b n code"]) -> Crops:
    """Crops mirrored and then turned as their codes say."""
    return moved(crops, codes[..., :3].bool(), codes[..., 3:].argmax(dim=-1))


# ---- losses -----------------------------------------------------------------------------------


def restoration_loss(found: Sequence[Volumes], targets: Sequence[Volumes]) -> Float[Tensor, ""]:
    """Mean squared error of each restoration; the mean of them. In at least float32."""
    errors = [
        (at_least_float32(own) - at_least_float32(target)).square().mean()
        for own, target in zip(found, targets, strict=True)
    ]
    return torch.stack(errors).mean()


def candidates(
    key: Embeddings, queue: Float[Tensor, "k e"]
) -> tuple[Float[Tensor, "m e"], Int64[Tensor, "b"], Tensor]:
    """Among what each query must find its key: that key, and all that the queue remembers.

    Returns:
        Keys and then the queue; which of them is right for each query; and which of them are not
        to be looked at: the keys of the other queries.
    """
    count = len(key)
    others = torch.cat([at_least_float32(key), queue])
    excluded = torch.zeros(count, len(others), dtype=torch.bool, device=key.device)
    excluded[:, :count] = ~torch.eye(count, dtype=torch.bool, device=key.device)
    return others, torch.arange(count, device=key.device), excluded


def queue_loss(
    query: Embeddings, key: Embeddings, queue: Float[Tensor, "k e"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of finding the key among it and the queue; ``log(k + 1)`` if all are equal."""
    others, positives, excluded = candidates(key, queue)
    return info_nce(query, others, positives, temperature, excluded)


def memory_bank_loss(
    query: Embeddings,
    key: Embeddings,
    queue: Float[Tensor, "k e"],
    temperature: float,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Of each candidate, whether it is the key: noise-contrastive estimation with a fixed scale.

    ``log(1 + k * z / e(key)) + sum(log(1 + e(other) / (k * z)))`` over the queue, where ``e`` is
    the exponential of the cosine over the temperature; the mean over the queries. In at least
    float32, with autocast off.

    Args:
        query: Embeddings.
        key: What each must find.
        queue: What it must not.
        temperature: What cosines are divided by.
        scale: The logarithm of ``z``.
    """
    right, wrong = _logits(query, key, queue, temperature)
    level = scale + math.log(len(queue))
    return (F.softplus(level - right) + F.softplus(wrong - level).sum(dim=1)).mean()


def first_scale(
    query: Embeddings,
    key: Embeddings,
    queue: Float[Tensor, "k e"],
    temperature: float,
    *,
    everywhere: bool,
) -> Float[Tensor, ""]:
    """Logarithm of the mean of the exponentials of all logits, of all processes."""
    right, wrong = _logits(query.detach(), key, queue, temperature)
    logits = torch.cat([right[:, None], wrong], dim=1)
    own = logits.logsumexp(dim=(0, 1), keepdim=True)[0] - math.log(logits.numel())
    every = gathered_rows(own, everywhere=everywhere)
    return every.logsumexp(dim=0) - math.log(len(every))


def contrast_chance(queue: int, contrast: Literal["infonce", "memory_bank"]) -> float:
    """What equal embeddings cost, if the scale is theirs.

    Args:
        queue: Keys that are remembered.
        contrast: The form of the loss.
    """
    guess = math.log1p(queue)
    return guess if contrast == "infonce" else guess + queue * math.log1p(1 / queue)


def enqueued(
    queue: Float[Tensor, "k e"], keys: Embeddings, taken: Int64[Tensor, ""]
) -> Float[Tensor, "k e"]:
    """A queue with keys in place of its oldest rows; it goes round.

    Args:
        queue: The rows.
        keys: At unit length.
        taken: How many keys it has taken so far.
    """
    last = keys[-len(queue) :]
    start = taken + len(keys) - len(last)
    index = (start + torch.arange(len(last), device=queue.device)) % len(queue)
    return queue.index_copy(0, index, last.to(queue))


def _logits(
    query: Embeddings, key: Embeddings, queue: Float[Tensor, "k e"], temperature: float
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b k"]]:
    with torch.autocast(query.device.type, enabled=False):
        own = unit(query)
        right = (own * unit(key)).sum(dim=1) / temperature
        return right, own @ unit(queue).mT / temperature
