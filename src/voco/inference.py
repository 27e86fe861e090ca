"""A network on a volume of any size: overlapping windows, blended, slab by slab.

The windows are worked off along x, and the rows that no later window touches are given out at
once. So what is held at a time is one slab as thick as a window, in float32, however wide the
volume and however many the classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from voco.shapes import Level, Shape3, Volumes
from voco.tasks.classification import Classification
from voco.tasks.segmentation import SegmentationConfig

_SIGMA = 0.125
"""Standard deviation of the gaussian blending, in sides of the window (as nnU-Net has it)."""

_FAINTEST = 1e-3
"""Least weight of a voxel in its window, relative to the largest."""

Network = Callable[[Volumes], Level]
"""Gives one channel per class at the size of its input."""


@dataclass(frozen=True)
class Windows:
    """How a volume is cut into windows and put together again.

    Attributes:
        roi: Voxels of a window.
        overlap: Of neighbouring windows, as a share of their side, below 1.
        blending: Whether the middle of a window counts more than its rim.
        at_once: Windows that pass through the network together.
        flip_axes: Axes (0 is x) along which windows are mirrored; what the network says of every
            combination is turned back and averaged.
    """

    roi: Shape3
    overlap: float = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    at_once: int = 1
    flip_axes: tuple[int, ...] = ()


class Rows(NamedTuple):
    """Finished rows of the result: consecutive x."""

    where: slice
    logits: Float[Tensor, "k rows y z"]


def sliding_window(
    network: Network, volume: Float[Tensor, "c x y z"], windows: Windows
) -> Iterator[Rows]:
    """Logits of a volume, in rising order of x, on the volume's device, float32.

    A volume smaller than a window is padded on both sides with the smallest value of each
    channel, and the result cut back.

    What is given out is a view of the slab that the next windows are added to: use it, or copy
    it, before asking for more.

    Args:
        network: In evaluation mode, on the volume's device.
        volume: Intensities in the network's range.
        windows: How to cut.
    """
    padded, before = _padded(volume, windows.roi)
    shape = volume.shape[1:]
    y, z = (slice(low, low + side) for low, side in zip(before[1:], shape[1:], strict=True))
    for where, logits in _slabs(network, padded, windows):
        first = max(where.start, before[0])
        last = min(where.stop, before[0] + shape[0])
        if first < last:
            part = logits[:, first - where.start : last - where.start, y, z]
            yield Rows(slice(first - before[0], last - before[0]), part)


def winners(
    network: Network, volume: Float[Tensor, "c x y z"], windows: Windows
) -> Integer[np.ndarray, "x y z"]:
    """Number of the class with the highest logit at each voxel: uint8, or int16 beyond 256."""
    parts = []
    for _, logits in sliding_window(network, volume, windows):
        dtype = torch.uint8 if len(logits) <= 256 else torch.int16
        parts.append(logits.argmax(dim=0).to(dtype).cpu())
    return torch.cat(parts).numpy()


def windows_of(config: SegmentationConfig, *, flips: bool = False) -> Windows:
    """The windows of a segmentation; with ``flips`` mirrored along the axes that it allows."""
    axes = tuple("xyz".index(axis) for axis in config.flip_axes) if flips else ()
    return Windows(config.roi, config.overlap, config.blending, config.windows_per_batch, axes)


@torch.no_grad()
def class_probabilities(
    task: Classification, volume: Float[Tensor, "c x y z"], *, flips: bool = False
) -> Float[Tensor, "k"]:
    """Probability of each class of a volume in the task's size.

    Args:
        task: In evaluation mode.
        volume: Intensities in the network's range, of the task's size.
        flips: Whether to average over the mirrored copies that the task allows.
    """
    axes = ["xyz".index(axis) for axis in task.config.flip_axes] if flips else []
    copies = [volume[None].flip([axis + 2 for axis in subset]) for subset in _subsets(axes)]
    return torch.stack([task.scores(copy)[0].float().softmax(0) for copy in copies]).mean(0)


@torch.no_grad()
def mirrored(network: Network, volumes: Volumes, axes: tuple[int, ...]) -> Level:
    """What a network says of volumes, averaged over all mirrored copies (axis 0 is x)."""
    subsets = _subsets(axes)
    total = network(volumes).float()
    for subset in subsets[1:]:
        dims = [axis + 2 for axis in subset]
        total = total + network(volumes.flip(dims)).float().flip(dims)
    return total / len(subsets) if len(subsets) > 1 else total


def starts(side: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly stepped, the last one flush with the end.

    Args:
        side: Voxels of the volume; at least those of the window.
        window: Voxels of a window.
        overlap: Share of a window that the next one covers again.
    """
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, side - window, step), side - window]


