"""What volume contrast does to crops, each on its own."""

from jaxtyping import Float, Int64
from torch import Tensor

from voco.augment.cut import cut_to
from voco.augment.intensity import draw_shifts, shift
from voco.augment.spatial import draw_flips, draw_turns
from voco.draws import Draws
from voco.shapes import Crops, Shape3, Volumes


def augmented(
    volumes: Volumes,
    boxes: Int64[Tensor, "b n 2 3"],
    draws: Draws,
    *,
    size: Shape3,
    flip_probability: float,
    turn_probability: float,
    shift_probability: float,
    shift_strength: float,
) -> Crops:
    """Crops cut out of volumes, resampled, mirrored, turned and shifted.

    Args:
        volumes: This process's volumes.
        boxes: What is cut out of each.
        draws: The random numbers of the step.
        size: Voxels of a crop.
        flip_probability: Of mirroring, for each axis.
        turn_probability: Of a turn in the x-y plane; a half turn where its sides differ.
        shift_probability: Of a shift of the intensities.
        shift_strength: Its largest size.
    """
    count, each = boxes.shape[:2]
    flips = draw_flips(draws, count, each, flip_probability)
    turns = draw_turns(draws, count, each, turn_probability, square=size[0] == size[1])
    shifts = draw_shifts(draws, count, each, shift_strength, shift_probability)
    crops = cut_to(volumes, boxes, size, flips, turns)
    return shift(crops.flatten(0, 1), shifts.flatten()).unflatten(0, (count, each))


def draw_kept(draws: Draws, count: int, crops: int, dropped: float) -> Float[Tensor, "b n"]:
    """What each crop is multiplied by if some are dropped: 0, or what keeps the mean.

    Args:
        draws: The random numbers of the step.
        count: Volumes of this process.
        crops: Crops of each volume.
        dropped: Probability of dropping a crop, below 1.
    """
    return (draws.uniform(count, crops) >= dropped) / (1 - dropped)
