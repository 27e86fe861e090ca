"""Changes of intensity: drawn on the CPU, applied where the crops are."""

from jaxtyping import Float
from torch import Tensor

from voco.draws import Draws
from voco.shapes import Volumes


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
