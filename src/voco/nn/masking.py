"""Putting a token in place of what is hidden."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voco.shapes import Level


def replaced(patches: Level, hidden: Bool[Tensor, "b i j k"], token: Float[Tensor, "e"]) -> Level:
    """Embeddings of patches, a token in place of those that are hidden.

    Args:
        patches: One embedding for each patch, along the second axis.
        hidden: Which of them are replaced.
        token: What they are replaced by.
    """
    return torch.where(hidden[:, None], token.to(patches).view(-1, 1, 1, 1), patches)
