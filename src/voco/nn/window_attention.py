"""Attention within many small windows that share a position bias.

The weights of a Swin window of 7x7x7 tokens are 343x343 numbers per head: hundreds of megabytes per
crop, which are written, read and kept for the backward pass where attention is spelled out. Here
the forward pass is torch's fused kernel, and the backward pass computes the weights anew, of one
window at a time, in the processor's cache. The bias is trained, which torch's fused kernel
for CPUs cannot do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_NOTHING = -60.0
"""Logarithm of a weight that adds nothing to a sum of float64 numbers near 1. Smaller weights are
computed as this one, since a processor takes many times longer over numbers next to zero."""

_MANY = 5
"""So many windows are faster summed up than added one by one."""

_AT_ONCE = 400_000
"""Weights that a thread has at hand at a time: in float32, they and their gradients stay in its
cache of 4 MB."""


def window_attention(
    queries: Float[Tensor, "w h n d"],
    keys: Float[Tensor, "w h m d"],
    values: Float[Tensor, "w h m d"],
    bias: Float[Tensor, "h n m"],
) -> Float[Tensor, "w h n d"]:
    """``softmax(queries @ keys.mT / sqrt(d) + bias) @ values``, for each window and head.

    Args:
        queries: Of ``w`` windows and ``h`` heads, ``n`` tokens each.
        keys: Of the ``m`` tokens that these see.
        values: Of the same.
        bias: Added to the products, in every window alike; gets a gradient.
    """
    plain = queries.is_cuda or queries.dtype not in (torch.float32, torch.float64)
    if plain or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias.to(queries.dtype)[None]
        )
    return _WindowAttention.apply(queries, keys, values, bias)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
    ) -> Tensor:
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, attn_mask=bias[None]
        )
        ctx.save_for_backward(queries, keys, values, bias, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        queries, keys, values, bias, out, sums = ctx.saved_tensors
        scale = queries.shape[-1] ** -0.5
        shift = (gradient * out).sum(dim=-1, keepdim=True)
        # Two subtractions ride along in the products, as one more column of each factor.
        ones = torch.ones_like(keys[..., :1])
        keys_1, values_1 = torch.cat([keys, ones], dim=-1), torch.cat([values, ones], dim=-1)
        queries = queries * scale
        queries_1 = torch.cat([queries, -sums.view_as(shift)], dim=-1)
        gradient_1 = torch.cat([gradient, -shift], dim=-1)
        at_queries, at_keys, at_values = (
            part.new_empty(part.shape) for part in (queries, keys, values)
        )
        at_bias = torch.zeros_like(bias)
        step = max(1, _AT_ONCE * torch.get_num_threads() // bias.numel())
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            logs = (queries_1[some] @ keys_1[some].mT).add_(bias)
            weights = logs.clamp_(min=_NOTHING).exp_()
            torch.matmul(weights.mT, gradient[some], out=at_values[some])
            at_logits = (gradient_1[some] @ values_1[some].mT).mul_(weights)
            torch.matmul(at_logits, keys[some], out=at_queries[some])
            torch.matmul(at_logits.mT, queries[some], out=at_keys[some])
            for window in at_logits if len(at_logits) < _MANY else [at_logits.sum(dim=0)]:
                at_bias += window
        return at_queries.mul_(scale), at_keys, at_values, at_bias
