"""Three heads on the coarsest features, as in the pre-training of Swin UNETR and in SwinMM.

They say by how many quarter turns a volume was turned, embed it, and paint it. Reference:
``SwinUNETR/Pretrain/models/ssl_head.py`` of MONAI's ``research-contributions``.
"""

import math
from typing import Literal, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

from voco.errors import ConfigError
from voco.nn.classifier import answer_health, classification_loss
from voco.nn.pooling import level_means
from voco.nn.terms import Term
from voco.nn.upsampling import upsampler
from voco.shapes import Level, Shape3, Volumes

TURNS = 4
"""Quarter turns that are told apart."""

Readout = Literal["corners", "mean"]
"""What turn and embedding are read from: two neighbouring voxels of the features, each from one of
its own, or their mean over space."""


class Answers(NamedTuple):
    """What the heads say of volumes.

    Attributes:
        turns: Logits of the number of quarter turns.
        rows: Embeddings.
        painted: The volumes as they should be.
    """

    turns: Float[Tensor, "n turns"]
    rows: Float[Tensor, "n e"]
    painted: Volumes


class ThreeHeads(nn.Module):
    """Heads on the last map of what encodes a volume.

    Args:
        features: Channels of the map.
        stride: Voxels of a volume per voxel of the map.
        channels: Channels of a volume.
        size: Voxels of a volume.
        width: Length of an embedding.
        readout: What turn and embedding are read from.

    Raises:
        ConfigError: If the map would be a single voxel, or doubling does not lead from it to a
            volume.
    """

    def __init__(
        self,
        features: int,
        stride: int,
        channels: int,
        size: Shape3,
        *,
        width: int,
        readout: Readout,
    ) -> None:
        super().__init__()
        if stride < 2 or stride.bit_count() != 1:
            raise ConfigError(
                f"The backbone's last map has one voxel for {stride} of the volume along each "
                "axis, and the head that paints the volume doubles them: only 2, 4, 8, ... fit."
            )
        if math.prod(side // stride for side in size) < 2:
            raise ConfigError(
                f"The backbone's last map has a single voxel for volumes of {size}: there is "
                "nothing to normalise over, and no second voxel to read an embedding from. The "
                f"volume needs {2 * stride} voxels or more along one axis at least."
            )
        self.readout = readout
        self.turns = nn.Linear(features, TURNS)
        self.embedding = nn.Linear(features, width)
        doublings = stride.bit_length() - 1
        # The last convolution keeps its width (reference: 768, 384, 192, 96, 48, 48).
        widths = [max(1, features >> min(at, doublings - 1)) for at in range(doublings + 1)]
        self.paint = upsampler(widths, channels)

    def forward(self, features: Level) -> Answers:
        """Answers to the last map."""
        if self.readout == "corners":
            corner, neighbour = features.flatten(2)[:, :, :2].unbind(dim=2)
        else:
            corner = neighbour = level_means([features], [0])
        return Answers(self.turns(corner), self.embedding(neighbour), self.paint(features))


def told_turns(logits: Float[Tensor, "n turns"], labels: Int64[Tensor, "n"]) -> Term:
    """How well turns are told: cross-entropy, ``rotation_accuracy`` and ``rotation_chance``."""
    found = answer_health(logits, labels)
    health = {f"rotation_{name}": found[name] for name in ("accuracy", "chance")}
    return Term(classification_loss(logits, labels), found["loss_chance"], health)
