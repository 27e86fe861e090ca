"""Instance norm that keeps its output for the backward pass, not its input.

A convolution is followed by a norm and a leaky ReLU, and the next convolution keeps what comes out.
Torch keeps the norm's input as well, at full resolution the largest tensor of the network. But a
leaky ReLU can be undone, and the gradient of an instance norm needs the normalised values alone:
the output suffices. Values and gradients are those of ``torch.nn.InstanceNorm3d`` (no learnt scale,
no running statistics), ``torch.nn.LeakyReLU`` and a sum, to the precision of the numbers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from voco.nn.channels_last import (
    channels_last,
    moments,
    products,
    standardised,
    standardised_backward,
)
from voco.shapes import Level

_PRECISE = (torch.float32, torch.float64)
"""Types with the digits that undoing a sum needs on any device."""


class InstanceNorm3d(nn.InstanceNorm3d):
    """Torch's layer, also for channels-last features on a processor.

    There it is faster than torch's, keeps the layout, and has the right gradients. Those of torch
    (2.13, on a processor) are wrong for a batch of one volume if the gradient that comes in is
    channels last. With running statistics all but the latter is torch's.
    """

    def forward(self, input: Level) -> Level:  # noqa: A002 (torch's name)
        """Every channel of every volume normalised, times its weight, plus its bias."""
        own = channels_last(input) and not self.track_running_stats
        if own and input.device.type == "cpu":
            return _Affine.apply(input, self.weight, self.bias, self.eps)
        out = super().forward(input)
        if out.requires_grad and not torch.compiler.is_compiling():
            out.register_hook(Tensor.contiguous)
        return out


def use_own_norms(network: nn.Module) -> None:
    """Put :class:`InstanceNorm3d` in place of torch's layers of a network, around their weights."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.InstanceNorm3d and not layer.track_running_stats:
                own = InstanceNorm3d(layer.num_features, layer.eps)
                own.affine, own.weight, own.bias = layer.affine, layer.weight, layer.bias
                parent.add_module(name, own)


def instance_norm(features: Level, epsilon: float) -> Level:
    """Every channel of every volume at zero mean and unit variance.

    Args:
        features: Of any precision.
        epsilon: Added to the variance.

    Raises:
        ValueError: If there is a single voxel, which has no variance.
    """
    _check(features)
    if _fused(features):
        return _Norm.apply(features, epsilon)
    return F.instance_norm(features, eps=epsilon)


def norm_and_leaky_relu(
    features: Level,
    epsilon: float,
    slope: float,
    residual: Level | None = None,
    gain: Float[Tensor, "b c"] | None = None,
) -> Level:
    """``leaky_relu(instance_norm(features) + gain * residual)``.

    Args:
        features: Of any precision and layout, which the result has too. On a GPU below float32, and
            in float16, all is done torch's way.
        epsilon: Added to the variance.
        slope: Of the leaky ReLU below 0; above 0, or the output could not be undone.
        residual: Added between the two; ``None`` adds nothing.
        gain: What it is multiplied by, if not 1; the residual then has one channel.

    Raises:
        ValueError: If there is a single voxel, which has no variance.
    """
    _check(features)
    if _fused(features):
        return _NormAct.apply(features, residual, gain, epsilon, slope)
    out = F.instance_norm(features, eps=epsilon)
    if residual is not None:
        out = out + (residual if gain is None else residual * _spread(gain))
    return F.leaky_relu(out, slope)


def scaled_norm(
    volumes: Float[Tensor, "b 1 x y z"], weights: Float[Tensor, "c"], epsilon: float
) -> tuple[Float[Tensor, "b 1 x y z"], Float[Tensor, "b c"]]:
    """``instance_norm(volumes * weights)`` as one channel and what each channel multiplies it by.

    However many channels a volume of one channel is spread over, all that a norm leaves of them is
    the volume around its mean. So neither they nor their norms need be made and kept.

    Args:
        volumes: Of one channel.
        weights: Of a convolution of 1x1x1 to more channels.
        epsilon: Added to the variance.

    Raises:
        ValueError: If there is a single voxel, which has no variance.
    """
    _check(volumes)
    spread, mean = torch.var_mean(volumes, dim=(2, 3, 4), correction=0, keepdim=True)
    gain = weights * (weights.square() * spread[:, :, 0, 0, 0] + epsilon).rsqrt()
    return volumes - mean, gain