def _slabs(
    network: Network, volume: Float[Tensor, "c x y z"], windows: Windows
) -> Iterator[tuple[slice, Float[Tensor, "k _ y z"]]]:
    """Finished rows of a volume that is at least as large as a window."""
    roi, weight = windows.roi, _weights(windows).to(volume.device)
    xs, ys, zs = (
        starts(side, window, windows.overlap)
        for side, window in zip(volume.shape[1:], roi, strict=True)
    )
    sums = norms = torch.zeros(0)
    for place, x in enumerate(xs):
        corners = [(x, y, z) for y, z in product(ys, zs)]
        for number in range(0, len(corners), windows.at_once):
            here = corners[number : number + windows.at_once]
            crops = torch.stack([volume[(slice(None), *_box(corner, roi))] for corner in here])
            logits = mirrored(network, crops, windows.flip_axes)
            if not norms.numel():
                sums = logits.new_zeros(logits.shape[1], roi[0], *volume.shape[2:])
                norms = logits.new_zeros(roi[0], *volume.shape[2:])
            for (_, y, z), part in zip(here, logits, strict=True):
                inside = _box((0, y, z), roi)
                sums[(slice(None), *inside)].addcmul_(part, weight)
                norms[inside] += weight
        end = xs[place + 1] if place + 1 < len(xs) else x + roi[0]
        done = end - x
        yield slice(x, end), sums[:, :done].div_(norms[:done])
        _drop(sums, 1, done)
        _drop(norms, 0, done)


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All ways to mirror, none first."""
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))


def _drop(buffer: Tensor, axis: int, count: int) -> None:
    """Move all rows to the front by so many, in place, and put zeros behind them."""
    rest = buffer.shape[axis] - count
    for start in range(0, rest, count):
        few = min(count, rest - start)  # a copy must not read what it writes
        buffer.narrow(axis, start, few).copy_(buffer.narrow(axis, start + count, few))
    buffer.narrow(axis, rest, count).zero_()


def _box(corner: tuple[int, int, int], roi: Shape3) -> tuple[slice, slice, slice]:
    x, y, z = (slice(low, low + side) for low, side in zip(corner, roi, strict=True))
    return (x, y, z)


def _weights(windows: Windows) -> Float[Tensor, "x y z"]:
    """How much each voxel of a window counts."""
    if windows.blending == "constant":
        return torch.ones(windows.roi)
    x, y, z = (
        torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (_SIGMA * side)).square())
        for side in windows.roi
    )
    product_ = x[:, None, None] * y[:, None] * z
    return product_.clamp(min=_FAINTEST * float(product_.max()))


def _padded(
    volume: Float[Tensor, "c x y z"], roi: Shape3
) -> tuple[Float[Tensor, "c _ _ _"], Shape3]:
    """The volume in the middle of one that is at least as large as a window; where it begins."""
    missing = [max(0, a - b) for a, b in zip(roi, volume.shape[1:], strict=True)]
    x, y, z = ((gap + 1) // 2 for gap in missing)
    if not any(missing):
        return volume, (0, 0, 0)
    sizes = [side + gap for side, gap in zip(volume.shape[1:], missing, strict=True)]
    padded = volume.amin(dim=(1, 2, 3)).view(-1, 1, 1, 1).repeat(1, *sizes)
    inside = _box((x, y, z), (volume.shape[1], volume.shape[2], volume.shape[3]))
    padded[(slice(None), *inside)] = volume
    return padded, (x, y, z)
