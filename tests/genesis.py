"""The U-Net of Models Genesis spelled out: its file, tensor by tensor, and what it computes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]

PUBLISHED = (64, 128, 256, 512)
SMALL = (4, 6, 8, 10)


def shapes(
    features: Sequence[int] = PUBLISHED, inputs: int = 1, outputs: int = 1
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a file, without the prefix of torch's wrapper."""
    a, b, c, d = features
    convolutions = {
        "down_tr64.ops.0": (inputs, a // 2),
        "down_tr64.ops.1": (a // 2, a),
        "down_tr128.ops.0": (a, b // 2),
        "down_tr128.ops.1": (b // 2, b),
        "down_tr256.ops.0": (b, c // 2),
        "down_tr256.ops.1": (c // 2, c),
        "down_tr512.ops.0": (c, d // 2),
        "down_tr512.ops.1": (d // 2, d),
        "up_tr256.ops.0": (d + c, c),
        "up_tr256.ops.1": (c, c),
        "up_tr128.ops.0": (c + b, b),
        "up_tr128.ops.1": (b, b),
        "up_tr64.ops.0": (b + a, a),
        "up_tr64.ops.1": (a, a),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, (narrow, wide) in convolutions.items():
        found[f"{name}.conv1.weight"] = (wide, narrow, 3, 3, 3)
        found[f"{name}.conv1.bias"] = (wide,)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn1.{kind}"] = (wide,)
        found[f"{name}.bn1.num_batches_tracked"] = ()
    for name, channels in (("up_tr256", d), ("up_tr128", c), ("up_tr64", b)):
        found[f"{name}.up_conv.weight"] = (channels, channels, 2, 2, 2)
        found[f"{name}.up_conv.bias"] = (channels,)
    found["out_tr.final_conv.weight"] = (outputs, a, 1, 1, 1)
    found["out_tr.final_conv.bias"] = (outputs,)
    return found


def tensors(features: Sequence[int] = SMALL, inputs: int = 1, outputs: int = 1) -> State:
    """Such a file with random numbers, of a size that keeps the signal alive."""
    rng = torch.Generator().manual_seed(7)
    made: State = {}
    for name, shape in shapes(features, inputs, outputs).items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(0)
        elif name.endswith(("bn1.weight", "running_var")):
            made[name] = 0.5 + torch.rand(shape, generator=rng)
        else:
            made[name] = torch.randn(shape, generator=rng) * 0.3
    return made


def decoded(state: State, volumes: torch.Tensor) -> torch.Tensor:
    """Features at full resolution: statistics are those of the volumes, as in the public code."""
    features, skips = volumes, []
    for level in (64, 128, 256, 512):
        if skips:
            features = F.max_pool3d(features, kernel_size=2)
        features = _two(state, f"down_tr{level}", features)
        skips.append(features)
    for level, skip in ((256, skips[2]), (128, skips[1]), (64, skips[0])):
        weight, bias = (state[f"up_tr{level}.up_conv.{kind}"] for kind in ("weight", "bias"))
        up = F.conv_transpose3d(features, weight, bias, stride=2)
        features = _two(state, f"up_tr{level}", torch.cat((up, skip), dim=1))
    return features


def logits(state: State, volumes: torch.Tensor) -> torch.Tensor:
    """What goes into the reference's sigmoid."""
    weight, bias = (state[f"out_tr.final_conv.{kind}"] for kind in ("weight", "bias"))
    return F.conv3d(decoded(state, volumes), weight, bias)


def _two(state: State, name: str, features: torch.Tensor) -> torch.Tensor:
    for number in (0, 1):
        own = f"{name}.ops.{number}"
        features = F.conv3d(
            features, state[f"{own}.conv1.weight"], state[f"{own}.conv1.bias"], padding=1
        )
        scale, shift = state[f"{own}.bn1.weight"], state[f"{own}.bn1.bias"]
        features = F.relu(F.batch_norm(features, None, None, scale, shift, training=True))
    return features
