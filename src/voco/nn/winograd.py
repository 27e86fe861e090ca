"""Convolutions of 3x3x3 with half of the products: Winograd's minimal filtering along one axis.

Four neighbouring outputs of a filter with three taps need six products, not twelve (S. Winograd,
*Arithmetic Complexity of Computations*, 1980; for networks: A. Lavin and S. Gray, CVPR 2016): six
inputs are mixed, six times a mixed weight is applied, and the six results are mixed to four. Along
the first axis of a volume, an input is a plane, and a weight is a convolution of 3x3 within it.

The sums are the same, in another order: rounding grows from 6e-7 to 12e-7 of the values in float32.
Few planes are worked off at a time, which stay in the processor's cache; gradients mix them anew,
so nothing is kept but what a convolution keeps.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from voco.shapes import Level

OUT_PLANES = 4
"""Planes that come out of a tile; a volume holds a multiple of them."""

_IN = OUT_PLANES + 2
"""Planes that it sees, of which it has as many mixtures."""

_MIXED_INPUTS = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
"""Inputs and weights are taken as polynomials, at 0, 1, -1, 2, -2 and infinity."""

_MIXED_WEIGHTS = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)

_MIXED_RESULTS = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64,
)

_SECOND = 1
"""The one of six that all four outputs have once: what is added to it, a bias, is added to them."""

_AT_ONCE = 1_000_000
"""Mixed inputs that a thread has at hand at a time."""


class _Tile(NamedTuple):
    """Four planes of a volume.

    Attributes:
        volume: Which of the batch.
        planes: The planes that come out.
        seen: Those that are seen; the ends of a volume see none beyond.
        columns: Which of the six these are.
        shared: How many of them, its first, the tile before sees too.
    """

    volume: int
    planes: slice
    seen: slice
    columns: slice
    shared: int


def winograd(
    features: Level, weight: Float[Tensor, "o c 3 3 3"], bias: Float[Tensor, "o"] | None
) -> Level:
    """``conv3d(features, weight, bias, padding=1)``, channels last.

    Args:
        features: Of float32 or float64, with a multiple of four planes along x; others than
            channels last are laid out anew.
        weight: Of the same type.
        bias: Of the same type.

    Raises:
        ValueError: If the planes along x are no multiple of four.
    """
    if features.shape[2] % OUT_PLANES:
        raise ValueError(
            f"products are saved {OUT_PLANES} planes at a time, got {features.shape[2]} along x; "
            "take torch's convolution."
        )
    return _Winograd.apply(features, weight, bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        planes = features.movedim(1, -1).contiguous()
        ctx.save_for_backward(planes, weight)
        mix_inputs, mix_results = _MIXED_INPUTS.to(planes), _MIXED_RESULTS.to(planes)
        weights = _six(weight)
        out = planes.new_empty(*planes.shape[:-1], len(weight))
        for tiles in _groups(planes):
            mixed = _mixtures(
                [(planes[tile.volume, tile.seen], mix_inputs[:, tile.columns]) for tile in tiles]
            )
            results = out.new_empty(_IN, len(tiles), *out.shape[2:])
            for number, (each, own) in enumerate(zip(mixed, weights, strict=True)):
                added = bias if number == _SECOND else None
                result = F.conv2d(each.movedim(-1, 1), own, added, padding=1)
                results[number] = result.movedim(1, -1)
            for number, tile in enumerate(tiles):
                made = out[tile.volume, tile.planes].flatten(1)
                torch.mm(mix_results, results[:, number].flatten(1), out=made)
        return out.movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        planes, weight = ctx.saved_tensors
        for_features, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradients[0].movedim(1, -1).contiguous()
        weights = _six(weight)
        mix_inputs, mix_results = _MIXED_INPUTS.to(planes), _MIXED_RESULTS.to(planes)
        at_planes, at_weights = torch.empty_like(planes), torch.zeros_like(weights)
        for tiles in _groups(planes):
            mixed = _mixtures(
                [(planes[tile.volume, tile.seen], mix_inputs[:, tile.columns]) for tile in tiles]
            )
            at_results = _mixtures(
                [(gradient[tile.volume, tile.planes], mix_results.mT) for tile in tiles]
            )
            for number, own in enumerate(weights):
                at_input, at_own = _plane_gradients(
                    at_results[number], mixed[number], own, (for_features, for_weight)
                )
                if at_own is not None:
                    at_weights[number] += at_own
                if at_input is not None:
                    mixed[number] = at_input.movedim(1, -1)  # what was there is done with
            if for_features:
                _put_inputs(at_planes, tiles, mix_inputs, mixed)
        mix = _MIXED_WEIGHTS.to(planes)
        return (
            at_planes.movedim(-1, 1) if for_features else None,
            torch.einsum("kd,kocyz->ocdyz", mix, at_weights) if for_weight else None,
            gradient.sum(dim=(0, 1, 2, 3)) if for_bias else None,
        )


def _plane_gradients(
    gradient: Float[Tensor, "t y z o"],
    planes: Float[Tensor, "t y z c"],
    weight: Float[Tensor, "o c 3 3"],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution of planes, at the planes (channels first) and at its weight."""
    one, none = [1, 1], [0, 0]
    at_planes, at_weight, _ = torch.ops.aten.convolution_backward(
        *(gradient.movedim(-1, 1), planes.movedim(-1, 1), weight, None),
        *(one, one, one),  # stride, padding, dilation
        *(False, none, 1),  # not transposed, and one group
        [*wanted, False],
    )
    return at_planes, at_weight


