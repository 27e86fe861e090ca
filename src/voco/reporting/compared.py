"""What a comparison measured, and what follows from it: read from its tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco.config import read_yaml
from voco.evaluation.comparisons import (
    RECIPE_FILE,
    Cost,
    LeakCheck,
    Value,
    read_costs,
    read_leak_check,
    read_values,
)
from voco.evaluation.standing import Cell, Gain, Rank, Results, Row, cells, gains, ranks
from voco.reporting import words


@dataclass(frozen=True)
class ComparisonTables:
    """What a comparison measured, and what follows from it.

    Attributes:
        folder: Where its tables are.
        recipe: ``comparison.yaml``; empty if it is not there.
        values: ``table.csv``.
        costs: ``runs.csv``.
        cells: Means.
        gains: Over scratch.
        rivals: Gains over the row that the recipe names.
        ranks: By the metric that counts, where there are more than two rows.
        metric: That metric.
        leaks: ``leaks.json``, if it is there.
    """

    folder: Path
    recipe: dict[str, Any]
    values: list[Value]
    costs: list[Cost]
    cells: list[Cell]
    gains: list[Gain]
    rivals: list[Gain]
    ranks: list[Rank]
    metric: str
    leaks: LeakCheck | None = None

    @property
    def against(self) -> str | None:
        """The method that the others are tested against, beside scratch."""
        return self.recipe.get("against")


def read_comparison(folder: Path) -> ComparisonTables:
    """Read the tables of a comparison and work out what follows.

    Raises:
        DataError: If a table is damaged.
    """
    file = folder / RECIPE_FILE
    recipe = read_yaml(file) if file.is_file() else {}
    values, costs = read_values(folder), read_costs(folder)
    results = Results(values)
    metric = next((name for name in ("dice", *results.metrics) if name in results.metrics), "dice")
    against = recipe.get("against")
    return ComparisonTables(
        folder,
        recipe,
        values,
        costs,
        cells(results),
        gains(results),
        gains(results, against) if against else [],
        [rank for rank in ranks(results, metric) if rank.rows > 2],
        metric,
        read_leak_check(folder),
    )


def row_name(row: Row, tables: ComparisonTables) -> str:
    """The method; with what it handed over, if it did that in two ways."""
    several = len({cell.row.handover for cell in tables.cells if cell.row.method == row.method}) > 1
    return f"{row.method}, {row.handover}" if several else row.method


def labels_name(labels: str) -> str:
    """``5 labels``."""
    return "all labels" if labels == "all" else f"{labels} labels"


def metric_name(metric: str) -> str:
    """A metric as it begins a sentence."""
    name = words.METRICS.get(metric, words.plain(metric))
    return name[:1].upper() + name[1:]
