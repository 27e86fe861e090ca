"""VICRegL: two looks at a volume agree as wholes and place by place, without negatives.

Bardes, Ponce & LeCun, *VICRegL: Self-Supervised Learning of Local Visual Features*, NeurIPS 2022
(arXiv 2210.01571); code ``facebookresearch/VICRegL``, which is for photographs. Kept from it:
widths of the heads, the three terms and their weights, matches by feature and by place, two large
crops (its setting for ResNet-50). What differs here:

- Two overlapping crops are cut, not cut and resampled; the other changes of intensity are those
  of :class:`~voco.augment.appearance.AppearanceConfig`; no colour, no solarisation, no small
  crops, and no classifier on the side.
- Places follow the mirroring and turning of crops. By default the reference ignores mirroring, so
  that its matches point to the opposite side; ``moved_places: false`` restores that.
- Both directions keep the same number of matches by place. The reference keeps a fifth of it in
  the second; ``second_match_share: 0.082`` restores that.
- Matches by place farther than a cell apart do not count; ``farthest: null`` restores that.
- Variance and covariance of places are taken over all of them together, which suits the small
  batches of volumes; ``statistics: slot`` restores the reference's, match by match over the batch.
- One learning rate for all (the reference's code has a smaller one for the heads of places).
- Training is by the optimizer of the recipe, AdamW; for ResNet-50 the reference has LARS.

Sizes of windows and crops are our choice, as no 3D settings of the authors exist. Places in air
match for free: ``windows.foreground`` keeps windows on the body.
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from voco.augment.appearance import AppearanceConfig
from voco.augment.pairs import Pairs, cut_pairs, moved
from voco.backbone import Backbone
from voco.embedding import Levels
from voco.errors import ConfigError
from voco.method import Method, MethodConfig, Panel, pair_panels
from voco.nn.freeze import freeze_unreached
from voco.nn.gather import first_row, gathered_rows
from voco.nn.heads import projector
from voco.nn.health import effective_rank, masked_mean
from voco.nn.info_nce import pair_health
from voco.nn.pooling import level_means
from voco.nn.unit import at_least_float32
from voco.shapes import Shape3, Volumes
from voco.task import Health, Losses, Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class VICRegLConfig(MethodConfig):
    """Settings of VICRegL."""

    name: Literal["vicregl"] = "vicregl"
    """Selects this method."""
    window: Sides3 = (144, 144, 144)
    """Voxels of the window that crops are cut from; our choice."""
    crop: Sides3 = (96, 96, 96)
    """Voxels of a crop; our choice."""
    largest_offset: float = Field(default=0.37, ge=0, le=1)
    """How far apart the two crops may start along each axis, as a share of their size; 0.37 (they
    share at least a quarter) is our choice."""
    appearance: AppearanceConfig = AppearanceConfig()
    """What is done to each crop."""
    blur_probabilities: tuple[float, float] = (1.0, 0.1)
    """Of blurring the first and the second crop (reference)."""
    levels: Levels = "last"
    """Which levels of the pyramid are averaged over space and joined for the whole: those the
    ``backbone`` names, or the ``last`` (as in the reference)."""
    map_level: int = -1
    """Which level has the places: from 0, the finest, or counted from the last, -1 (reference)."""
    hidden: PositiveInt = 8192
    """Width of the two hidden layers of the head for the whole (reference)."""
    width: PositiveInt = 8192
    """Length of an embedding of the whole (reference)."""
    map_hidden: PositiveInt = 512
    """Width of the two hidden layers of the head for places (reference)."""
    map_width: PositiveInt = 512
    """Length of an embedding of a place (reference)."""
    invariance: float = Field(default=25.0, ge=0)
    """Weight of the distance between what must agree (reference)."""
    variance: float = Field(default=25.0, ge=0)
    """Weight of what keeps features varying over the batch (reference)."""
    covariance: float = Field(default=1.0, ge=0)
    """Weight of what keeps features different from each other (reference)."""
    global_share: float = Field(default=0.75, ge=0, le=1)
    """Weight of the terms of the whole; the terms of places have the rest (reference: alpha)."""
    match_share: float = Field(default=0.408, gt=0, le=1)
    """Share of the places whose matches by place are kept, the closest (reference: 20 of 49)."""
    second_match_share: float | None = Field(default=None, gt=0, le=1)
    """The same from the second crop to the first; ``None`` is alike (reference: 0.082, 4 of 49,
    by mistake)."""
    farthest: PositiveFloat | None = 1.0
    """Largest distance of a match by place, in cells of the map; ``None`` is any (reference)."""
    moved_places: bool = True
    """Whether places are mirrored and turned as their crops are (in the reference they are not)."""
    statistics: Literal["pooled", "slot"] = "pooled"
    """Over what variance and covariance of places are taken: over all matches of all volumes,
    ``pooled``, or over the volumes for each match, ``slot`` (reference; needs about 16 volumes)."""

    @model_validator(mode="after")
    def _fit_together(self) -> "VICRegLConfig":
        if any(side > room for side, room in zip(self.crop, self.window, strict=True)):
            raise ValueError(f"crop {self.crop} does not fit into the window {self.window}")
        if not all(0 <= share <= 1 for share in self.blur_probabilities):
            raise ValueError(f"blur_probabilities {self.blur_probabilities} must lie in [0, 1]")
        return self

    def build(self, backbone: Backbone) -> "VICRegL":
        """VICRegL around a backbone.

        Raises:
            ConfigError: If the backbone does not take crops of this size, has no such level, or
                has a single place there.
        """
        return VICRegL(self, backbone)


class Terms(NamedTuple):
    """The three terms, before their weights."""

    invariance: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


class Maps(NamedTuple):
    """Places of the two crops: their embeddings, and where they are, in cells of the window."""

    first: Float[Tensor, "b t e"]
    second: Float[Tensor, "b t e"]
    first_places: Float[Tensor, "b t 3"]
    second_places: Float[Tensor, "b t 3"]

    def swapped(self) -> "Maps":
        """The other direction."""
        return Maps(self.second, self.first, self.second_places, self.first_places)


class Nearest(NamedTuple):
    """For each place of the one crop, the nearest of the other, and how far it is."""

    which: Int64[Tensor, "b t"]
    distance: Float[Tensor, "b t"]


class VICRegL(Method):
    """Agreement of pairs of crops, as wholes and place by place.

    Args:
        config: The settings.
        backbone: The network to train; its decoder and output layer are frozen.

    Raises:
        ConfigError: If the backbone does not take crops of this size, has no such level, or has a
            single place there.
    """

    def __init__(self, config: VICRegLConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        backbone.check_size(config.crop)
        _check_map(config, backbone)
        last = (len(backbone.channels) - 1,)
        self.levels = backbone.embedding_levels if config.levels == "backbone" else last
        self.backbone = backbone
        features = sum(backbone.channels[level] for level in self.levels)
        self.projector = projector(
            (features, config.hidden, config.hidden, config.width), ending="bare", learnt=True
        )
        channels = backbone.channels[config.map_level]
        self.map_projector = projector(
            (channels, config.map_hidden, config.map_hidden, config.map_width),
            ending="bare",
            learnt=True,
        )
        crops = torch.zeros(1, backbone.config.in_channels, *config.crop, device="meta")
        freeze_unreached(backbone, lambda probe: self._reached(probe, crops))

    def views(self, volumes: Volumes, step: Step) -> Pairs:
        """Cut a pair of crops and change each on its own; where the volumes are."""
        return cut_pairs(
            volumes,
            step.draws.child(1),
            size=self.config.crop,
            largest_offset=self.config.largest_offset,
            appearance=self.config.appearance,
            blur_probabilities=self.config.blur_probabilities,
        )

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        first, second, maps = self._embedded(self.views(batch, step))
        whole = self.whole_terms(first, second)
        local = self.local_terms(maps)
        losses = {
            **self._weighted("global", whole, self.config.global_share),
            **self._weighted("local", local, 1 - self.config.global_share),
        }
        return Outcome(losses, {**self._health(first, second), **self._map_health(maps)})

    def handover(self) -> Backbone:
        """The backbone; the heads stay behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its two crops, and the crops as the network sees them."""
        views = self.views(volumes[:1], step)
        return pair_panels(volumes[0], views.boxes[0], views.crops[0])

    def whole_terms(self, first: Float[Tensor, "b e"], second: Float[Tensor, "b e"]) -> Terms:
        """The terms of embeddings of whole crops."""
        return self._terms(first[:, None], second[:, None], None, slots=False)

    def local_terms(self, maps: Maps) -> Terms:
        """The terms of places: matched by feature plus matched by place, both directions halved."""
        config = self.config
        shares = (config.match_share, config.second_match_share or config.match_share)
        parts = [
            part
            for way, share in zip((maps, maps.swapped()), shares, strict=True)
            for part in (self._by_feature(way), self._by_place(way, share))
        ]
        return Terms(*(torch.stack(terms).sum() / 2 for terms in zip(*parts, strict=True)))

    def _by_feature(self, maps: Maps) -> Terms:
        index = nearest(maps.first, maps.second).which
        return self._local(maps.first, _picked(maps.second, index), None)

    def _by_place(self, maps: Maps, share: float) -> Terms:
        count = max(1, round(share * maps.first.shape[1]))
        found = nearest(maps.first_places, maps.second_places)
        closest = found.distance.argsort(dim=1, stable=True)[:, :count]
        index = found.which.gather(1, closest)
        kept = self._near(found.distance.gather(1, closest))
        return self._local(_picked(maps.first, closest), _picked(maps.second, index), kept)

    def _near(self, distance: Float[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        farthest = self.config.farthest
        return distance <= (torch.inf if farthest is None else farthest)

    def _local(self, rows: Tensor, others: Tensor, kept: Bool[Tensor, "b t"] | None) -> Terms:
        return self._terms(rows, others, kept, slots=self.config.statistics == "slot")

    def _terms(
        self,
        rows: Float[Tensor, "b t e"],
        others: Float[Tensor, "b t e"],
        kept: Bool[Tensor, "b t"] | None,
        *,
        slots: bool,
    ) -> Terms:
        pattern = "b t e -> t b e" if slots else "b t e -> 1 (b t) e"
        both = [
            rearrange(gathered_rows(one, everywhere=self.training), pattern)
            for one in (rows, others)
        ]
        variance = torch.stack([variance_loss(one) for one in both]).mean()
        covariance = torch.stack([covariance_loss(one) for one in both]).mean()
        return Terms(invariance_loss(rows, others, kept), variance, covariance)

    def _weighted(self, name: str, terms: Terms, share: float) -> Losses:
        return {
            f"{name}_{key}": share * getattr(self.config, key) * value
            for key, value in terms._asdict().items()
        }

    def _reached(self, backbone: Backbone, crops: Volumes) -> Tensor:
        pyramid = backbone.encode(crops)
        return level_means(pyramid, self.levels).sum() + pyramid[self.config.map_level].sum()

    def _embedded(self, views: Pairs) -> tuple[Tensor, Tensor, Maps]:
        pyramid = self.backbone.encode(rearrange(views.crops, "b n ... -> (n b) ..."))
        whole = [self.projector(half) for half in level_means(pyramid, self.levels).chunk(2)]
        level = pyramid[self.config.map_level]
        x, y, z = level.shape[2:]
        cells = rearrange(level, "nb c x y z -> nb (x y z) c").chunk(2)
        maps = [
            self.map_projector(half.flatten(0, 1)).unflatten(0, half.shape[:2]) for half in cells
        ]
        where = places(views, (x, y, z), moving=self.config.moved_places).to(level.device)
        return whole[0], whole[1], Maps(maps[0], maps[1], where[:, 0], where[:, 1])

    @torch.no_grad()
    def _health(self, first: Float[Tensor, "b e"], second: Float[Tensor, "b e"]) -> Health:
        everyone = gathered_rows(second, everywhere=self.training)
        start = first_row(len(first), everywhere=self.training)
        positives = torch.arange(start, start + len(first), device=first.device)
        return {
            **pair_health(first, everyone, positives),
            "spread": standard_deviations(everyone[None]).mean(),
            "effective_rank": effective_rank(first),
        }

    @torch.no_grad()
    def _map_health(self, maps: Maps) -> Health:
        true = nearest(maps.first_places, maps.second_places)
        kept = self._near(true.distance)
        right = nearest(maps.first, maps.second).which == true.which
        rows = gathered_rows(maps.first, everywhere=self.training)
        return {
            "place_accuracy": masked_mean(right.float(), kept),
            "place_chance": torch.full_like(true.distance[0, 0], 1 / maps.second.shape[1]),
            "matched_share": kept.float().mean(),
            "local_spread": standard_deviations(rows.flatten(0, 1)[None]).mean(),
        }


def places(views: Pairs, cells: Shape3, *, moving: bool = True) -> Float[Tensor, "b n t 3"]:
    """Where the cells of maps of crops are, in the window, with the side of a cell as the unit.

    Args:
        views: The crops.
        cells: Cells of a map along each axis; they divide a crop evenly.
        moving: Whether cells are mirrored and turned as the crops are.
    """
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) + 0.5 for n in cells], indexing="ij"))
    size = (views.boxes[:, :, 1] - views.boxes[:, :, 0]) / torch.tensor(cells)
    start = (views.boxes[:, :, 0] / size)[..., None, None, None]
    where = start + grid
    if moving:
        where = moved(where, views.flips, views.turns)
    return rearrange(where, "b n three x y z -> b n (x y z) three")


@torch.no_grad()
def nearest(rows: Float[Tensor, "b t e"], others: Float[Tensor, "b s e"]) -> Nearest:
    """The nearest of the others for each row, by Euclidean distance, volume by volume."""
    with torch.autocast(rows.device.type, enabled=False):
        # Through products of matrices, equal rows would not be at a distance of 0.
        exact = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(at_least_float32(rows), at_least_float32(others), compute_mode=exact)
    distance, which = apart.min(dim=2)
    return Nearest(which, distance)


def invariance_loss(
    rows: Float[Tensor, "b t e"],
    others: Float[Tensor, "b t e"],
    kept: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference of what must agree: of the kept matches, then of the volumes.

    A volume without matches has none.
    """
    with torch.autocast(rows.device.type, enabled=False):
        apart = (at_least_float32(rows) - at_least_float32(others)).square().mean(dim=2)
        if kept is None:
            return apart.mean()
        return ((apart * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).mean()


def _picked(rows: Float[Tensor, "b t e"], index: Int64[Tensor, "b k"]) -> Float[Tensor, "b k e"]:
    return rows.take_along_dim(index[..., None], dim=1)


def _check_map(config: VICRegLConfig, backbone: Backbone) -> None:
    levels = len(backbone.strides)
    if not -levels <= config.map_level < levels:
        raise ConfigError(
            f"map_level {config.map_level}: {type(backbone).__name__} has {levels} levels; choose "
            f"from {-levels} to {levels - 1}."
        )
    stride = backbone.strides[config.map_level]
    if all(side <= stride for side in config.crop):
        raise ConfigError(
            f"map_level {config.map_level} of {type(backbone).__name__} has one place for each "
            f"{stride} voxels, so a crop of {config.crop} has a single one; choose a larger crop "
            "or a finer level."
        )


# Variance and covariance over a batch (Bardes et al., VICReg, ICLR 2022). Embeddings come in slots:
# statistics are taken over the rows of each. In at least float32 with autocast off; finite in value
# and gradient for every finite input, a single row included.


def standard_deviations(
    rows: Float[Tensor, "s n e"], epsilon: float = 1e-4
) -> Float[Tensor, "s e"]:
    """``sqrt(variance + epsilon)`` of each feature, unbiased; a single row has no variance."""
    with torch.autocast(rows.device.type, enabled=False):
        squares = _centred(rows).square().sum(dim=1)
        return torch.sqrt(squares / max(1, rows.shape[1] - 1) + epsilon)


def variance_loss(rows: Float[Tensor, "s n e"]) -> Float[Tensor, ""]:
    """How far standard deviations are below 1: the mean over features and slots (equation 1)."""
    return (1 - standard_deviations(rows)).relu().mean()


def covariance_loss(rows: Float[Tensor, "s n e"]) -> Float[Tensor, ""]:
    """Squares of all covariances of two features, over their number; mean of slots (equation 4)."""
    with torch.autocast(rows.device.type, enabled=False):
        centred = _centred(rows)
        count, features = centred.shape[1:]
        # Products of rows have the same sum of squares as products of features.
        products = centred @ centred.mT if count < features else centred.mT @ centred
        every = products.square().sum(dim=(1, 2))
        own = centred.square().sum(dim=1).square().sum(dim=1)
        return ((every - own).relu() / max(1, count - 1) ** 2 / features).mean()


def _centred(rows: Tensor) -> Tensor:
    rows = at_least_float32(rows)
    return rows - rows.mean(dim=1, keepdim=True)
