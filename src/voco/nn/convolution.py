"""Convolutions where torch's are slow or wrong on a processor.

Most of a network's arithmetic is convolutions of 3x3x3 at fine levels. Half of their products can
be saved (:mod:`voco.nn.winograd`).

At the coarsest level of a network a crop is a few voxels with hundreds of channels. Torch's
convolutions on a processor are made for many voxels: two such layers took a fifteenth of a
training step of Swin UNETR (48 channels) for less than a hundredth of its arithmetic. Gathered
neighbourhoods times the weights as they lie in memory are the same sums, several times as fast.

In bfloat16, where a side has no more voxels than the padding of both its ends adds, the gradients
of weights are whatever lay in memory, on processors that have arithmetic for bfloat16 but no tiles
(seen on an AMD EPYC, torch 2.13 with oneDNN 3.12; once it wrote beyond its memory). So these are
computed in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from voco.nn.channels_last import channels_last
from voco.nn.winograd import OUT_PLANES, winograd
from voco.shapes import Level, Shape3

_PLACES = 64
"""Most places of a batch, all volumes together, that are faster so."""

_WEIGHTS = 1 << 18
"""Fewest weights that are; with fewer, both ways take a thousandth of a second or two."""

_PLANE = 16 * 16
"""Fewest voxels of a plane for which half of the products are saved; with fewer, nothing is won."""

_PRODUCTS = 1 << 21
"""Fewest pairs of an input's and an output's channel in a plane, all voxels together: with fewer,
mixing the planes takes what it saves."""

_PRECISE = ({torch.float32}, {torch.float64})
"""Types, each of features, weights and result alike, that have the digits for it."""


class Conv3d(nn.Conv3d):
    """Torch's layer; on a processor by the way that is faster.

    Sums of products are then of float32 at least, also where the result has fewer digits; so they
    are where sides are short.
    """

    def forward(self, input: Level) -> Level:  # noqa: A002 (torch's name)
        """The convolution of features, channels last if they are."""
        if self._few_places(input):
            stride, padding = _three(self.stride), _three(self.padding)
            return _Product.apply(
                input, self.weight, self.bias, stride, padding, _result_type(input)
            )
        if self._saves_products(input):
            return winograd(input, self.weight, self.bias)
        if input.device.type == "cpu" and self._short(input):
            return self._precise(input).to(_result_type(input))
        return super().forward(input)

    def _precise(self, features: Level) -> Level:
        """The convolution in float32 at least."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(features.to(dtype), self.weight.to(dtype), bias)

    def _short(self, features: Level) -> bool:
        """Whether an axis has no more voxels than the padding of both its ends."""
        if features.ndim != self.weight.ndim:
            return False  # what does not fit, torch says
        if isinstance(self.padding, str):
            added = [side - 1 if self.padding == "same" else 0 for side in self.kernel_size]
        else:
            added = [2 * edge for edge in self.padding]
        sides = features.shape[2:]
        return any(side <= more for side, more in zip(sides, added, strict=True) if more)

    def _saves_products(self, features: Level) -> bool:
        """Whether half of the products can be saved, with all digits, and it is worth it."""
        if not self._simple(features) or torch.compiler.is_compiling():
            return False
        if {features.dtype, self.weight.dtype, _result_type(features)} not in _PRECISE:
            return False
        if self.kernel_size != (3, 3, 3) or self.padding != (1, 1, 1) or self.stride != (1, 1, 1):
            return False
        plane, pairs = features[0, 0, 0].numel(), self.in_channels * self.out_channels
        enough = plane >= _PLANE and plane * pairs >= _PRODUCTS
        return enough and features.shape[2] % OUT_PLANES == 0 and channels_last(features)

    def _simple(self, features: Level) -> bool:
        """Whether features on a processor fit a convolution without dilation, groups and such."""
        simple = self.padding_mode == "zeros" and self.groups == 1 and set(self.dilation) == {1}
        fits = features.ndim == self.weight.ndim and features.shape[1] == self.in_channels
        return simple and fits and features.device.type == "cpu"  # what does not fit, torch says

    def _few_places(self, features: Level) -> bool:
        """Whether it is a product of matrices: many weights, and few places."""
        if not self._simple(features) or self.weight.numel() < _WEIGHTS:
            return False
        if isinstance(self.padding, str):
            return False
        places = len(features)
        for axis, side in enumerate(features.shape[2:]):
            room = side + 2 * self.padding[axis] - self.kernel_size[axis]
            if room < 0:
                return False
            places *= room // self.stride[axis] + 1
        return places <= _PLACES and not torch.compiler.is_compiling()


