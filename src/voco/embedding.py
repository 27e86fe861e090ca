"""From crops to embeddings: a backbone, its levels pooled, and a projector; or its last map."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voco.backbone import Backbone, MaskedBackbone, Part
from voco.nn.freeze import freeze_unreached
from voco.nn.heads import Ending, projector
from voco.nn.pooling import level_means, split_for_caches
from voco.shapes import Level, Shape3, Volumes

Levels = Literal["backbone", "last"]
"""Which levels of a pyramid are pooled: those the backbone names, or the last."""


class Embedder(nn.Module):
    """A backbone, its levels averaged over space and joined, and a projector.

    What of the backbone does not lead to those levels (decoder and output layer, and whatever
    else) is frozen.

    Args:
        backbone: The network.
        levels: Which levels are pooled.
        widths: Of the projector's hidden layers and of its output.
        size: Voxels of a crop.
        at_once: Crops that pass through the backbone together; ``None``: see :func:`pooled`. A
            backbone that mixes the crops of a batch takes nothing else.
        std: Of the projector's first weights; ``None`` starts as torch does.
        ending: How the projector ends.
        learnt: Whether its standardisations learn a scale and a shift.

    Raises:
        ConfigError: If the backbone cannot take the crops of a batch in pieces.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        levels: Levels,
        widths: Sequence[int],
        size: Shape3,
        at_once: int | None = None,
        std: float | None = None,
        ending: Ending = "bias",
        learnt: bool = False,
    ) -> None:
        super().__init__()
        backbone.check_pieces(at_once)
        last = (len(backbone.channels) - 1,)
        self.levels = backbone.embedding_levels if levels == "backbone" else last
        self.at_once = at_once
        self.backbone = backbone
        features = sum(backbone.channels[level] for level in self.levels)
        self.projector = projector((features, *widths), std=std, ending=ending, learnt=learnt)
        crops = [torch.zeros(1, _input_channels(backbone), *size, device="meta")]
        freeze_unreached(backbone, lambda probe: pooled(probe, crops, self.levels))

    def forward(self, *crops: Float[Tensor, "_ c _ _ _"]) -> Float[Tensor, "n e"]:
        """Embeddings of crops, one row each."""
        return self.projector(self.pool(*crops))

    def pool(self, *crops: Float[Tensor, "_ c _ _ _"]) -> Float[Tensor, "n e"]:
        """Pooled features of crops, one row each."""
        return pooled(self.backbone, crops, self.levels, at_once=self.at_once)


def pooled(
    backbone: Backbone,
    crops: Sequence[Float[Tensor, "_ c _ _ _"]],
    levels: Sequence[int],
    *,
    at_once: int | None = None,
) -> Float[Tensor, "n e"]:
    """Features of crops, averaged over space and joined over levels; at least float32.

    Args:
        backbone: Its encoder is used.
        crops: Batches of crops; those of one size go through together.
        levels: Which levels of the pyramid are joined.
        at_once: Crops that go through together at most; ``None`` is all, or on a CPU as many as
            have 800,000 voxels. Results do not depend on it: what mixes the crops of a
            batch, as batch norm does in training, gets all of one size at once.

    Returns:
        One row per crop, in the order they came.
    """
    alike = len({batch.shape[1:] for batch in crops}) == 1
    batches = [torch.cat(list(crops))] if alike else crops
    if backbone.mixes_volumes and backbone.training:
        pieces = list(batches)
    else:
        pieces = [
            piece
            for batch in batches
            for piece in (batch.split(at_once) if at_once else split_for_caches(batch))
        ]
    return torch.cat([level_means(backbone.encode(piece), levels) for piece in pieces])


def deepest(backbone: Backbone, volumes: Volumes) -> Level:
    """The last map of what encodes volumes, with the channels and stride of the last level.

    On backbones that make tokens it is that of the tokens, without convolutions that stand between
    them and the decoder; those are then not even computed.
    """
    if not isinstance(backbone, MaskedBackbone):
        return backbone.encode(volumes)[-1]
    sides = (side // edge for side, edge in zip(volumes.shape[2:], backbone.patch, strict=True))
    nothing = torch.zeros(len(volumes), *sides, dtype=torch.bool, device=volumes.device)
    token = torch.zeros(backbone.embedding_width, device=volumes.device)
    return backbone.encode_masked(volumes, nothing, token)


def deepest_part(backbone: Backbone) -> Part:
    """The part of a backbone that :func:`deepest` uses."""
    return "tokens" if isinstance(backbone, MaskedBackbone) else "encoder"


def _input_channels(backbone: Backbone) -> int:
    """Channels of the first kernel of the network."""
    return next(tensor for tensor in backbone.network.parameters() if tensor.ndim == 5).shape[1]
