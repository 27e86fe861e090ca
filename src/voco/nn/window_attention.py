"""Attention within many small windows that share a position bias.

The weights of a Swin window of 7x7x7 tokens are 343x343 numbers per head: hundreds of megabytes per
crop, which are written, read and kept for the backward pass where attention is spelled out. Here
the forward pass is torch's fused kernel, and the backward pass computes the weights anew, of one
window at a time, in the processor's cache. The bias is trained, which torch's fused kernel
for CPUs cannot do.
"""

from collections import deque
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


class Kept:
    """What attention gave, for a block that is computed once more in the backward pass.

    Of all that such a block computes it takes the most time for the memory that keeping it takes.

    Attributes:
        complete: Set once the block was computed; from then on what it gave is given again, in the
            same order, as often as the block is computed.
    """

    def __init__(self) -> None:
        self.complete = False
        self._found: deque[tuple[Tensor, Tensor]] = deque()

    def add(self, out: Tensor, sums: Tensor) -> None:
        """Keep what attention gave and the logarithms of the sums of its weights."""
        self._found.append((out.detach(), sums))  # not the graph, which holds this

    def again(self) -> tuple[Tensor, Tensor]:
        """The next of them."""
        out, sums = self._found.popleft()
        self._found.append((out, sums))
        return out.detach(), sums


def window_attention(
    queries: Float[Tensor, "w h n d"],
    keys: Float[Tensor, "w h m d"],
    values: Float[Tensor, "w h m d"],
    bias: Float[Tensor, "h n m"],
    kept: Kept | None = None,
) -> Float[Tensor, "w h n d"]:
    """``softmax(queries @ keys.mT / sqrt(d) + bias) @ values``, for each window and head.

    Args:
        queries: Of ``w`` windows and ``h`` heads, ``n`` tokens each.
        keys: Of the ``m`` tokens that these see.
        values: Of the same.
        bias: Added to the products, in every window alike; gets a gradient.
        kept: What is asked before computing, and told; torch's own way asks nobody.
    """
    if queries.is_cuda or queries.dtype == torch.float16 or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias.to(queries.dtype)[None]
        )
    return _WindowAttention.apply(queries, keys, values, bias, kept)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        kept: Kept | None,
    ) -> Tensor:
        if kept is not None and kept.complete:
            out, sums = kept.again()
        else:
            out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries, keys, values, attn_mask=bias[None]
            )
            if kept is not None:
                kept.add(out, sums)
        ctx.save_for_backward(queries, keys, values, bias, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        # Numbers of bf16 become float32 here: a logarithm of a sum of weights that has 8 bits would
        # make all of them wrong by a hundredth.
        with torch.autocast("cpu", enabled=False):
            return *_gradients(gradients[0], *ctx.saved_tensors), None


def _gradients(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients at queries, keys, values and bias.

    Few windows at a time, whose weights stay in the cache; all around them is done once, since
    many small operators would cost as much as the products.
    """
    precise = torch.promote_types(queries.dtype, torch.float32)
    given = (queries.dtype, keys.dtype, values.dtype, bias.dtype)
    shape, seen, width = queries.shape, keys.shape, queries.shape[-1]
    scale = width**-0.5
    queries, keys, values, gradient, out = (
        part.to(precise) for part in (queries, keys, values, gradient, out)
    )
    # Two subtractions ride along in the products, as one more column of each factor.
    ones = keys.new_ones(1).expand(*seen[:-1], 1)
    shift = (gradient * out).sum(dim=-1, keepdim=True)
    queries, keys, values, gradient = (
        torch.cat(pair, dim=-1).flatten(0, 1)
        for pair in (
            (queries * scale, -sums[..., None]),
            (keys, ones),
            (values, ones),
            (gradient, -shift),
        )
    )
    at_queries, at_keys, at_values = (
        part.new_empty(*part.shape[:2], width) for part in (queries, keys, values)
    )
    at_bias = bias.new_zeros(bias.shape, dtype=precise)
    step = max(1, min(shape[0], _AT_ONCE * torch.get_num_threads() // bias.numel()))
    space = queries.new_empty(2, step * len(bias), *bias.shape[1:])
    for start in range(0, len(queries), space.shape[1]):
        some = slice(start, start + space.shape[1])
        query, key, value, of_out = (part[some] for part in (queries, keys, values, gradient))
        weights, at_logits = space[:, : len(query)]
        torch.bmm(query, key.mT, out=weights)
        weights.view(-1, *bias.shape).add_(bias)
        weights.clamp_(min=_NOTHING).exp_()
        torch.bmm(weights.mT, of_out[..., :width], out=at_values[some])
        torch.bmm(of_out, value.mT, out=at_logits)
        at_logits.mul_(weights)
        torch.bmm(at_logits, key[..., :width], out=at_queries[some])
        torch.bmm(at_logits.mT, query[..., :width], out=at_keys[some])
        each = at_logits.view(-1, *bias.shape)
        for window in each if len(each) < _MANY else [each.sum(dim=0)]:
            at_bias += window
    at_queries *= scale
    return (
        at_queries.view(shape).to(given[0]),
        at_keys.view(seen).to(given[1]),
        at_values.view(seen).to(given[2]),
        at_bias.to(given[3]),
    )
