"""Settings of the backbone that tensors are of, and tensors made to fit other settings."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from voco.backbone import Backbone, TokenBackbone
from voco.backbones.genesis_unet import PUBLISHED_FEATURES
from voco.nn.cubes import cube_grid
from voco.nn.positions import resampled_code
from voco.shapes import Shape3
from voco.weights.foreign import cube_root

_PATCH = 16
_HEAD_WIDTH = 64
"""Numbers in an attention head of a ViT, in all sizes that are common. Heads leave no trace in the
tensors, so this is our choice where a file does not say."""


def settings_in(tensors: Mapping[str, Tensor], backbone: str) -> dict[str, Any]:
    """Settings that the shapes and names of a backbone's tensors tell.

    Args:
        tensors: Under the names of the backbone's network; not necessarily all of them.
        backbone: Its name.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    told = {
        "swin_unetr": _swin_unetr,
        "unetr": _unetr,
        "unet": _unet,
        "resenc_unet": _resenc_unet,
        "genesis_unet": _genesis_unet,
    }[backbone]
    return dict(told(shapes))


Shapes = dict[str, tuple[int, ...]]
Told = Iterator[tuple[str, Any]]


def _swin_unetr(shapes: Shapes) -> Told:
    if patches := shapes.get("swinViT.patch_embed.proj.weight"):
        yield "feature_size", patches[0]
        yield "in_channels", patches[1]
    yield "use_v2", any(name.startswith("swinViT.layers1c.") for name in shapes)
    stages = [rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\." for stage in (1, 2, 3, 4)]
    depths = [_count(shapes, stage) for stage in stages]
    if all(depths):
        yield "depths", tuple(depths)
    table = "swinViT.layers{}.0.blocks.0.attn.relative_position_bias_table"
    heads = [shapes.get(table.format(stage), (0, 0))[1] for stage in (1, 2, 3, 4)]
    if all(heads):
        yield "num_heads", tuple(heads)


def _unetr(shapes: Shapes) -> Told:
    if patches := shapes.get("vit.patch_embedding.patch_embeddings.weight"):
        yield "hidden_size", patches[0]
        yield "in_channels", patches[1]
    if layer := shapes.get("vit.blocks.0.mlp.linear1.weight"):
        yield "mlp_dim", layer[0]
    if block := shapes.get("encoder1.layer.conv1.conv.weight"):
        yield "feature_size", block[0]
    yield "qkv_bias", "vit.blocks.0.attn.qkv.bias" in shapes
    code = shapes.get("vit.patch_embedding.position_embeddings", (0, 0, 0))
    if side := cube_root(code[1]):
        yield "size", (_PATCH * side,) * 3


def _unet(shapes: Shapes) -> Told:
    if first := shapes.get("conv_0.conv_0.conv.weight"):
        yield "in_channels", first[1]
    names = ["conv_0.conv_1.conv.weight"]
    names += [f"down_{level}.convs.conv_1.conv.weight" for level in (1, 2, 3, 4)]
    names.append("upcat_1.convs.conv_1.conv.weight")
    found = [shapes[name][0] for name in names if name in shapes]
    if len(found) == len(names):
        yield "features", tuple(found)


def _resenc_unet(shapes: Shapes) -> Told:
    if first := shapes.get("encoder.stem.convs.0.conv.weight"):
        yield "in_channels", first[1]
    last = "encoder.stages.{}.blocks.0.conv2.conv.weight"
    features, blocks = [], []
    while shape := shapes.get(last.format(len(features))):
        blocks.append(_count(shapes, rf"encoder\.stages\.{len(features)}\.blocks\.(\d+)\."))
        features.append(shape[0])
    if features:
        yield "features", tuple(features)
        yield "blocks", tuple(blocks)


def _genesis_unet(shapes: Shapes) -> Told:
    if first := shapes.get("down_tr64.ops.0.conv1.weight"):
        yield "in_channels", first[1]
    names = [f"down_tr{level}.ops.1.conv1.weight" for level in PUBLISHED_FEATURES]
    found = [shapes[name][0] for name in names if name in shapes]
    if len(found) == len(names):
        yield "features", tuple(found)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers a pattern finds."""
    return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})


def assumed(backbone: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that no tensor tells, as is common for a network of those that are told."""
    width = told.get("hidden_size", 0)
    if backbone == "unetr" and width and width % _HEAD_WIDTH == 0:
        return {"num_heads": width // _HEAD_WIDTH}
    return {}


def outputs_in(tensors: Mapping[str, Tensor], backbone: str) -> int | None:
    """Channels of the output layer, if there is one among the tensors."""
    name = {
        "swin_unetr": "out.conv.conv.weight",
        "unetr": "out.conv.conv.weight",
        "unet": "final_conv.weight",
        "resenc_unet": "decoder.seg_layers.0.weight",
        "genesis_unet": "out_tr.final_conv.weight",
    }[backbone]
    return tensors[name].shape[0] if name in tensors else None


def fitted(
    tensors: Mapping[str, Tensor], backbone: Backbone, grid: Shape3 | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors with as many input channels and positions as a backbone has; and what was done.

    Args:
        tensors: Under the names of the backbone's network.
        backbone: What they are to fit. It is not changed.
        grid: Tokens along each axis that absolute position codes are for; a cube if not given.
    """
    state = backbone.network.state_dict()
    given = dict(tensors)
    channels: set[tuple[int, int]] = set()
    positions: set[tuple[str, str]] = set()
    for name, wanted in state.items():
        tensor = given.get(name)
        if tensor is None or tensor.shape == wanted.shape:
            continue
        if name in backbone.input_weights and _differ_in_channels(tensor, wanted):
            channels.add((tensor.shape[1], wanted.shape[1]))
            given[name] = spread(tensor, wanted.shape[1])
        elif name.endswith(backbone.position_suffixes or ("\0",)):
            resized = _resized(tensor, wanted, backbone, grid)
            if resized is not None:
                given[name], sides = resized
                positions.add(sides)
        elif not wanted.is_floating_point():
            del given[name]  # a table of indices, which the network makes itself
    said = [
        f"{old} input channel{'s' if old > 1 else ''} made {new}, so that {new} equal channels "
        "give the same response"
        for old, new in sorted(channels)
    ]
    said += [f"position codes resized from {old} to {new}" for old, new in sorted(positions)]
    return given, tuple(said)


def spread(weight: Tensor, channels: int) -> Tensor:
    """A convolution that reads another number of channels.

    Its response to equal channels is that of the given one to equal channels.

    Args:
        weight: ``(out, in, ...)``.
        channels: How many it shall read.
    """
    shared = weight.sum(dim=1, keepdim=True) / channels
    return shared.expand(-1, channels, *weight.shape[2:]).contiguous()


def _differ_in_channels(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether two convolutions differ in nothing but the channels that they read."""
    one, two = list(tensor.shape), list(wanted.shape)
    return len(one) == len(two) and one[:1] + one[2:] == two[:1] + two[2:]


def _resized(
    code: Tensor, wanted: Tensor, backbone: Backbone, grid: Shape3 | None
) -> tuple[Tensor, tuple[str, str]] | None:
    """A code for other positions, and both grids in words; ``None`` if they are not known."""
    if code.ndim != wanted.ndim or code.shape[-1] != wanted.shape[-1]:
        return None
    rows = code.reshape(-1, code.shape[-1])
    old = grid if code.ndim == 3 and grid is not None else _cube(len(rows))
    new = _cube(wanted.shape[-2])
    if isinstance(backbone, TokenBackbone) and backbone.fixed_size is not None:
        new = cube_grid(backbone.fixed_size, backbone.patch)
    if old is None or new is None or torch.Size(old).numel() != len(rows):
        return None
    resized = resampled_code(rows, old, new).reshape(wanted.shape).to(code.dtype)
    return resized, (_words(old), _words(new))


def _cube(count: int) -> Shape3 | None:
    side = cube_root(count)
    return (side, side, side) if side else None


def _words(grid: Shape3) -> str:
    return " x ".join(map(str, grid))
