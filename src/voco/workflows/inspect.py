"""A weight file to its passport."""

from collections.abc import Sequence
from pathlib import Path

from voco.backbones import available
from voco.errors import UsageError
from voco.weights import Passport, passport


def inspect(path: Path | str, against: Sequence[str] = ()) -> Passport:
    """Say what weights are, where they came from, and what of them fits. Runs none of their code.

    Args:
        path: A run folder, a checkpoint of a run, or a weight file of anybody.
        against: Names of backbones to compare it with; the one that it is of if none is named.

    Raises:
        WeightsError: If it cannot be read, or not safely.
        UsageError: If there is no such backbone.
    """
    strange = [name for name in against if name not in available()]
    if strange:
        raise UsageError(
            f"no backbone '{strange[0]}'. The backbones are: {', '.join(available())}."
        )
    return passport(Path(path), tuple(against))