def use_own_convolutions(network: nn.Module) -> None:
    """Make every convolution of torch's in a network a :class:`Conv3d`, with all that it has."""
    for layer in network.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = Conv3d  # the same layer: only the way through it differs


def _result_type(features: Tensor) -> torch.dtype:
    """What a convolution on a processor gives; autocast leaves float64 to itself."""
    mixed = torch.is_autocast_enabled("cpu") and features.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if mixed else features.dtype


def _three(numbers: Any) -> Shape3:  # noqa: ANN401 (torch says tuple or string)
    x, y, z = numbers
    return (x, y, z)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Shape3,
        padding: Shape3,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast("cpu", enabled=False):
            rows, places = _neighbourhoods(features, weight, stride, padding)
            out = rows @ weight.to(rows.dtype).flatten(1).mT
            if bias is not None:
                out += bias
            return out.to(dtype).view(*places, len(weight)).movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        at_features = at_weight = at_bias = None
        with torch.autocast("cpu", enabled=False):
            rows, places = _neighbourhoods(features, weight, ctx.stride, ctx.padding)
            gradient = gradients[0].movedim(1, -1).reshape(len(rows), -1).to(rows.dtype)
            if ctx.needs_input_grad[0]:
                parts = (gradient @ weight.to(rows.dtype).flatten(1)).view(
                    *places, *weight.shape[1:]
                )
                at_features = _joined(parts, features.shape, ctx.stride, ctx.padding)
                at_features = at_features.to(features.dtype)
            if ctx.needs_input_grad[1]:
                at_weight = (gradient.mT @ rows).view(weight.shape).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                at_bias = gradient.sum(dim=0).to(weight.dtype)
        return at_features, at_weight, at_bias, None, None, None


def _neighbourhoods(
    features: Level, weight: Tensor, stride: Shape3, padding: Shape3
) -> tuple[Float[Tensor, "n k"], torch.Size]:
    """What each place sees, in the order of a weight's numbers; and the places of the batch."""
    precise = torch.promote_types(features.dtype, torch.float32)
    around = [edge for side in reversed(padding) for edge in (side, side)]
    seen = F.pad(features.movedim(1, -1), [0, 0, *around])
    for axis, step in enumerate(stride):
        seen = seen.unfold(axis + 1, weight.shape[axis + 2], step)
    places = seen.shape[:4]
    return seen.to(precise).reshape(places.numel(), -1), places


def _joined(
    parts: Float[Tensor, "b x y z c i j k"], shape: torch.Size, stride: Shape3, padding: Shape3
) -> Level:
    """What the neighbourhoods of all places add up to, at each voxel, channels last."""
    padded = [side + 2 * edge for side, edge in zip(shape[2:], padding, strict=True)]
    out = parts.new_zeros(shape[0], *padded, shape[1])
    places, kernel = parts.shape[1:4], parts.shape[5:]
    for number, part in enumerate(parts.flatten(5).unbind(-1)):
        first = (
            number // (kernel[1] * kernel[2]),
            number // kernel[2] % kernel[1],
            number % kernel[2],
        )
        where = (
            slice(start, start + step * (count - 1) + 1, step)
            for start, step, count in zip(first, stride, places, strict=True)
        )
        out[(slice(None), *where)] += part
    real = (slice(edge, edge + side) for edge, side in zip(padding, shape[2:], strict=True))
    return out[(slice(None), *real)].movedim(-1, 1)
