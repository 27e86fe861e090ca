"""The small transformer that paints hidden cubes, and is then thrown away."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voco.nn.cubes import Cubes, Order


class Decoder(nn.Module):
    """A transformer from the tokens of seen cubes to the voxels of hidden ones.

    A learnt token stands in for each hidden cube; it starts with a standard deviation of 0.02.

    Args:
        features: Length of an encoded token.
        voxels: Numbers in a cube, over all channels.
        width: Length of the decoder's own tokens.
        depth: Blocks.
        heads: Attention heads of a block.
        hidden: Hidden units of a block's MLP.
    """

    def __init__(
        self, features: int, voxels: int, *, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                hidden,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, voxels)

    def forward(
        self, seen: Float[Tensor, "b s e"], order: Order, position: Float[Tensor, "t w"]
    ) -> Cubes:
        """Predictions of the hidden cubes, in their order.

        Args:
            seen: Encoded tokens of the first cubes of the order.
            order: Of all cubes.
            position: Position codes of all cubes.
        """
        count, known = seen.shape[:2]
        embedded = self.embed(seen)
        masks = self.mask_token.to(embedded).expand(count, order.shape[1] - known, -1)
        tokens = torch.cat([embedded, masks], dim=1) + position[order].to(embedded)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens[:, known:]))
