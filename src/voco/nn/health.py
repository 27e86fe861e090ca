"""Figures that tell whether a network learns something, whatever the method."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voco.shapes import Boxes, Shape3


@torch.no_grad()
def effective_rank(rows: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """In how many directions embeddings spread, from 1 (all collinear) to the number of rows.

    The exponential of the entropy of the normalised singular values (Roy & Vetterli, EUSIPCO
    2007; RankMe, Garrido et al., ICML 2023). Rows are brought to unit length first. Zero rows
    alone give 1.
    """
    with torch.autocast(rows.device.type, enabled=False):
        unit = torch.nn.functional.normalize(rows.float(), dim=-1)
        # A network that has diverged is reported by its loss, not by a failed decomposition.
        values = torch.linalg.svdvals(unit.nan_to_num())
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def masked_mean(values: Float[Tensor, "*n"], chosen: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """The mean of the chosen values; 0 where none is chosen."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


@torch.no_grad()
def share_health(
    predicted: Float[Tensor, "*n q k"], overlap: Float[Tensor, "*n q k"]
) -> dict[str, Tensor]:
    """How well shares are predicted.

    Returns:
        ``position_accuracy``: see :func:`position_accuracy`. ``similarity_inside`` and
        ``similarity_outside``: mean prediction where the true share is above 0, and where it is 0.
        ``dead_share``: of the pairs that overlap, how many are predicted as 0, where clamping
        leaves no gradient.
    """
    inside = overlap > 0
    return {
        "position_accuracy": position_accuracy(predicted, overlap),
        "similarity_inside": masked_mean(predicted, inside),
        "similarity_outside": masked_mean(predicted, ~inside),
        "dead_share": masked_mean((predicted <= 0).float(), inside),
    }


@torch.no_grad()
def position_accuracy(
    predicted: Float[Tensor, "*n q k"], overlap: Float[Tensor, "*n q k"]
) -> Float[Tensor, ""]:
    """How often the base with the highest predicted share is one with the largest true share.

    Bases that share the largest true share are all right. Where several bases are predicted
    alike, the answer counts as right in part, as a blind choice among them would be: a network
    that predicts the same for all does not profit from the order of the bases. A base whose true
    share is only just smaller counts as wrong.
    """
    right = overlap >= overlap.amax(dim=-1, keepdim=True) - 1e-6
    chosen = predicted >= predicted.amax(dim=-1, keepdim=True)
    return ((right & chosen).sum(dim=-1) / chosen.sum(dim=-1).clamp(min=1)).mean()


def position_chance(bases: Boxes, size: Shape3, within: Shape3) -> Float[Tensor, ""]:
    """The accuracy of always naming the one base that is most often right.

    Exact, for boxes of one size that are placed uniformly within a region and bases on a grid.
    It is above one over the number of bases, since those inside the grid are right more often.

    Args:
        bases: The boxes of a grid.
        size: Voxels of a random box.
        within: Voxels of the region in which it lies.
    """
    chance = torch.ones(())
    for axis in range(3):
        start = torch.arange(within[axis] - size[axis] + 1)[:, None]
        low, high = bases[:, 0, axis].unique(), bases[:, 1, axis].unique()
        common = (start + size[axis]).minimum(high) - start.maximum(low)
        right = common == common.amax(dim=1, keepdim=True)
        chance = chance * right.float().mean(dim=0).amax()
    return chance
