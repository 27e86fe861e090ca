"""Contrast of each embedding with one positive among many (InfoNCE), and how well it works."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voco.nn.gather import first_row, gathered_rows
from voco.nn.health import effective_rank, masked_mean, position_accuracy
from voco.nn.terms import Term
from voco.nn.unit import unit


def info_nce(
    rows: Float[Tensor, "n e"],
    others: Float[Tensor, "m e"],
    positives: Int64[Tensor, "n"],
    temperature: float,
    excluded: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each row's positive by cosine; the mean over the rows.

    The logits are cosines over the temperature (van den Oord et al., arXiv 1807.03748; as in
    SimCLR, Chen et al., ICML 2020, equation 1, and MoCo v3). Where all embeddings are equal it is
    the logarithm of the number of candidates. In at least float32, with autocast off.

    Args:
        rows: Embeddings; brought to unit length.
        others: Embeddings to choose among; likewise.
        positives: Which of the others is right for each row.
        temperature: What cosines are divided by.
        excluded: Others that are no candidates for a row; never its positive.
    """
    with torch.autocast(rows.device.type, enabled=False):
        logits = unit(rows) @ unit(others).mT / temperature
        if excluded is not None:
            # Not a large number: half precision would turn it into infinity or worse.
            logits = logits.masked_fill(excluded, -torch.inf)
        return F.cross_entropy(logits, positives)


@torch.no_grad()
def pair_health(
    rows: Float[Tensor, "n e"],
    others: Float[Tensor, "m e"],
    positives: Int64[Tensor, "n"],
    excluded: Bool[Tensor, "n m"] | None = None,
) -> dict[str, Tensor]:
    """How well pairs are told from other crops.

    Returns:
        ``pair_accuracy``: how often the candidate with the highest cosine is the positive;
        ``pair_chance``: of a blind choice. ``similarity_pairs`` and ``similarity_others``: mean
        cosine of positives, and of all other candidates (0 where there are none).
    """
    with torch.autocast(rows.device.type, enabled=False):
        cosines = unit(rows) @ unit(others).mT
    right = F.one_hot(positives, len(others)).bool()
    candidates = torch.ones_like(right) if excluded is None else ~excluded
    return {
        "pair_accuracy": position_accuracy(
            cosines.masked_fill(~candidates, -torch.inf), right.to(cosines)
        ),
        "pair_chance": candidates.sum(dim=1).to(cosines).reciprocal().mean(),
        "similarity_pairs": masked_mean(cosines, right),
        "similarity_others": masked_mean(cosines, candidates & ~right),
    }


def two_views_contrast(
    rows: Float[Tensor, "b two e"], temperature: float, *, everywhere: bool
) -> Term:
    """Each view of a volume finds its other view among all other views of the batch.

    SimCLR's loss (Chen et al., ICML 2020, equation 1), the mean over views; 0 for a single volume,
    which has nothing to be told from. A blind network pays the logarithm of the candidates. The
    figures are those of :func:`pair_health`, and ``effective_rank``.

    Args:
        rows: Embeddings of two views of each of this process's volumes.
        temperature: What cosines are divided by.
        everywhere: Whether the batch is that of all processes.
    """
    own = rows.flatten(0, 1)
    everyone = gathered_rows(own, everywhere=everywhere)
    first = first_row(len(own), everywhere=everywhere)
    places = torch.arange(first, first + len(own), device=own.device)
    positives = places ^ 1
    itself = torch.arange(len(everyone), device=own.device) == places[:, None]
    health = pair_health(own, everyone, positives, itself)
    return Term(
        info_nce(own, everyone, positives, temperature, itself),
        -health["pair_chance"].log(),
        health | {"effective_rank": effective_rank(own)},
    )
