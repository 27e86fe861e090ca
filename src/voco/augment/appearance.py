"""How crops look: noise, blur, brightness, contrast, resolution, gamma.

The kinds of change, their probabilities and the ranges of blur, brightness and gamma are those of
nnssl's SimCLR (``MIC-DKFZ/nnssl``), which also uses them for other contrastive methods; strengths
that its settings leave to a library are ours, as their descriptions say. Drawn on the CPU for all
crops; applied where the crops are, to those that change.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from voco.augment.chosen import Change, change
from voco.config import Config
from voco.draws import Draws
from voco.shapes import Crops, Volumes

Range = tuple[PositiveFloat, PositiveFloat]


class AppearanceConfig(Config):
    """What is done to each crop on its own."""

    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring along an axis, for each axis alone; the value is our choice."""
    turn_probability: float = Field(default=0.75, ge=0, le=1)
    """Of turning by 90, 180 or 270 degrees in the x-y plane; by 180 where x and y sides differ.
    The value, which makes all four directions equally likely, is our choice."""
    noise_probability: float = Field(default=0.1, ge=0, le=1)
    """Of adding Gaussian noise."""
    noise: float = Field(default=0.1, ge=0)
    """Largest standard deviation of the noise, in units of the network's input; our choice."""
    blur: Range = (0.5, 1.0)
    """Standard deviation of the Gaussian blur in voxels, from least to largest; how likely it is,
    the method says."""
    brightness_probability: float = Field(default=0.15, ge=0, le=1)
    """Of multiplying the intensities."""
    brightness: Range = (0.75, 1.25)
    """Factor, from least to largest."""
    contrast_probability: float = Field(default=0.15, ge=0, le=1)
    """Of spreading the intensities about their mean, within the crop's range."""
    contrast: Range = (0.75, 1.25)
    """Factor, from least to largest; our choice."""
    low_resolution_probability: float = Field(default=0.1, ge=0, le=1)
    """Of taking detail away: fewer voxels, and back."""
    low_resolution: float = Field(default=0.5, gt=0, le=1)
    """Least share of the voxels of a side that are kept; our choice."""
    gamma_probability: float = Field(default=0.3, ge=0, le=1)
    """Of raising the intensities, brought to [0, 1] for it, to a power."""
    inverted_gamma_probability: float = Field(default=0.1, ge=0, le=1)
    """Of the same with dark and bright exchanged for it."""
    gamma: Range = (0.7, 1.5)
    """The power, from least to largest."""

    @field_validator("blur", "brightness", "contrast", "gamma")
    @classmethod
    def _in_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] > ends[1]:
            raise ValueError(f"the least value {ends[0]} is above the largest {ends[1]}")
        return ends


class Amounts(NamedTuple):
    """One number for each crop, and the one that changes nothing."""

    values: Float[Tensor, "b n"]
    neutral: float


def draw_amounts(
    draws: Draws,
    count: int,
    probabilities: Sequence[float],
    ends: tuple[float, float],
    neutral: float,
) -> Amounts:
    """By how much each crop is changed.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        probabilities: Of a change, for each crop of a volume.
        ends: From which to which value; all between are equally likely.
        neutral: The value of crops that are not changed.
    """
    crops = len(probabilities)
    chosen = draws.uniform(count, crops) < torch.tensor(probabilities)
    values = ends[0] + draws.uniform(count, crops) * (ends[1] - ends[0])
    return Amounts(torch.where(chosen, values, neutral), neutral)


def changed(
    crops: Crops, draws: Draws, config: AppearanceConfig, blur_probabilities: Sequence[float]
) -> Crops:
    """Crops with all changes of intensity, each crop on its own.

    Args:
        crops: Crops of this process's volumes.
        draws: The random numbers of the step.
        config: How likely and how strong the changes are.
        blur_probabilities: Of blur, for each crop of a volume.
    """
    count, each = crops.shape[:2]

    def drawn(probability: float, ends: tuple[float, float], neutral: float = 1.0) -> Amounts:
        return draw_amounts(draws, count, [probability] * each, ends, neutral)

    seeds = draws.integers(count, each, high=1 << 62).flatten()
    noise = drawn(config.noise_probability, (0.0, config.noise), 0.0)
    sigmas = draw_amounts(draws, count, blur_probabilities, config.blur, 0.0)
    radius = max(1, round(3 * config.blur[1]))
    lower = drawn(config.low_resolution_probability, (config.low_resolution, 1.0))
    changes: list[tuple[Amounts, Callable[[Volumes, Tensor, Tensor], Volumes]]] = [
        (noise, lambda some, std, rows: add_noise(some, std, seeds[rows])),
        (sigmas, lambda some, sigma, _: blur(some, sigma, radius)),
        (
            drawn(config.brightness_probability, config.brightness),
            lambda some, by, _: some * _wide(by),
        ),
        (drawn(config.contrast_probability, config.contrast), lambda some, by, _: spread(some, by)),
        (lower, lambda some, by, _: lower_resolution(some, by)),
        (
            drawn(config.inverted_gamma_probability, config.gamma),
            lambda some, by, _: inverted_gamma(some, by),
        ),
        (drawn(config.gamma_probability, config.gamma), lambda some, by, _: gamma(some, by)),
    ]
    flat = change(crops.flatten(0, 1), [_where(*each) for each in changes])
    return flat.unflatten(0, (count, each))


