"""Changes of intensity: drawn on the CPU, applied where the crops are."""

from typing import Annotated

from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Volumes


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError(f"the least intensity {ends[0]} is not below the largest {ends[1]}")
    return ends


IntensityRange = Annotated[tuple[float, float], AfterValidator(_in_order)]
"""Least and largest intensity of a network's input, in order."""


def scaled(volumes: Float[Tensor, "*n"], ends: tuple[float, float]) -> Float[Tensor, "*n"]:
    """From a range of intensities to [0, 1]. Nothing is clipped."""
    return (volumes - ends[0]) / (ends[1] - ends[0])


def unscaled(volumes: Float[Tensor, "*n"], ends: tuple[float, float]) -> Float[Tensor, "*n"]:
    """From [0, 1] to a range of intensities: undoes :func:`scaled`."""
    return ends[0] + volumes * (ends[1] - ends[0])


def draw_shifts(
    draws: Draws, count: int, crops: int, strength: float, probability: float
) -> Float[Tensor, "b n"]:
    """What is added to the intensities of each crop; 0 where a crop keeps its own.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        strength: Largest shift, up or down, in units of the network's input.
        probability: Of any shift.
    """
    shifted = draws.uniform(count, crops) < probability
    return shifted * (draws.uniform(count, crops) * 2 - 1) * strength


def shift(crops: Volumes, shifts: Float[Tensor, "b"]) -> Volumes:
    """Add its shift to every crop. Nothing is clipped."""
    return crops + shifts.to(crops).view(-1, 1, 1, 1, 1)
