"""A training step as a user without this project would write it.

VoCo's variant v1, from its specification: all crops pass together through MONAI's network, whose
transformer blocks recompute their activations in the backward pass; the teacher takes the same
way; the loss is spelled out over volumes, random crops and bases; teacher and optimizer go from
tensor to tensor. Segmentation: MONAI's network, and its loss.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voco.backbone import Backbone

Pyramid = Callable[[Tensor], list[Tensor]]
"""Gives the maps of a batch of crops, finest first."""

_EPSILON = 1e-6


class PlainViews(NamedTuple):
    """Crops, and how much of each random one lies in each base: ``(b, q, k)``."""

    queries: Tensor
    bases: Tensor
    overlap: Tensor


class PlainEmbedder(nn.Module):
    """A network, global average pooling of its levels, and a projector."""

    def __init__(self, backbone: Backbone, hidden: int, width: int) -> None:
        super().__init__()
        self.network = plain_network(backbone)
        self.levels = backbone.embedding_levels
        self._pyramid = plain_pyramid(backbone, self.network)
        features = sum(backbone.channels[level] for level in self.levels)
        self.projector = nn.Sequential(
            nn.Linear(features, hidden, bias=False),
            nn.BatchNorm1d(hidden, affine=False, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden, affine=False, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def pool(self, crops: Tensor) -> Tensor:
        """Averages of the maps: one row per crop."""
        maps = self._pyramid(crops)
        pooled = [F.adaptive_avg_pool3d(maps[level], 1).flatten(1) for level in self.levels]
        return torch.cat(pooled, dim=1)

    def forward(self, crops: Tensor) -> Tensor:
        """One row per crop."""
        return self.projector(self.pool(crops))


class PlainVoCo(nn.Module):
    """Student, teacher and loss of VoCo v1."""

    def __init__(self, make: Callable[[], PlainEmbedder], momentum: float) -> None:
        super().__init__()
        self.student, self.teacher = make(), make()
        self.teacher.requires_grad_(False)  # noqa: FBT003 (torch's signature)
        self.momentum = momentum

    def follow(self) -> None:
        """Move the teacher, tensor by tensor."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.data = teacher.data * self.momentum + student.data * (1 - self.momentum)

    def forward(self, views: PlainViews) -> Tensor:
        """The loss of a batch of volumes."""
        crops = torch.cat([views.queries.flatten(0, 1), views.bases.flatten(0, 1)])
        count = views.queries.shape[0] * views.queries.shape[1]
        student = self.student(crops)
        with torch.no_grad():
            teacher = self.teacher(crops)
        random, bases = views.queries.shape[:2], views.bases.shape[:2]
        return plain_loss(
            student[:count].unflatten(0, random),
            student[count:].unflatten(0, bases),
            teacher[:count].unflatten(0, random),
            teacher[count:].unflatten(0, bases),
            views.overlap,
        )


class PlainSegmentation(nn.Module):
    """A network, and MONAI's sum of Dice loss and cross-entropy."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        from monai.losses.dice import DiceCELoss  # noqa: PLC0415 (takes seconds)

        self.network = plain_network(backbone)
        self.loss = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5
        )

    def forward(self, crops: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch of crops."""
        return self.loss(self.network(crops), labels[:, None])


def plain_network(backbone: Backbone) -> nn.Module:
    """The library's own network, with activation checkpointing where it has that."""
    arguments = dict(backbone.library_arguments)
    if "use_checkpoint" in arguments:
        arguments["use_checkpoint"] = True
    return type(backbone.network)(**arguments)


def plain_pyramid(backbone: Backbone, network: Any) -> Pyramid:  # noqa: ANN401 (any library's)
    """The maps by the library's own modules."""
    if not hasattr(network, "swinViT"):
        return Adapter(backbone, network)

    def maps(crops: Tensor) -> list[Tensor]:
        hidden = network.swinViT(crops, network.normalize)
        return [
            network.encoder1(crops),
            network.encoder2(hidden[0]),
            network.encoder3(hidden[1]),
            network.encoder4(hidden[2]),
            hidden[3],
            network.encoder10(hidden[4]),
        ]

    return maps


class Adapter:
    """The maps of networks that have no shortcuts of ours: what their backbone calls."""

    def __init__(self, backbone: Backbone, network: nn.Module) -> None:
        self._backbone = backbone
        backbone.network = network

    def __call__(self, crops: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        return self._backbone.encode(crops)


def plain_loss(
    queries: Tensor, bases: Tensor, teacher_queries: Tensor, teacher_bases: Tensor, overlap: Tensor
) -> Tensor:
    """VoCo v1's loss, over volumes, random crops, bases and pairs of bases."""
    losses = []
    for volume in range(len(queries)):
        near: list[Tensor] = []
        far: list[Tensor] = []
        weights: list[Tensor] = []
        outside: list[Tensor] = []
        for query in range(queries.shape[1]):
            for base in range(bases.shape[1]):
                share = overlap[volume, query, base]
                forth = _cosine(queries[volume, query], teacher_bases[volume, base])
                back = _cosine(teacher_queries[volume, query], bases[volume, base])
                predicted = (forth + back) / 2
                near.append(-share * torch.log(1 - (share - predicted).abs() + _EPSILON))
                weights.append(share)
                outside.append((share == 0).float())
                far.append(outside[-1] * predicted**2)
        alike = [
            _cosine(bases[volume, one], bases[volume, other].detach()) ** 2
            for one in range(bases.shape[1])
            for other in range(one + 1, bases.shape[1])
        ]
        losses.append(
            torch.stack(near).sum() / (torch.stack(weights).sum() + _EPSILON)
            + torch.stack(far).sum() / (torch.stack(outside).sum() + _EPSILON)
            + torch.stack(alike).mean()
        )
    return torch.stack(losses).mean()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one, other, dim=0).relu()


def plain_optimizer(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """Torch's own defaults."""
    return torch.optim.AdamW(parameters, lr=lr)
