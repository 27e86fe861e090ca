"""MONAI's Swin UNETR blocks, run with less memory traffic; the same numbers to float precision.

Parameters, their names and their values stay MONAI's; only the way through them is ours: attention
by windows (:mod:`voco.nn.window_attention`) whose padding is never made
(:mod:`voco.nn.window_layout`), in the layout that the blocks of convolutions have
(:mod:`voco.backbones.residual_blocks`). ``network(volumes)``, which is MONAI's own way, gives the
same.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voco.backbones.residual_blocks import basic_block
from voco.nn.channels_last import laid_out
from voco.nn.window_attention import Kept, window_attention
from voco.nn.window_layout import Layout, Padding, window_layout
from voco.shapes import Level

Tokens = Float[Tensor, "b x y z e"]
"""Channels last."""


def stages(vit: Any, features: Level) -> list[Level]:  # noqa: ANN401 (MONAI's SwinTransformer)
    """The maps after the embedding of patches and after each of the four stages.

    Args:
        vit: MONAI's ``SwinTransformer``.
        features: Embedded patches.
    """
    maps = [features]
    for number in range(1, 5):
        now = laid_out(maps[-1])
        if vit.use_v2:
            now = basic_block(getattr(vit, f"layers{number}c")[0], now)
        maps.append(_stage(getattr(vit, f"layers{number}")[0], now))
    return maps


def _stage(layer: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's BasicLayer)
    tokens = rearrange(features, "b c x y z -> b x y z c")
    for block in layer.blocks:
        if block.use_checkpoint and torch.is_grad_enabled():
            tokens = _recomputed(block, tokens)
        else:
            tokens = _block(block, tokens)
    if layer.downsample is not None:
        tokens = layer.downsample(tokens)
    return rearrange(tokens, "b x y z c -> b c x y z")


def _recomputed(block: Any, tokens: Tokens) -> Tokens:  # noqa: ANN401 (as below)
    """A block that keeps its input and its attention, and computes all else once more."""
    kept = None if torch.compiler.is_compiling() else Kept()
    out = checkpoint(_block, block, tokens, kept, use_reentrant=False)
    if kept is not None:
        kept.complete = True
    return out


def _block(
    block: Any,  # noqa: ANN401 (MONAI's SwinTransformerBlock)
    tokens: Tokens,
    kept: Kept | None = None,
) -> Tokens:
    tokens = tokens + block.drop_path(attended(block, tokens, kept))
    return tokens + block.forward_part2(tokens)


def attended(block: Any, tokens: Tokens, kept: Kept | None = None) -> Tokens:  # noqa: ANN401
    """Norm and attention within windows, shifted or not; see :class:`Kept` for what is kept."""
    from monai.networks.nets import swin_unetr  # noqa: PLC0415 (takes seconds)

    sides = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
    window, shift = swin_unetr.get_window_size(sides, block.window_size, block.shift_size)
    if block.attn.attn_drop.p and block.training:  # fused attention has no dropout of its own here
        padded = [-(-side // edge) * edge for side, edge in zip(sides, window, strict=True)]
        mask = swin_unetr.compute_mask(padded, window, shift, tokens.device)
        return block.forward_part1(tokens, mask)
    layout = window_layout(sides, tuple(window), tuple(shift), len(tokens), tokens.device)
    rows = _Reordered.apply(block.norm1(tokens).flatten(0, 3), layout.order, layout.back)
    rows = _attention(block.attn, rows, layout, kept)
    return _Reordered.apply(rows, layout.back, layout.order).view(tokens.shape)


def _attention(
    attention: Any,  # noqa: ANN401 (MONAI's WindowAttention)
    rows: Float[Tensor, "_ e"],
    layout: Layout,
    kept: Kept | None,
) -> Float[Tensor, "_ e"]:
    """Attention within windows, of tokens in the order of the layout."""
    heads, places = attention.num_heads, layout.places
    index = attention.relative_position_index[:places, :places].reshape(-1)
    # Head by head: the gradients of one are added up many times faster than those of a row.
    bias = attention.relative_position_bias_table.mT.index_select(1, index)
    bias = rearrange(bias, "h (n m) -> h n m", n=places)
    top = bias.detach().amax(dim=2, keepdim=True)
    share = (bias - top).exp() if any(kind.padding for kind in layout.kinds) else bias
    # Padding is zero, so that the bias of a layer is all that it makes of it.
    # Not by einops, which notes every new type it meets: a compiler breaks off there, where blocks
    # are recomputed.
    padded = attention.qkv.bias.unflatten(0, (3, heads, 1, -1))
    sizes = [kind.windows * len(kind.real) for kind in layout.kinds]
    outs = []
    for part, kind in zip(attention.qkv(rows).split(sizes), layout.kinds, strict=True):
        tokens = rearrange(part, "(w n) (t h d) -> t w h n d", t=3, h=heads, w=kind.windows)
        queries, keys, values = tokens.unbind()
        seen = bias if kind.padding is None else _Picked.apply(bias, kind.real)
        if kind.mask is not None:
            seen = seen + kind.mask
        if kind.padding is not None:
            _, key, value = padded.to(part.dtype).expand(kind.windows, -1, -1, -1, -1).unbind(1)
            keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
            seen = torch.cat([seen, _padding_bias(top, share, kind.real, kind.padding)], dim=2)
        out = window_attention(queries, keys, values, seen, kept)
        outs.append(rearrange(out, "w h n d -> (w n) (h d)"))
    return attention.proj_drop(attention.proj(torch.cat(outs)))


def _padding_bias(
    top: Float[Tensor, "h n 1"],
    share: Float[Tensor, "h n n"],
    real: Int64[Tensor, "r"],
    padding: Padding,
) -> Float[Tensor, "h r 1"]:
    """What is added to the logits of the padding of a window, taken as one token.

    All padded tokens of a window are alike but for their bias, so a query sees them as one whose
    weight is the sum of theirs.

    Args:
        top: The greatest bias of every place.
        share: The exponential of the bias over that of ``top``.
        real: Places of the queries.
        padding: What they see of it.
    """
    sums = (share.index_select(1, real) * padding.seen).sum(dim=2, keepdim=True)
    least = torch.finfo(sums.dtype).tiny
    return top.index_select(1, real) + padding.offset[:, None] + sums.clamp(min=least).log()


class _Picked(torch.autograd.Function):
    """The same rows and columns, none of them twice."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, places: Tensor) -> Tensor:  # noqa: ANN401
        ctx.of, ctx.where = bias.shape, (slice(None), places[:, None], places)
        return bias[ctx.where]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        at_bias = gradients[0].new_zeros(ctx.of)
        at_bias[ctx.where] = gradients[0]
        return at_bias, None


class _Reordered(torch.autograd.Function):
    """Rows in another order; torch's own indexing adds gradients up one by one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:  # noqa: ANN401
        ctx.back = back
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return gradients[0].index_select(0, ctx.back), None, None