def _six(weight: Float[Tensor, "o c 3 3 3"]) -> Float[Tensor, "6 o c 3 3"]:
    """The six weights of planes."""
    return torch.einsum("kd,ocdyz->kocyz", _MIXED_WEIGHTS.to(weight), weight).contiguous()


def _groups(planes: Float[Tensor, "b x y z c"]) -> Iterator[list[_Tile]]:
    """All tiles of a batch, as many at a time as the cache holds."""
    tiles = [
        _Tile(
            volume,
            slice(first, first + OUT_PLANES),
            slice(max(first - 1, 0), min(first + OUT_PLANES + 1, planes.shape[1])),
            slice(int(first == 0), _IN - int(first + OUT_PLANES == planes.shape[1])),
            2 if first else 0,
        )
        for volume in range(len(planes))
        for first in range(0, planes.shape[1], OUT_PLANES)
    ]
    room = _AT_ONCE * torch.get_num_threads()
    count = max(1, room // (_IN * planes[0, 0].numel()))
    for start in range(0, len(tiles), count):
        yield tiles[start : start + count]


def _mixtures(
    pieces: list[tuple[Float[Tensor, "_ y z c"], Float[Tensor, "6 _"]]],
) -> Float[Tensor, "6 t y z c"]:
    """Six mixtures of the planes of each piece, by its numbers."""
    mixed = pieces[0][0].new_empty(_IN, len(pieces), *pieces[0][0].shape[1:])
    for number, (planes, mix) in enumerate(pieces):
        torch.mm(mix, planes.flatten(1), out=mixed[:, number].flatten(1))
    return mixed


def _put_inputs(
    to: Float[Tensor, "b x y z c"],
    tiles: list[_Tile],
    mix: Float[Tensor, "6 6"],
    mixed: Float[Tensor, "6 t y z c"],
) -> None:
    """Write what mixed inputs give to the planes they were made of: gradients, at both."""
    for number, tile in enumerate(tiles):
        given, back = mixed[:, number].flatten(1), mix[:, tile.columns].mT
        planes = to[tile.volume, tile.seen].flatten(1)
        planes[: tile.shared].addmm_(back[: tile.shared], given)
        torch.mm(back[tile.shared :], given, out=planes[tile.shared :])
