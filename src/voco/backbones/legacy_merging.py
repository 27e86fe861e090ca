"""Swin UNETR as MONAI built it up to version 1.4: with another merging of patches.

Halving the resolution, a patch and its seven neighbours become one. MONAI's ``merging`` took two
of the eight twice and left two out, on purpose not mended for years so as not to break trained
weights (`pull request 5106 <https://github.com/Project-MONAI/MONAI/pull/5106>`_); 1.5 mended it
under the same name, with tensors of the same names and shapes. Weights that were trained with the
one compute something else with the other, and nothing complains.
"""

from itertools import chain

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinUNETR
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 0, 1),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 1),
)
"""Which of the eight is in which place, as offsets along the three axes."""


class LegacyPatchMerging(PatchMergingV2):
    """The merging of MONAI 0.9 to 1.4."""

    def forward(self, x: Tensor) -> Tensor:
        """Half as many patches along each axis, of twice the channels; channels come last."""
        odd = [side % 2 for side in x.shape[1:4]]
        x = F.pad(x, (0, 0, *chain.from_iterable((0, one) for one in reversed(odd))))
        taken = [x[:, i::2, j::2, k::2] for i, j, k in NEIGHBOURS]
        return self.reduction(self.norm(torch.cat(taken, dim=-1)))


class LegacySwinUNETR(SwinUNETR):
    """MONAI's ``SwinUNETR`` with the merging of MONAI 0.9 to 1.4; takes the same arguments.

    Equal to ``SwinUNETR(..., downsample=LegacyPatchMerging)``.
    """

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments, downsample=LegacyPatchMerging)  # pyright: ignore[reportArgumentType]