def _spread(gain: Float[Tensor, "b c"]) -> Float[Tensor, "b c 1 1 1"]:
    return gain[:, :, None, None, None]


def _fused(features: Level) -> bool:
    """Whether these are normalised by the functions below."""
    processor = features.device.type == "cpu"
    return features.dtype in _PRECISE or (processor and features.dtype == torch.bfloat16)


def _check(features: Level) -> None:
    if features[0, 0].numel() == 1:
        raise ValueError(f"a norm needs more than 1 spatial element, got {tuple(features.shape)}.")


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        mean, variance = moments(features)
        ctx.save_for_backward(features, mean, (variance + epsilon).rsqrt(), weight)
        return standardised(features, mean, variance, epsilon, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        features, mean, scale, weight = ctx.saved_tensors
        each = torch.ones_like(scale) if weight is None else weight.expand_as(scale).contiguous()
        found = standardised_backward(gradients[0], features, mean, scale, each)
        if weight is None:
            return found[0], None, None, None
        return found[0], found[1].sum(dim=0), found[2].sum(dim=0), None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401
        normed, scale = _normed(features, epsilon)
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        return _norm_gradient(gradients[0], *ctx.saved_tensors), None


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        residual: Tensor | None,
        gain: Tensor | None,
        epsilon: float,
        slope: float,
    ) -> Tensor:
        out, scale = _normed(features, epsilon)
        if residual is not None:
            _add(out, residual, gain)
        F.leaky_relu_(out, slope)
        ctx.slope = slope
        ctx.save_for_backward(out, scale, residual, gain)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        out, scale, residual, gain = ctx.saved_tensors
        inner = torch.ops.aten.leaky_relu_backward(gradients[0], out, ctx.slope, True)  # noqa: FBT003
        normed = F.leaky_relu(out, 1 / ctx.slope)
        at_residual, at_gain = None, None
        if residual is not None:
            at_residual = inner
            _add(normed, residual, gain, sign=-1)
        if residual is not None and gain is not None:
            at_gain = products(inner, residual.to(inner.dtype)).to(gain.dtype)
            at_residual = None
            if ctx.needs_input_grad[1]:
                at_one = gain[:, None].to(inner.dtype) @ inner.flatten(2)
                at_residual = at_one.view(residual.shape).to(residual.dtype)
        return _norm_gradient(inner, normed, scale), at_residual, at_gain, None, None


def _add(to: Tensor, residual: Tensor, gain: Tensor | None, *, sign: int = 1) -> None:
    if gain is None:
        to.add_(residual, alpha=sign)
    elif channels_last(to):
        # The product of two vectors is what every volume gets: many times faster than broadcasting.
        voxels = to.movedim(1, -1).flatten(1, 3)
        one, each = residual.flatten(2).mT.to(to.dtype), gain[:, None].to(to.dtype)
        torch.baddbmm(voxels, one, each, alpha=sign, out=voxels)
    else:
        to.addcmul_(residual, _spread(gain), value=sign)


def _normed(features: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Normalised features, and one over the standard deviation of each channel."""
    if channels_last(features):
        mean, variance = moments(features)
        return standardised(features, mean, variance, epsilon), (variance + epsilon).rsqrt()
    rows, voxels = features.shape[0] * features.shape[1], features[0, 0].numel()
    # A group norm of groups of one channel: the faster kernel of the two on a CPU.
    flat = features.contiguous().view(1, rows, voxels)
    out, _, scale = torch.native_group_norm(flat, None, None, 1, rows, voxels, rows, epsilon)
    return out.view(features.shape), scale


def _norm_gradient(gradient: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """The gradient at the norm's input, from its output."""
    # The output has mean 0 and deviation 1. Both kernels multiply by learnt weights at no cost:
    # the scale takes their place.
    if channels_last(normed):
        mean, deviation = torch.zeros_like(scale), torch.ones_like(scale)
        return standardised_backward(gradient, normed, mean, deviation, weight=scale)[0]
    rows, voxels = scale.numel(), normed[0, 0].numel()
    at_input, _, _ = torch.ops.aten.native_group_norm_backward(
        gradient.contiguous().view(1, rows, voxels),
        normed.view(1, rows, voxels),
        torch.zeros_like(scale),
        torch.ones_like(scale),
        scale.view(rows),
        1,
        rows,
        voxels,
        rows,
        [True, False, False],
    )
    return at_input.view(normed.shape)
