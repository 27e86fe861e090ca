"""Volumes cut into cubes of which most are hidden and painted: what masked autoencoders share.

An *order* is a random one of all cubes of a volume; the first ones are seen, the others hidden.
"""

import math
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from voco.errors import ConfigError
from voco.nn.unit import at_least_float32
from voco.shapes import Shape3, Volumes

Cubes = Float[Tensor, "b _ v"]
"""Voxels of cubes, one row for each."""

Order = Int64[Tensor, "b t"]
"""The numbers of all cubes of each volume, those that are seen before those that are hidden."""

Targets = Literal["standardised", "raw"]
"""What is to be painted: cubes standardised each by itself, or intensities as they are."""

_LARGEST_OUTPUT = 1e4
"""Outputs are cut here, so that their squares stay finite."""


def cube_grid(size: Shape3, cube: Shape3) -> Shape3:
    """How many cubes there are along each axis."""
    (x, y, z), (i, j, k) = size, cube
    return (x // i, y // j, z // k)


def seen_count(grid: Shape3, mask_ratio: float, *, setting: str, size: str) -> int:
    """How many cubes are seen where a share of them is hidden.

    Args:
        grid: Cubes along each axis.
        mask_ratio: The share that is hidden.
        setting: What a method calls this share, for the error.
        size: What it calls the size of its volumes.

    Raises:
        ConfigError: If none is left to see, or none to hide.
    """
    total = math.prod(grid)
    seen = int(total * (1 - mask_ratio))
    if not 0 < seen < total:
        raise ConfigError(
            f"method.{setting} {mask_ratio} leaves {seen} of {total} cubes to be seen; at least "
            f"one must be seen and one hidden. Choose it between {1 / total:.3f} and "
            f"{1 - 1 / total:.3f}, or a larger method.{size}."
        )
    return seen


def to_cubes(volumes: Volumes, cube: Shape3) -> Cubes:
    """Volumes cut into cubes, in row-major order; within a cube, channels run innermost."""
    x, y, z = cube
    return rearrange(
        volumes, "b c (i x) (j y) (k z) -> b (i j k) (x y z c)", x=x, y=y, z=z
    ).contiguous()


def from_cubes(cubes: Cubes, grid: Shape3, cube: Shape3) -> Volumes:
    """Volumes put together from their cubes: undoes :func:`to_cubes`."""
    (i, j, _), (x, y, z) = grid, cube
    return rearrange(cubes, "b (i j k) (x y z c) -> b c (i x) (j y) (k z)", i=i, j=j, x=x, y=y, z=z)


def standardised(cubes: Cubes) -> Cubes:
    """Cubes at zero mean and unit variance, each by itself; one of a single intensity is zero."""
    values = at_least_float32(cubes)
    centred = values - values.mean(dim=2, keepdim=True)
    return centred * (centred.square().mean(dim=2, keepdim=True) + 1e-6).rsqrt()


def hidden_targets(cubes: Cubes, order: Order, seen: int, targets: Targets) -> Cubes:
    """What is to be painted of the hidden cubes, in their order.

    Args:
        cubes: All cubes.
        order: Of them.
        seen: How many are seen.
        targets: What is to be painted.
    """
    wanted = standardised(cubes) if targets == "standardised" else cubes
    return wanted.take_along_dim(order[:, seen:, None], dim=1)


def painting_loss(
    found: Cubes, true: Cubes, error: Literal["squared", "absolute"]
) -> Float[Tensor, ""]:
    """Mean error of hidden cubes over all their voxels; in at least float32, autocast off."""
    with torch.autocast(found.device.type, enabled=False):
        cut = at_least_float32(found).clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT)
        errors = cut - at_least_float32(true)
        return (errors.square() if error == "squared" else errors.abs()).mean()


def blind_painting(cubes: Cubes, order: Order, seen: int, targets: Targets) -> Cubes:
    """The best guess that knows nothing of a hidden cube.

    It is 0, the mean of standardised targets, or, where they are raw, the mean of the cubes that
    are seen. Arguments as in :func:`hidden_targets`.
    """
    guess = torch.zeros_like(cubes[:, seen:])
    if targets == "raw":
        known = cubes.take_along_dim(order[:, :seen, None], dim=1)
        guess = guess + known.mean(dim=(1, 2), keepdim=True)
    return guess


def painted_views(
    volumes: Volumes, found: Cubes, order: Order, *, cube: Shape3, targets: Targets
) -> dict[str, Volumes]:
    """What is seen of volumes, all of them painted, and as they were.

    Args:
        volumes: The volumes.
        found: What was painted of their hidden cubes.
        order: Of all cubes.
        cube: Voxels of a cube along each axis.
        targets: What was to be painted.
    """
    x, y, z = volumes.shape[2:]
    grid = cube_grid((x, y, z), cube)
    cubes = to_cubes(volumes, cube)
    painted = found.to(cubes)
    at = order[:, order.shape[1] - found.shape[1] :, None].expand_as(painted)
    if targets == "standardised":
        # The true mean and spread of a cube bring what was painted back to the volume's range.
        truth = cubes.gather(1, at)
        painted = painted * truth.std(dim=2, keepdim=True) + truth.mean(dim=2, keepdim=True)
    views = {
        "seen": cubes.scatter(1, at, torch.zeros_like(painted)),
        "painted": cubes.scatter(1, at, painted),
        "volume": cubes,
    }
    return {name: from_cubes(view, grid, cube) for name, view in views.items()}
