"""Changing some crops of a batch, and leaving the others as they are.

A CPU works on the crops that are chosen alone. Elsewhere every operator sees all crops: to change
some for nothing costs less there than shapes that differ from step to step, which no captured or
compiled step can have.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from voco.shapes import Volumes

Change = tuple[Bool[Tensor, "b"], Callable[[Volumes, Int64[Tensor, "_"]], Volumes]]
"""Which crops are changed, on the CPU, so that no device is waited for; and how, given crops and
their numbers in the batch (on the CPU too). A change keeps the shape, and does to a crop the same
whichever others are with it."""


def change(crops: Volumes, changes: Sequence[Change]) -> Volumes:
    """Crops changed, one change after the other; the same on every device."""
    return (change_chosen if crops.device.type == "cpu" else change_all)(crops, changes)


def change_chosen(crops: Volumes, changes: Sequence[Change]) -> Volumes:
    """:func:`change`, with nothing computed for the crops that are not chosen."""
    made = crops.clone()
    for chosen, how in changes:
        rows = chosen.nonzero().flatten()
        if len(rows):
            here = rows.to(made.device)
            made.index_copy_(0, here, how(made.index_select(0, here), rows).to(made.dtype))
    return made


def change_all(crops: Volumes, changes: Sequence[Change]) -> Volumes:
    """:func:`change`, in shapes that do not depend on how many crops are chosen."""
    rows = torch.arange(len(crops))
    for chosen, how in changes:
        here = chosen.to(crops.device, non_blocking=True).view(-1, 1, 1, 1, 1)
        # What a change makes of a crop that was not meant for it, even NaN, is not taken.
        crops = torch.where(here, how(crops, rows).to(crops.dtype), crops)
    return crops
