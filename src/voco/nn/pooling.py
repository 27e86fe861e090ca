"""From pyramids of features to one vector per crop."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from voco.shapes import Level, Volumes


def pooled(
    encode: Callable[[Volumes], list[Level]],
    crops: Sequence[Float[Tensor, "_ c _ _ _"]],
    levels: Sequence[int],
    *,
    at_once: int | None = None,
) -> Float[Tensor, "n e"]:
    """Features of crops, averaged over space and joined over levels; at least float32.

    Args:
        encode: Gives the pyramid of a batch of crops.
        crops: Batches of crops; those of one size go through together.
        levels: Which levels of the pyramid are joined.
        at_once: Crops that go through together at most; ``None`` is all.

    Returns:
        One row per crop, in the order they came.
    """
    alike = len({batch.shape[1:] for batch in crops}) == 1
    batches = [torch.cat(list(crops))] if alike else crops
    pieces = [piece for batch in batches for piece in batch.split(at_once or len(batch))]
    return torch.cat([level_means(encode(piece), levels) for piece in pieces])


def level_means(pyramid: list[Level], levels: Sequence[int]) -> Float[Tensor, "n e"]:
    """Levels of a pyramid averaged over space and joined; at least float32."""
    dtype = torch.promote_types(pyramid[0].dtype, torch.float32)
    return torch.cat([pyramid[level].mean(dim=(2, 3, 4), dtype=dtype) for level in levels], dim=1)
