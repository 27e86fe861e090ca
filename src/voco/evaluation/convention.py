"""By which convention masks were compared. Figures of two conventions never share a table.

Dice with the background counted as a structure is higher than without, a coarse grid forgives what
a fine one does not, and unions of labels are easier than single labels. So every evaluation
records what was done, and what joins evaluations refuses to mix.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from voco.config import Config, parse
from voco.errors import DataError, UsageError
from voco.shapes import Spacing


class Convention(Config):
    """How masks are compared."""

    grid: Literal["native", "resampled"] = "native"
    """``native``: on the grid of the reference. ``resampled``: both brought to ``spacing_mm``."""
    spacing_mm: Spacing | None = None
    """Of the resampled grid."""
    background: bool = False
    """Whether label 0 counts as a structure, and so in means over structures."""
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Unions of label values that are the structures; single labels are where it is empty."""

    def __str__(self) -> str:
        grid = "on the grid of the reference"
        if self.spacing_mm is not None:
            grid = f"resampled to {' x '.join(f'{side:g}' for side in self.spacing_mm)} mm"
        background = "with background" if self.background else "without background"
        parts = [f"{name} = {'+'.join(map(str, v))}" for name, v in self.regions.items()]
        return ", ".join([grid, background, *([f"regions {', '.join(parts)}"] if parts else [])])


def convention(
    spacing_mm: Spacing | None, regions: Mapping[str, tuple[int, ...]], *, background: bool
) -> Convention:
    """A convention that makes sense.

    Raises:
        UsageError: If it does not.
    """
    if spacing_mm is not None and not all(0 < side < float("inf") for side in spacing_mm):
        raise UsageError(f"spacing_mm {spacing_mm}: must be positive.")
    if background and regions:
        raise UsageError("regions are unions of labels, so there is no background beside them.")
    empty = [name for name, values in regions.items() if not values or min(values) < 1]
    if empty:
        raise UsageError(f"region {empty[0]}: needs at least one label value, none below 1.")
    return Convention(
        grid="native" if spacing_mm is None else "resampled",
        spacing_mm=spacing_mm,
        background=background,
        regions=dict(regions),
    )


def convention_of(summary: Mapping[str, Any], source: str) -> Convention | None:
    """The convention that a ``summary.json`` records; ``None`` for one of class scores.

    One that records none is of a version that knew a single convention, the default.

    Raises:
        ConfigError: If the record is damaged.
    """
    if summary.get("task") == "classification":
        return None
    return parse(Convention, summary.get("convention") or {}, f"{source}: convention")


def refuse_mixed(found: Iterable[tuple[str, Convention | None]]) -> None:
    """Make sure that what is to be put into one table was measured in one way.

    Args:
        found: Names of evaluations, and their conventions.

    Raises:
        DataError: Naming two that differ.
    """
    first: tuple[str, Convention] | None = None
    for name, one in found:
        if one is None:
            continue
        first = first or (name, one)
        if one != first[1]:
            raise DataError(
                f"{first[0]} was measured {first[1]}, {name} {one}: figures of two conventions do "
                "not compare. Evaluate both in one way."
            )
