"""Which tokens of a volume meet in which window, where windows may be shifted and padded.

Swin attention pads a volume up to whole windows, and its shifted windows join tokens from both ends
of an axis, which a mask keeps apart. What is padded and masked differs only between the windows at
the ends of an axis and all others, so there are a few kinds of windows, and padding need never be
made: a window's kind says which of its places are real.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voco.shapes import Shape3

APART = -100.0
"""Added to the logits of tokens that may not see each other, as Swin has it."""


class Padding(NamedTuple):
    """What the real tokens of a window see of its padding.

    Attributes:
        seen: 1 where a real place (row) sees a padded place, else 0. A row that sees none has a 1
            for every padded place.
        offset: What is added to the logits of the row's padding: 0, or ``APART`` if it sees none.
    """

    seen: Float[Tensor, "r n"]
    offset: Float[Tensor, "r"]


class Kind(NamedTuple):
    """Windows that are padded and masked alike.

    Attributes:
        windows: How many there are in the batch.
        real: Places of a window that hold tokens of the volume.
        mask: What is added to the logits of a real place (row) for each of them, or ``None``.
        padding: What they see of the other places, or ``None`` if there are no others.
    """

    windows: int
    real: Int64[Tensor, "r"]
    mask: Float[Tensor, "r r"] | None
    padding: Padding | None


class Layout(NamedTuple):
    """All windows of a batch of volumes.

    Attributes:
        kinds: Kind by kind; windows of a kind follow each other.
        order: Which token of the batch comes where, when tokens stand kind by kind, window by
            window; padding has no place in it.
        back: The inverse of ``order``.
        places: How many places a window has.
    """

    kinds: tuple[Kind, ...]
    order: Int64[Tensor, "_"]
    back: Int64[Tensor, "_"]
    places: int


class _Along(NamedTuple):
    """Windows along one axis that are padded and masked alike."""

    tokens: np.ndarray
    """Position of every token that is real: windows, tokens."""
    real: np.ndarray
    """Places of the window that are real."""
    regions: np.ndarray
    """Region of every place of the window; those of different regions do not see each other."""


@lru_cache(maxsize=64)
@torch.compiler.assume_constant_result
def window_layout(
    sides: Shape3, window: Shape3, shift: Shape3, volumes: int, device: torch.device
) -> Layout:
    """The windows of a batch.

    Args:
        sides: Tokens of a volume along x, y and z.
        window: Tokens of a window along each.
        shift: By how much the grid of windows is shifted along each.
        volumes: Volumes in the batch.
        device: Where the indices are wanted.
    """
    parts = (_along(*axis) for axis in zip(sides, window, shift, strict=True))
    kinds, rows = [], []
    for axes in product(*parts):
        tokens = _joined([axis.tokens for axis in axes], sides)
        batch = tokens[:, None] + np.arange(volumes)[:, None] * int(np.prod(sides))
        rows.append(batch.reshape(-1))
        kinds.append(_kind(axes, window, len(tokens) * volumes, device))
    order = np.concatenate(rows)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Layout(
        tuple(kinds),
        torch.from_numpy(order).to(device),
        torch.from_numpy(back).to(device),
        int(np.prod(window)),
    )


def _along(side: int, window: int, shift: int) -> list[_Along]:
    """Kinds of windows along one axis."""
    padded = -(-side // window) * window
    places = np.arange(padded)
    tokens = ((places + shift) % padded).reshape(-1, window)
    # The last window of a shifted axis holds tokens from its end, and then from its start.
    regions = (places >= padded - window).astype(int) + (places >= padded - shift)
    regions = (regions if shift else 0 * regions).reshape(-1, window)
    found: dict[bytes, list[int]] = {}
    for number, row in enumerate(tokens):
        found.setdefault((row < side).tobytes() + regions[number].tobytes(), []).append(number)
    kinds = []
    for numbers in found.values():
        (real,) = np.nonzero(tokens[numbers[0]] < side)
        kinds.append(_Along(tokens[numbers][:, real], real, regions[numbers[0]]))
    return kinds


def _joined(numbers: list[np.ndarray], sides: Shape3) -> np.ndarray:
    """Flat numbers, of every combination of windows (rows) and of tokens (columns)."""
    x, y, z = numbers
    joined = (
        (x[:, None, None, :, None, None] * sides[1] + y[None, :, None, None, :, None]) * sides[2]
    ) + z[None, None, :, None, None, :]
    return joined.reshape(len(x) * len(y) * len(z), -1)


def _kind(axes: tuple[_Along, ...], window: Shape3, windows: int, device: torch.device) -> Kind:
    real = _joined([axis.real[None] for axis in axes], window)[0]
    regions = _joined([axis.regions[None] for axis in axes], (3, 3, 3))[0]
    together = regions[real][:, None] == regions
    mask = padding = None
    if not together[:, real].all():
        mask = torch.from_numpy(APART * ~together[:, real]).to(device, torch.float32)
    if len(real) < len(regions):
        padded = np.isin(np.arange(len(regions)), real, invert=True)
        seen = together & padded
        none = ~seen.any(axis=1)
        seen[none] = padded
        padding = Padding(
            torch.from_numpy(seen).to(device, torch.float32),
            torch.from_numpy(APART * none).to(device, torch.float32),
        )
    return Kind(windows, torch.from_numpy(real).to(device), mask, padding)
