"""Which of many learnt prototypes an embedding is like: DINO's head."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voco.nn.unit import unit


class PrototypeHead(nn.Module):
    """Linear layers with GELU between them, and cosines with prototypes.

    The head of DINO (Caron et al., ICCV 2021; code ``facebookresearch/dino``) without batch norm:
    weights start with a standard deviation of 0.02 and biases at zero. Its last layer, which is
    normalised in both embeddings and weights and has no bias, gives cosines; these are in at
    least float32.

    Args:
        widths: Features that come in, of each hidden layer, and of an embedding.
        prototypes: How many.
    """

    def __init__(self, widths: Sequence[int], prototypes: int) -> None:
        super().__init__()
        first, *rest = [nn.Linear(before, after) for before, after in pairwise(widths)]
        layers = [first, *(part for layer in rest for part in (nn.GELU(), layer))]
        for layer in (first, *rest):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.empty(prototypes, widths[-1]).normal_(std=0.02))

    def forward(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n k"]:
        """Cosines with all prototypes, from -1 to 1."""
        embeddings = self.layers(rows)
        with torch.autocast(rows.device.type, enabled=False):
            return unit(embeddings) @ unit(self.prototypes).mT