def add_noise(crops: Volumes, stds: Float[Tensor, "b"], seeds: Int64[Tensor, "b"]) -> Volumes:
    """Crops with Gaussian noise, of one seed and one standard deviation for each."""
    noise = torch.empty_like(crops)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.normal_(generator=torch.Generator(crops.device).manual_seed(seed))
    return crops + noise * _wide(stds)


def blur(crops: Volumes, sigmas: Float[Tensor, "b"], radius: int) -> Volumes:
    """Crops under a Gaussian, of one standard deviation in voxels for each.

    Args:
        crops: The crops; beyond their edges the outermost voxels go on.
        sigmas: Standard deviations, above 0.
        radius: Voxels on each side at which the Gaussian is cut off.
    """
    taps = torch.arange(-radius, radius + 1, device=crops.device)
    weights = torch.exp(-0.5 * (taps / sigmas[:, None]).square())
    weights = weights / weights.sum(dim=1, keepdim=True)
    for axis in (2, 3, 4):
        pads = [0] * 6
        pads[8 - 2 * axis : 10 - 2 * axis] = [radius, radius]  # torch counts from the last axis
        padded = F.pad(crops, pads, mode="replicate")
        size = crops.shape[axis]
        crops = sum(
            (padded.narrow(axis, at, size) * _wide(weights[:, at]) for at in range(len(taps))),
            start=torch.zeros_like(crops),
        )
    return crops


def blurred(crops: Crops, draws: Draws, most: float) -> Crops:
    """Crops under a Gaussian, each of a standard deviation of its own.

    Args:
        crops: Crops of this process's volumes.
        draws: The random numbers of the step.
        most: Largest standard deviation in voxels; all from 0 on are equally likely.
    """
    count, each = crops.shape[:2]
    sigmas = (draws.uniform(count, each) * most).clamp(min=0.01)  # which leaves all as it is
    flat = blur(crops.flatten(0, 1), sigmas.flatten().to(crops), max(1, round(3 * most)))
    return flat.unflatten(0, (count, each))


def spread(crops: Volumes, factors: Float[Tensor, "b"]) -> Volumes:
    """Crops with their distances from the mean multiplied, kept within their own range."""
    low, high = _range(crops)
    # In float64 the mean of a crop does not depend on how many others there are.
    mean = crops.mean(dim=(1, 2, 3, 4), keepdim=True, dtype=torch.float64).to(crops)
    return (mean + (crops - mean) * _wide(factors)).clamp(low, high)


def gamma(crops: Volumes, powers: Float[Tensor, "b"]) -> Volumes:
    """Crops raised to a power, over their own range."""
    low, high = _range(crops)
    width = (high - low).clamp(min=1e-7)
    return low + ((crops - low) / width).clamp(0, 1) ** _wide(powers) * width


def inverted_gamma(crops: Volumes, powers: Float[Tensor, "b"]) -> Volumes:
    """Crops whose negative is raised to a power."""
    return -gamma(-crops, powers)


def lower_resolution(crops: Volumes, shares: Float[Tensor, "b"]) -> Volumes:
    """Crops sampled at fewer voxels (the nearest) and brought back (linearly).

    Args:
        crops: The crops.
        shares: Of the voxels of a side that are sampled.
    """
    for axis in (2, 3, 4):
        size = crops.shape[axis]
        fewer = (size * shares).round().clamp(min=1)[:, None]
        at = (torch.arange(size, device=crops.device) + 0.5) * fewer / size - 0.5
        at = at.clamp(min=0).minimum(fewer - 1)
        below = at.floor()
        above = (below + 1).minimum(fewer - 1)
        part = _along(at - below, axis)
        lower, upper = (
            crops.take_along_dim(_along(((sample + 0.5) * size / fewer).floor().long(), axis), axis)
            for sample in (below, above)
        )
        crops = lower + (upper - lower) * part
    return crops


def _where(amounts: Amounts, how: Callable[[Volumes, Tensor, Tensor], Volumes]) -> Change:
    """A change of the crops whose amounts are not neutral."""
    values = amounts.values.flatten()
    return (
        values != amounts.neutral,
        lambda some, rows: how(some, values[rows].to(some), rows),
    )


def _range(crops: Volumes) -> tuple[Tensor, Tensor]:
    axes = (1, 2, 3, 4)
    return crops.amin(dim=axes, keepdim=True), crops.amax(dim=axes, keepdim=True)


def _wide(values: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1 1"]:
    return values.view(-1, 1, 1, 1, 1)


def _along(values: Tensor, axis: int) -> Tensor:
    """Values of each crop at each voxel along one axis."""
    shape = [len(values), 1, 1, 1, 1]
    shape[axis] = values.shape[1]
    return values.view(shape)
