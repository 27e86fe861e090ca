"""MONAI's Swin UNETR blocks, run with less memory traffic; the same numbers to float precision.

Parameters, their names and their values stay MONAI's; only the way through them is ours: attention
by windows (:mod:`voco.nn.window_attention`), norms that keep their outputs alone
(:mod:`voco.nn.instance_norm`), and shift masks that are made once per size, not in every pass.
``network(volumes)``, which is MONAI's own way, gives the same.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voco.nn.instance_norm import instance_norm, norm_and_leaky_relu
from voco.nn.window_attention import window_attention
from voco.shapes import Level, Shape3

Tokens = Float[Tensor, "b x y z e"]
"""Channels last."""


class Masked(NamedTuple):
    """Windows of a volume whose tokens may see the same of each other."""

    windows: Int64[Tensor, "_"]
    mask: Float[Tensor, "n n"]


def stages(vit: Any, features: Level) -> list[Level]:  # noqa: ANN401 (MONAI's SwinTransformer)
    """The maps after the embedding of patches and after each of the four stages.

    Args:
        vit: MONAI's ``SwinTransformer``.
        features: Embedded patches.
    """
    maps = [features]
    for number in range(1, 5):
        now = maps[-1].contiguous()
        if vit.use_v2:
            now = basic_block(getattr(vit, f"layers{number}c")[0], now)
        maps.append(_stage(getattr(vit, f"layers{number}")[0], now.contiguous()))
    return maps


def basic_block(block: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's UnetrBasicBlock)
    """Two convolutions with norms and a way around them."""
    return _residual(block.layer, features)


def up_block(block: Any, features: Level, skip: Level) -> Level:  # noqa: ANN401 (UnetrUpBlock)
    """A transposed convolution, joined with the skip connection, and a residual block."""
    return _residual(block.conv_block, torch.cat([block.transp_conv(features), skip], dim=1))


def _residual(block: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's UnetResBlock)
    if not (_plain_norm(block.norm1) and isinstance(block.lrelu, nn.LeakyReLU)):
        return block(features)
    epsilon, slope = block.norm1.eps, block.lrelu.negative_slope
    inner = norm_and_leaky_relu(block.conv1(features), epsilon, slope)
    around = features
    if block.downsample:
        around = instance_norm(block.conv3(features), epsilon)
    return norm_and_leaky_relu(block.conv2(inner), epsilon, slope, around)


def _plain_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.InstanceNorm3d) and not norm.affine and not norm.track_running_stats


def _stage(layer: Any, features: Level) -> Level:  # noqa: ANN401 (MONAI's BasicLayer)
    tokens = rearrange(features, "b c x y z -> b x y z c")
    for block in layer.blocks:
        if block.use_checkpoint and torch.is_grad_enabled():
            tokens = checkpoint(_block, block, tokens, use_reentrant=False)
        else:
            tokens = _block(block, tokens)
    if layer.downsample is not None:
        tokens = layer.downsample(tokens)
    return rearrange(tokens, "b x y z c -> b c x y z")


def _block(block: Any, tokens: Tokens) -> Tokens:  # noqa: ANN401 (MONAI's SwinTransformerBlock)
    tokens = tokens + block.drop_path(_attended(block, tokens))
    return tokens + block.forward_part2(tokens)


def _attended(block: Any, tokens: Tokens) -> Tokens:  # noqa: ANN401
    """Norm and attention within windows, shifted or not."""
    from monai.networks.nets import swin_unetr  # noqa: PLC0415 (takes seconds)

    sides = tokens.shape[1:4]
    window, shift = swin_unetr.get_window_size(sides, block.window_size, block.shift_size)
    padded = tuple(-(-side // edge) * edge for side, edge in zip(sides, window, strict=True))
    if block.attn.attn_drop.p and block.training:  # fused attention has no dropout of its own here
        mask = swin_unetr.compute_mask(padded, window, shift, tokens.device)
        return block.forward_part1(tokens, mask)
    after = [part for side, to in zip(sides, padded, strict=True) for part in (to - side, 0)]
    now = F.pad(block.norm1(tokens), (0, 0, *reversed(after)))
    shifted = any(shift)
    if shifted:
        now = now.roll([-by for by in shift], dims=(1, 2, 3))
    windows = swin_unetr.window_partition(now, window)
    if shifted:
        windows = _shifted_attention(block.attn, windows, _kinds(padded, window, shift))
    else:
        (windows,) = _attention(block.attn, windows, (len(windows),), (None,))
    now = swin_unetr.window_reverse(windows, window, [len(tokens), *padded])
    if shifted:
        now = now.roll(shift, dims=(1, 2, 3))
    return now[:, : sides[0], : sides[1], : sides[2]]


def _shifted_attention(
    attention: Any,  # noqa: ANN401 (MONAI's WindowAttention)
    windows: Float[Tensor, "w n e"],
    kinds: tuple[Masked, ...],
) -> Float[Tensor, "w n e"]:
    """Attention where some windows have a mask.

    Windows of one kind share their mask, which is then a part of the bias: eight small sums in
    place of one for every window.
    """
    order = torch.cat([kind.windows for kind in kinds])
    back = order.argsort()
    order, back = order.to(windows.device), back.to(windows.device)
    sorted_ = _Reordered.apply(
        rearrange(windows, "(b w) n e -> w b n e", w=len(order)), order, back
    )
    volumes = sorted_.shape[1]
    counts = tuple(len(kind.windows) * volumes for kind in kinds)
    masks = tuple(kind.mask for kind in kinds)
    parts = _attention(attention, sorted_.flatten(0, 1), counts, masks)
    joined = torch.cat(parts).unflatten(0, (-1, volumes))
    return rearrange(_Reordered.apply(joined, back, order), "w b n e -> (b w) n e")


def _attention(
    attention: Any,  # noqa: ANN401 (MONAI's WindowAttention)
    windows: Float[Tensor, "w n e"],
    counts: tuple[int, ...],
    masks: tuple[Tensor | None, ...],
) -> list[Float[Tensor, "_ n e"]]:
    """Attention within windows, of which so many have one mask, so many the next."""
    heads, tokens = attention.num_heads, windows.shape[1]
    index = attention.relative_position_index[:tokens, :tokens].reshape(-1)
    bias = F.embedding(index, attention.relative_position_bias_table)
    bias = rearrange(bias, "(n m) h -> h n m", n=tokens).contiguous()
    outs = []
    for part, mask in zip(attention.qkv(windows).split(counts), masks, strict=True):
        queries, keys, values = rearrange(part, "w n (t h d) -> t w h n d", t=3, h=heads).unbind()
        masked = bias if mask is None else bias + mask.to(bias.device)
        out = window_attention(queries, keys, values, masked)
        out = attention.proj(rearrange(out, "w h n d -> w n (h d)"))
        outs.append(attention.proj_drop(out))
    return outs


class _Reordered(torch.autograd.Function):
    """Rows in another order; torch's own indexing adds gradients up one by one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:  # noqa: ANN401
        ctx.back = back
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return gradients[0].index_select(0, ctx.back), None, None


@lru_cache(maxsize=64)
def _kinds(sides: Shape3, window: Shape3, shift: Shape3) -> tuple[Masked, ...]:
    """The kinds of windows of a shifted grid: those at its end join tokens from both ends."""
    from monai.networks.nets import swin_unetr  # noqa: PLC0415 (takes seconds)

    masks = swin_unetr.compute_mask(sides, window, shift, torch.device("cpu"))
    # A window is known by which of its tokens the first token of each region may see.
    _, kinds = masks.flatten(1).unique(dim=0, return_inverse=True)
    chosen = [(kinds == kind).nonzero()[:, 0] for kind in range(int(kinds.max()) + 1)]
    return tuple(Masked(windows, masks[windows[0]].clone()) for windows in chosen)
