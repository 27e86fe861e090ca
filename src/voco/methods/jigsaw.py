"""Jigsaw: in which order do the pieces of a volume lie?

Noroozi & Favaro, *Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles*,
ECCV 2016 (arXiv 1603.09246), in three dimensions by Taleb et al., *3D Self-Supervised Methods for
Medical Imaging*, NeurIPS 2020 (arXiv 2006.03829). Reference: ``HealthML/self-supervised-3d-tasks``.
Which implementation the VoCo paper compares with is not known.

A window is cut into cells and a patch out of each, a little smaller and at a random place in
training, so that edges do not meet. One encoder sees all patches, in one of a number of known
orders; a head that sees all their features names the order. What differs from the reference:

- Patches are resampled to ``size`` before the network, whose depth does not take theirs.
- Features are averaged over space; the reference joins all voxels of the last level.
- Each patch is brought to zero mean and unit variance, for gradients of intensity over the window
  (bias fields, contrast) tell the order without anatomy. ``standardise`` turns it off.
- Orders are chosen to differ from each other at many places, as Noroozi & Favaro do;
  ``orders_from: random`` is the reference's choice.
- The head's batch norm is a layer norm: with a few volumes per batch, each would be judged by the
  others.
- AdamW where the reference has Adam.

Patches of air look all the same: ``windows.foreground`` keeps windows on the body.
"""

import math
from itertools import permutations
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from voco.augment.spatial import resize
from voco.backbone import Backbone
from voco.embedding import pooled
from voco.geometry import boxes_at, crop, grid_boxes
from voco.method import Method, MethodConfig, Panel, boxes_panel, grey, middle_slices
from voco.nn.classifier import Classifier, answer_health, classification_loss
from voco.nn.freeze import freeze_unreached
from voco.shapes import Crops, Shape3, Volumes
from voco.task import Outcome, Step

Sides3 = tuple[PositiveInt, PositiveInt, PositiveInt]
_ENUMERABLE = 8
"""Up to so many pieces all orders are listed (40320); beyond, random ones are drawn."""


class JigsawConfig(MethodConfig):
    """Settings of Jigsaw."""

    name: Literal["jigsaw"] = "jigsaw"
    """Selects this method."""
    grid: Sides3 = (3, 3, 3)
    """Cells along x, y and z (reference)."""
    cell: Sides3 = (42, 42, 42)
    """Voxels of a cell (reference: a third of 128)."""
    patch: Sides3 = (39, 39, 39)
    """Voxels of the patch cut out of each cell, at a random place in training and in the middle
    otherwise (reference)."""
    size: Sides3 | None = (64, 64, 64)
    """Patches are resampled to this size before the network; ours: the least that Swin UNETR
    trains on. ``None`` leaves them."""
    orders: int = Field(default=100, ge=2, le=10_000)
    """Orders among which the head chooses (reference)."""
    orders_from: Literal["spread", "random"] = "spread"
    """How they are chosen: ``spread``, each as different as possible from those before (Noroozi &
    Favaro); or at ``random`` (reference)."""
    orders_seed: NonNegativeInt = 0
    """Of that choice. The orders are kept with the checkpoint."""
    standardise: bool = True
    """Whether each patch is brought to zero mean and unit variance (ours; see above)."""
    hidden: tuple[PositiveInt, ...] = (2048, 1024)
    """Widths of the head's hidden layers (reference)."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the head's hidden features (reference)."""
    crops_at_once: PositiveInt | None = None
    """Patches that pass through the backbone together; ``None`` is all on a GPU, and on a CPU
    as many as have 800,000 voxels together. Fewer need less memory at once; results do not
    depend on it."""

    @model_validator(mode="after")
    def _fit_together(self) -> "JigsawConfig":
        if any(side > room for side, room in zip(self.patch, self.cell, strict=True)):
            raise ValueError(f"patch {self.patch} does not fit into the cell {self.cell}")
        possible = math.factorial(math.prod(self.grid))
        if self.orders > possible:
            raise ValueError(
                f"orders {self.orders} is more than the {possible} that the pieces of grid "
                f"{self.grid} have"
            )
        return self

    def build(self, backbone: Backbone) -> "Jigsaw":
        """Jigsaw around a backbone.

        Raises:
            ConfigError: If the backbone does not take patches of this size, or not in pieces.
        """
        return Jigsaw(self, backbone)


class Views(NamedTuple):
    """Patches in the order in which they are shown, and the number of that order."""

    patches: Crops
    labels: Int64[Tensor, "b"]


