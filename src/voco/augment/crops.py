"""What volume contrast does to crops, each on its own."""

from jaxtyping import Float
from torch import Tensor

from voco.augment.intensity import draw_shifts, shift
from voco.augment.spatial import draw_flips, draw_turns, flip, resize, turn
from voco.draws import Draws
from voco.shapes import Crops, Shape3


def augmented(
    crops: Crops,
    draws: Draws,
    *,
    size: Shape3 | None = None,
    flip_probability: float,
    turn_probability: float,
    shift_probability: float,
    shift_strength: float,
) -> Crops:
    """Resampled, mirrored, turned and shifted crops.

    Args:
        crops: Crops of this process's volumes.
        draws: The random numbers of the step.
        size: What the crops are resampled to first; ``None`` leaves their size.
        flip_probability: Of mirroring, for each axis.
        turn_probability: Of a turn in the x-y plane; a half turn where its sides differ.
        shift_probability: Of a shift of the intensities.
        shift_strength: Its largest size.
    """
    volumes, count = crops.shape[:2]
    flat = crops.flatten(0, 1)
    flat = flat if size is None else resize(flat, size)
    square = flat.shape[2] == flat.shape[3]
    flips = draw_flips(draws, volumes, count, flip_probability)
    turns = draw_turns(draws, volumes, count, turn_probability, square=square)
    shifts = draw_shifts(draws, volumes, count, shift_strength, shift_probability)
    flat = turn(flip(flat, flips.flatten(0, 1)), turns.flatten())
    return shift(flat, shifts.flatten()).unflatten(0, (volumes, count))


def draw_kept(draws: Draws, count: int, crops: int, dropped: float) -> Float[Tensor, "b n"]:
    """What each crop is multiplied by if some are dropped: 0, or what keeps the mean.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        dropped: Probability of dropping a crop, below 1.
    """
    return (draws.uniform(count, crops) >= dropped) / (1 - dropped)
