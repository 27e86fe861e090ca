"""How much two label maps overlap: Dice of all classes in one pass over the voxels.

Dice of a class is twice the voxels that both maps give to it, over the sum of the voxels that
each gives to it (Dice, Ecology 1945). An absent class is never averaged in silently:

=============  =============  ======
reference      prediction     Dice
=============  =============  ======
empty          empty          ``nan``
empty          not empty      0 (a false positive)
not empty      empty          0 (a miss)
=============  =============  ======
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

Slices = tuple[slice, slice, slice]
"""A box of voxels along x, y and z."""

Labels = Integer[np.ndarray, "x y z"] | Bool[np.ndarray, "x y z"]
"""Class numbers, not negative; a mask is a label map of class 1."""


class Counts(NamedTuple):
    """Voxels of each class number, from 0 to the highest that occurs.

    Attributes:
        reference: In the reference.
        prediction: In the prediction.
        common: In both at the same place.
    """

    reference: Int64[np.ndarray, "n"]
    prediction: Int64[np.ndarray, "n"]
    common: Int64[np.ndarray, "n"]

    def dice(self, number: int) -> float:
        """Dice of a class; ``nan`` if it is in neither map."""
        if number >= len(self.reference):
            return float("nan")
        total = int(self.reference[number] + self.prediction[number])
        return 2 * int(self.common[number]) / total if total else float("nan")


def count_voxels(prediction: Labels, reference: Labels) -> Counts:
    """Voxels of every class, apart and in common.

    Memory stays at a slice: neither map is copied.
    """
    size = int(max(prediction.max(initial=0), reference.max(initial=0))) + 1
    counts = np.zeros((3, size), np.int64)
    for ours, theirs in _slices(prediction, reference):
        counts[0] += np.bincount(theirs, minlength=size)
        counts[1] += np.bincount(ours, minlength=size)
        counts[2] += np.bincount(theirs[ours == theirs], minlength=size)
    return Counts(*counts)


def dice(prediction: Labels, reference: Labels, classes: Sequence[int]) -> dict[int, float]:
    """Dice of each class, from 0 to 1; ``nan`` for a class that is in neither map.

    Args:
        prediction: Predicted class numbers.
        reference: True class numbers, on the same grid.
        classes: Which class numbers.
    """
    counts = count_voxels(prediction, reference)
    return {number: counts.dice(number) for number in classes}


def _slices(
    prediction: Labels, reference: Labels
) -> Iterator[tuple[Integer[np.ndarray, "n"], Integer[np.ndarray, "n"]]]:
    """Both maps slice by slice, across the axis along which memory runs slowest."""
    axis = int(np.argmax(np.abs(reference.strides)))
    for ours, theirs in zip(
        np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), strict=True
    ):
        yield ours.ravel().astype(np.intp), theirs.ravel().astype(np.intp)