class Jigsaw(Method):
    """The jigsaw puzzle.

    Args:
        config: The settings.
        backbone: The network to train; its decoder and output layer are frozen.

    Raises:
        ConfigError: If the backbone does not take patches of this size, or not in pieces.
    """

    orders: Int64[Tensor, "orders pieces"]

    def __init__(self, config: JigsawConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.cells = grid_boxes(config.grid, config.cell)
        x, y, z = self.cells[-1, 1].tolist()
        self.window = (x, y, z)
        size: Shape3 = config.size or config.patch
        backbone.check_size(size)
        backbone.check_pieces(config.crops_at_once)
        self.levels = (len(backbone.channels) - 1,)
        patch = torch.zeros(1, backbone.config.in_channels, *size, device="meta")
        freeze_unreached(backbone, lambda probe: pooled(probe, [patch], self.levels))
        features = backbone.channels[-1] * len(self.cells)
        self.head = Classifier((features, *config.hidden, config.orders), dropout=config.dropout)
        choose = spread_orders if config.orders_from == "spread" else random_orders
        self.register_buffer("orders", choose(config.orders, len(self.cells), config.orders_seed))

    def boxes(self, count: int, step: Step) -> Int64[Tensor, "b pieces 2 3"]:
        """Where the patches of ``count`` volumes lie in their windows, cell by cell."""
        places = step.draws.child(1).uniform(count, len(self.cells), 3)
        places = places if self.training else torch.full_like(places, 0.5)
        inside = boxes_at(places.flatten(0, 1), self.config.patch, self.config.cell)
        return inside.unflatten(0, (count, -1)) + self.cells[:, :1]

    def views(self, volumes: Volumes, step: Step) -> Views:
        """Cut, resample and standardise the patches, and put them in an order."""
        count = len(volumes)
        labels = step.draws.child(2).integers(count, high=self.config.orders).to(volumes.device)
        patches = crop(volumes, self.boxes(count, step)).flatten(0, 1)
        patches = patches if self.config.size is None else resize(patches, self.config.size)
        patches = standardised(patches) if self.config.standardise else patches
        return Views(reordered(patches.unflatten(0, (count, -1)), self.orders[labels]), labels)

    def forward(self, batch: Volumes, step: Step) -> Outcome:
        """Losses and health figures of a batch."""
        patches, labels = self.views(batch, step)
        rows = pooled(
            self.backbone,
            [patches.flatten(0, 1)],
            self.levels,
            at_once=self.config.crops_at_once,
        )
        joined = rows.unflatten(0, (len(batch), -1)).flatten(1)
        logits = self.head(joined, step.draws.child(3))
        loss = classification_loss(logits, labels)
        return Outcome({"order": loss}, answer_health(logits, labels))

    def handover(self) -> Backbone:
        """The backbone; the head stays behind."""
        return self.backbone

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """The first window with its patches, and the patches in the order shown."""
        patches, labels = self.views(volumes[:1], step)
        boxes, order = self.boxes(1, step)[0], self.orders[labels[0]].tolist()
        level = int(boxes[0, :, 2].sum()) // 2
        names = [str(piece) for piece in range(len(boxes))]
        images = middle_slices(patches[0])
        return [
            boxes_panel(
                "window with the patches of its lowest layer", volumes[0], boxes, names, level
            ),
            *(
                Panel(f"place {place}: patch {piece}", grey(image))
                for place, (piece, image) in enumerate(zip(order, images, strict=False))
            ),
        ]


def reordered(patches: Crops, orders: Int64[Tensor, "b n"]) -> Crops:
    """Patches of each volume in an order: place ``i`` shows patch ``orders[:, i]``."""
    rows = torch.arange(len(patches), device=patches.device)[:, None]
    return patches[rows, orders.to(patches.device)]


def standardised(patches: Volumes) -> Volumes:
    """Each channel of each patch at zero mean and unit variance; a flat one becomes zeros."""
    # In float64 the mean of a patch does not depend on how many others there are.
    centred = patches - patches.double().mean(dim=(2, 3, 4), keepdim=True).to(patches)
    deviation = centred.double().square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    return centred / deviation.clamp(min=1e-4).to(patches)


def random_orders(count: int, length: int, seed: int) -> Int64[Tensor, "orders pieces"]:
    """Different orders of ``length`` pieces, drawn at random."""
    return _candidates(count, length, seed)[:count]


def spread_orders(count: int, length: int, seed: int) -> Int64[Tensor, "orders pieces"]:
    """Orders that differ from each other at many places.

    Each is, of many candidates, one whose nearest among those chosen before is farthest, counted
    in places that differ (Hamming distance).
    """
    candidates = _candidates(10 * count, length, seed)
    chosen = [0]
    nearest = torch.full((len(candidates),), length + 1)
    while len(chosen) < count:
        apart = (candidates != candidates[chosen[-1]]).sum(dim=1)
        nearest = nearest.minimum(apart)
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]


def _candidates(count: int, length: int, seed: int) -> Int64[Tensor, "n pieces"]:
    """Different orders in a random order: all there are if they are few, else about ``count``."""
    generator = torch.Generator().manual_seed(seed)
    if length <= _ENUMERABLE:
        orders = torch.tensor(list(permutations(range(length))))
    else:
        orders = torch.rand(2 * count, length, generator=generator).argsort(dim=1).unique(dim=0)
    return orders[torch.randperm(len(orders), generator=generator)]
