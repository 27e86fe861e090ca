"""Networks of convolutions that see some blocks of a volume only, for as long as they are told to.

After SparK (Tian et al., *Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling*, ICLR 2023), in three dimensions: what convolutions and pooling give is set to zero where
nothing is seen, and norms take their statistics over what is seen. The layers themselves stay what
they are, with their names and parameters: hooks do it, and leave with the context.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from voco.nn.unit import at_least_float32
from voco.shapes import Level, Shape3

_LOCAL = (nn.Conv3d, nn.AvgPool3d, nn.MaxPool3d)
"""Layers that would carry what is seen, and biases, to where nothing is."""
_NORMS = (nn.InstanceNorm3d,)
"""Layers with statistics of each volume on its own."""
_POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout3d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
)
"""Layers that leave zeros where they are."""


class Seen:
    """Which blocks of volumes are seen: as many in every volume of the batch.

    A map of features with fewer voxels than there are blocks cannot tell them apart: of such a map
    all is seen.

    Args:
        blocks: Of a grid of equal blocks, those that are seen. Best on the CPU: they are searched,
            and a GPU would wait for that.
        device: Where the volumes are; where the blocks are if not given.

    Raises:
        ValueError: If volumes differ in how many are seen, or none is.
    """

    def __init__(self, blocks: Bool[Tensor, "b i j k"], device: torch.device | None = None) -> None:
        counts = blocks.flatten(1).sum(dim=1).unique()
        if len(counts) != 1 or not counts[0]:
            raise ValueError(
                f"every volume must have the same number of seen blocks, and at least one; got "
                f"{counts.tolist()}"
            )
        to = blocks.device if device is None else device
        self.blocks = blocks.to(to, non_blocking=True)
        places = blocks.nonzero(as_tuple=True)
        self._places = tuple(axis.to(to, non_blocking=True) for axis in places)

    def voxels(self, size: Shape3) -> Bool[Tensor, "b 1 x y z"]:
        """Which voxels of a map are seen.

        Args:
            size: Voxels of the map.
        """
        edges = self._edges(size)
        if edges is None:
            return self.blocks.new_ones(len(self.blocks), 1, *size)
        x, y, z = edges
        return repeat(self.blocks, "b i j k -> b 1 (i x) (j y) (k z)", x=x, y=y, z=z)

    def only(self, features: Level) -> Level:
        """Features with zeros where nothing is seen."""
        size = size_of(features)
        if self._edges(size) is None:
            return features
        # Not a product: that would turn an infinity into a NaN.
        return features.masked_fill(~self.voxels(size), 0)

    def packed(self, features: Level) -> Float[Tensor, "b c v 1 1"]:
        """Features of seen voxels alone, in no particular order; in at least float32."""
        edges = self._edges(size_of(features))
        if edges is None:
            values = features.flatten(2)
        else:
            blocks = _as_blocks(features, edges)[self._places]
            values = rearrange(blocks, "(b n) c x y z -> b c (n x y z)", b=len(features))
        return at_least_float32(values)[..., None, None]

    def unpacked(self, packed: Float[Tensor, "b c v 1 1"], like: Level) -> Level:
        """Undoes :meth:`packed`, with zeros where nothing is seen.

        Args:
            packed: Features of seen voxels.
            like: What was packed: says size and type.
        """
        if packed.requires_grad:
            # Of one volume, torch's instance norm (2.13, on a CPU) gives wrong gradients if the one
            # it gets has its channels last in memory, as what comes from blocks may have.
            packed.register_hook(torch.Tensor.contiguous)
        values = packed.to(like.dtype)
        edges = self._edges(size_of(like))
        if edges is None:
            return values.reshape(like.shape)
        x, y, z = edges
        features = torch.zeros_like(like, memory_format=torch.contiguous_format)
        _as_blocks(features, edges)[self._places] = rearrange(
            values, "b c (n x y z) 1 1 -> (b n) c x y z", x=x, y=y, z=z
        )
        return features

    def _edges(self, size: Shape3) -> Shape3 | None:
        """Voxels of a block in a map; none if the map has fewer voxels than there are blocks."""
        grid = self.blocks.shape[1:]
        if any(side < count for side, count in zip(size, grid, strict=True)):
            return None
        if any(side % count for side, count in zip(size, grid, strict=True)):
            raise ValueError(f"a map of {size} voxels cannot be cut into {tuple(grid)} blocks")
        x, y, z = (side // count for side, count in zip(size, grid, strict=True))
        return (x, y, z)


def size_of(features: Level) -> Shape3:
    """Voxels of a map along x, y and z."""
    x, y, z = features.shape[2:]
    return (x, y, z)


@contextmanager
def sparse(layers: Sequence[nn.Module], seen: Seen) -> Iterator[None]:
    """While it lasts, layers that are called work on what is seen alone.

    Their input must be zero where nothing is seen, or a first layer looks over the edges of the
    seen blocks. Functions between layers must leave zeros where they are, as sums, joining of
    channels and activations do.

    Args:
        layers: Of the kinds that :func:`unfit` does not name.
        seen: What is seen of the volumes that pass through them.
    """
    with ExitStack() as hooks:
        for layer in layers:
            for handle in _hooked(layer, seen):
                hooks.callback(handle.remove)
        yield


def layers_of(network: nn.Module, prefixes: tuple[str, ...]) -> list[nn.Module]:
    """The modules below some prefixes that compute something themselves.

    Such are those without modules in them, but for empty containers, and those with parameters of
    their own.
    """
    return [
        module
        for name, module in network.named_modules()
        if f"{name}.".startswith(prefixes)
        and (_is_leaf(module) or next(module.parameters(recurse=False), None) is not None)
    ]


def unfit(layers: Sequence[nn.Module]) -> list[str]:
    """Kinds of layers that cannot work on a part of a volume."""
    kinds = (*_LOCAL, *_NORMS, *_POINTWISE)
    return sorted({type(layer).__name__ for layer in layers if not isinstance(layer, kinds)})


def _is_leaf(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return next(module.children(), None) is None and not isinstance(module, containers)


def _hooked(layer: nn.Module, seen: Seen) -> list[RemovableHandle]:
    waiting: list[Tensor] = []

    def hide(_layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return seen.only(output)

    def pack(_layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        waiting.append(inputs[0])
        return seen.packed(inputs[0])

    def unpack(_layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return seen.unpacked(output, like=waiting.pop())

    if isinstance(layer, _LOCAL):
        return [layer.register_forward_hook(hide)]
    if isinstance(layer, _NORMS):
        # The norm itself gets nothing but seen voxels, so its statistics are theirs.
        return [layer.register_forward_pre_hook(pack), layer.register_forward_hook(unpack)]
    return []


def _as_blocks(features: Level, edges: Shape3) -> Float[Tensor, "b i j k c x y z"]:
    """A view of a map, block by block."""
    view = features
    for axis in (4, 3, 2):
        view = view.unflatten(axis, (-1, edges[axis - 2]))
    return view.permute(0, 2, 4, 6, 1, 3, 5, 7)
