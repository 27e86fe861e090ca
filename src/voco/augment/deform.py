"""Volumes turned, scaled, sheared, shifted and bent: places first, then one resampling.

The *place* of a voxel is where its value comes from, in voxels from the centre of the volume. So
motions are chained by moving places, and however many there are, intensities are interpolated
once. What lies outside of a volume is zero.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from voco.config import Config
from voco.draws import Draws
from voco.shapes import Shape3, Volumes

Coordinates = Literal["exact", "reference"]
"""What is meant by a place.

``exact``: voxels from the centre; a bend by nothing changes nothing, a turn turns. ``reference``:
as in the code of GVSL, where bent places are spread by ``side / (side - 1)`` about the centre (up
to half a voxel, at the edge), and turns and shears are in units of half the sides, so that those
of a volume whose sides differ distort it.
"""

Places = Float[Tensor, "b three x y z"]
"""Where each voxel comes from, in voxels from the centre, along x, y and z."""

_CUT = 4
"""Standard deviations at which a Gaussian ends."""


class MotionConfig(Config):
    """How far volumes are moved; every amount is drawn evenly."""

    turn_degrees: float = Field(default=20.0, ge=0, le=180)
    """Largest turn about each axis, in either direction (reference)."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    """Distances between places, along each axis: least and largest factor (reference)."""
    shear_degrees: float = Field(default=10.0, ge=0, lt=45)
    """Largest shear of each axis along each other (reference)."""
    shift_share: float = Field(default=0.05, ge=0, le=1)
    """Largest shift along each axis, as a share of the side. The reference draws up to a tenth of
    the side, but in units of which the whole side is two."""
    bend: float = Field(default=512.0, ge=0)
    """Largest factor of smoothed noise (reference). With its smoothing, the largest displaces by
    0.9 to 1.4 voxels (standard deviation)."""
    smoothing: tuple[PositiveFloat, PositiveFloat] = (10.0, 13.0)
    """Least and largest standard deviation, in voxels, of the Gaussian that smooths the noise,
    which is even between -1 and 1 (reference)."""

    @field_validator("scale", "smoothing")
    @classmethod
    def _in_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] > ends[1]:
            raise ValueError(f"the least value {ends[0]} is above the largest {ends[1]}")
        return ends


def draw_motions(
    draws: Draws,
    volumes: Volumes,
    config: MotionConfig,
    *,
    probability: float,
    coordinates: Coordinates = "exact",
) -> Places:
    """Places of moved volumes: first an affine map of the volume, then a bend of the result.

    Args:
        draws: Random numbers.
        volumes: Whose shape and device count.
        config: How far.
        probability: Of any motion, for each volume.
        coordinates: What is meant by a place.
    """
    count, (x, y, z) = len(volumes), volumes.shape[2:]
    chosen = draws.uniform(count) < probability
    turns, scales, shifts = draws.uniform(count, 3, 3).unbind(dim=1)
    shears = draws.uniform(count, 6)
    low, high = config.scale
    turns = _both_ways(turns) * math.radians(config.turn_degrees)
    scales = low + scales * (high - low)
    shears = _both_ways(shears) * math.radians(config.shear_degrees)
    # One by one: the last bit of a sine or a product may depend on how many are computed at once.
    rows = (amounts.split(1) for amounts in (turns, scales, shears))
    matrices = torch.cat([affine_matrices(*row) for row in zip(*rows, strict=True)])
    matrices = torch.where(chosen[:, None, None], matrices, torch.eye(3))
    sides = torch.tensor((x, y, z))
    shifts = _both_ways(shifts) * config.shift_share * sides * chosen[:, None]
    strengths = draws.uniform(count) * config.bend * chosen
    low, high = config.smoothing
    sigmas = low + draws.uniform(count) * (high - low)
    own = own_places((x, y, z), volumes)
    noise = _both_ways(draws.uniform_like(own.new_empty(count, 3, x, y, z)))
    bends = smoothed(noise, sigmas) * strengths.to(own).view(-1, 1, 1, 1, 1)
    places = bent(own, bends, coordinates)
    return mapped(places, matrices.to(own), shifts.to(own), coordinates)


def affine_matrices(
    turns: Float[Tensor, "b 3"], scales: Float[Tensor, "b 3"], shears: Float[Tensor, "b 6"]
) -> Float[Tensor, "b 3 3"]:
    """Matrices that turn places about x, then y, then z, then scale and then shear them.

    Differentiable throughout.

    Args:
        turns: About x, y and z, in radians.
        scales: Factors along x, y and z.
        shears: Of x along y and z, of y along x and z, of z along x and y, in radians.
    """
    one, zero = torch.ones_like(turns[:, 0]), torch.zeros_like(turns[:, 0])
    (cx, cy, cz), (sx, sy, sz) = turns.cos().unbind(dim=1), turns.sin().unbind(dim=1)
    xy, xz, yx, yz, zx, zy = shears.tan().unbind(dim=1)
    about_x = _matrices(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    about_y = _matrices(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_z = _matrices(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    sheared = _matrices(one, xy, xz, yx, one, yz, zx, zy, one)
    return (sheared * scales[:, None, :]) @ about_z @ about_y @ about_x


def own_places(size: Shape3, like: Tensor) -> Float[Tensor, "1 three x y z"]:
    """The places of voxels that stay where they are.

    Args:
        size: Voxels of a volume.
        like: A tensor on the device and of the type that is wanted, at least float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    axes = [torch.arange(side, device=like.device, dtype=dtype) - (side - 1) / 2 for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def bent(
    places: Float[Tensor, "_ three x y z"], bends: Places, coordinates: Coordinates = "exact"
) -> Places:
    """Places displaced by so many voxels."""
    places = places + bends
    if coordinates == "exact":
        return places
    sides = _sides(places)
    return places * (sides / (sides - 1).clamp(min=1))


def mapped(
    places: Places,
    matrices: Float[Tensor, "b 3 3"],
    shifts: Float[Tensor, "b 3"],
    coordinates: Coordinates = "exact",
) -> Places:
    """Places multiplied by a matrix and then shifted.

    Args:
        places: The places.
        matrices: One for each volume.
        shifts: In voxels.
        coordinates: Whether matrices act on voxels or on shares of the sides.
    """
    units = torch.ones_like(_sides(places)) if coordinates == "exact" else _sides(places)
    product = matrices @ (places / units).flatten(2)
    return product.view_as(places) * units + shifts[:, :, None, None, None]


def sampled(volumes: Float[Tensor, "b c x y z"], places: Places) -> Float[Tensor, "b c x y z"]:
    """Values of volumes at places, linearly between voxels; in at least float32.

    The value of a voxel reaches to the centres of its neighbours, beyond the outermost to zero.
    """
    with torch.autocast(volumes.device.type, enabled=False):
        values = volumes.to(torch.promote_types(volumes.dtype, torch.float32))
        # torch counts from -1 to 1, edge to edge, and the last axis first.
        grid = (2 * places / _sides(places)).flip(1).movedim(1, -1).to(values)
        return F.grid_sample(values, grid, padding_mode="zeros", align_corners=False)


def smoothed(fields: Places, sigmas: Float[Tensor, "b"]) -> Places:
    """Fields under a Gaussian, of one standard deviation in voxels for each; zero beyond edges."""
    # One by one, as above.
    return torch.cat(
        [
            filtered(field, lambda side, sigma=sigma: gaussian_weights(side, sigma, fields))
            for field, sigma in zip(fields.split(1), sigmas.tolist(), strict=True)
        ]
    )


def filtered(
    volumes: Float[Tensor, "b c x y z"], weights: Callable[[int], Float[Tensor, "n n"]]
) -> Float[Tensor, "b c x y z"]:
    """Volumes under a filter that acts along one axis after the other.

    Args:
        volumes: The volumes.
        weights: For a number of voxels, by what those of a line are multiplied for each voxel of
            the filtered line.
    """
    for axis in (2, 3, 4):
        lines = volumes.movedim(axis, 2)
        product = weights(lines.shape[2]) @ lines.flatten(3)
        volumes = product.view_as(lines).movedim(2, axis)
    return volumes


def gaussian_weights(side: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """By what the voxels of a line are multiplied for each voxel of the smoothed line.

    Without the edges, weights sum to 1; those of the outermost voxels to little more than a half.

    Args:
        side: Voxels of the line.
        sigma: Standard deviation in voxels.
        like: A tensor on the device and of the type that is wanted.
    """
    reach = int(_CUT * sigma + 0.5)
    at = torch.arange(max(side, reach + 1), device=like.device)
    half = torch.exp(-0.5 * (at.to(like) / sigma).square()) * (at <= reach)
    half = half / (2 * half.sum() - half[0])
    at = at[:side]
    return half[(at[:, None] - at).abs()]


def _matrices(*rows: Float[Tensor, "b"]) -> Float[Tensor, "b 3 3"]:
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def _both_ways(numbers: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Numbers from [0, 1) to [-1, 1)."""
    return 2 * numbers - 1


def _sides(places: Places) -> Float[Tensor, "3 1 1 1"]:
    return torch.tensor(places.shape[2:], device=places.device).to(places).view(3, 1, 1, 1)
