"""VoCo's loss, vectorised, against the plain double loop over volumes, crops and pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from voco.bench.harness import Subject
from voco.geometry import boxes_at, grid_boxes, overlap
from voco.methods.voco import prediction_loss, regularization_loss, similarity

_VOLUMES, _QUERIES, _WIDTH = 2, 2, 2048


def subjects() -> list[Subject]:
    """16 base crops (the paper's grid) and 64."""
    return [_subject((4, 4, 1)), _subject((4, 4, 4))]


def _subject(cells: tuple[int, int, int]) -> Subject:
    generator = torch.Generator().manual_seed(0)
    bases = grid_boxes(cells, (64, 64, 64))
    within = (64 * cells[0], 64 * cells[1], 64 * cells[2])
    place = torch.rand(_VOLUMES * _QUERIES, 3, generator=generator)
    shares = overlap(boxes_at(place, (64, 64, 64), within), bases)
    shares = shares.view(_VOLUMES, _QUERIES, len(bases))
    queries = torch.randn(_VOLUMES, _QUERIES, _WIDTH, generator=generator).requires_grad_()
    keys = torch.randn(_VOLUMES, len(bases), _WIDTH, generator=generator).requires_grad_()

    def plain() -> tuple[Tensor, ...]:
        loss = _plain_loss(queries, keys, shares)
        return (loss.detach(), *torch.autograd.grad(loss, (queries, keys)))

    def ours() -> tuple[Tensor, ...]:
        loss = prediction_loss(similarity(queries, keys.detach()), shares, variant="paper")
        loss = loss + regularization_loss(keys, variant="paper")
        return (loss.detach(), *torch.autograd.grad(loss, (queries, keys)))

    return Subject(
        name=f"loss-{len(bases)}",
        what=f"loss and gradient, {_VOLUMES} volumes, {len(bases)} base and {_QUERIES} random "
        f"crops, {_WIDTH} features",
        plain=plain,
        ours=ours,
        equal=_difference,
        most=5 if len(bases) == 16 else 2,
    )


def _plain_loss(queries: Tensor, keys: Tensor, shares: Tensor) -> Tensor:
    losses = []
    for volume in range(len(queries)):
        terms = []
        for query, row in zip(queries[volume], shares[volume], strict=True):
            for key, share in zip(keys[volume], row, strict=True):
                cosine = F.cosine_similarity(query, key.detach(), dim=0).clamp(0, 1)
                terms.append(-torch.log(1 - (share - cosine).abs() + 1e-6))
        pairs = [
            F.cosine_similarity(keys[volume, i], keys[volume, j], dim=0).abs()
            for i in range(keys.shape[1] - 1)
            for j in range(i + 1, keys.shape[1])
        ]
        losses.append(torch.stack(terms).mean() + torch.stack(pairs).mean())
    return torch.stack(losses).mean()


def _difference(plain: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> str:
    largest = max(float((a - b).abs().max()) for a, b in zip(plain, ours, strict=True))
    return f"value and gradient, largest difference {largest:.0e}"
