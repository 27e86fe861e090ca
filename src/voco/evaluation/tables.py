"""The tidy table of metrics: one value per row, read and written as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from voco.data.store import write_atomically
from voco.errors import DataError

SEEN = "seen.csv"
"""Table beside predictions: which scans the network has learnt from, with the columns ``case`` and
``stage``: the training; empty for a new scan, ``unknown`` where the weights do not tell."""


class Score(NamedTuple):
    """One value of one metric.

    Attributes:
        case: Name of the case.
        structure: Name of the structure.
        metric: Name of the metric.
        value: ``nan`` where it is not defined, ``inf`` for the distance to something absent.
        unit: ``mm``, or empty.
    """

    case: str
    structure: str
    metric: str
    value: float
    unit: str = ""


def write_scores(file: Path, scores: Iterable[Score]) -> None:
    """Write a metrics table, whole or not at all."""
    rows = [[*score[:3], number_text(score.value), score.unit] for score in scores]
    write_rows(file, Score._fields, rows)


def read_scores(file: Path) -> list[Score]:
    """Read a metrics table.

    Raises:
        DataError: If the file is missing, lacks a column, or holds something else than a number.
    """
    scores = []
    for line, row in enumerate(read_rows(file, required=Score._fields), start=2):
        try:
            value = float(row["value"])
        except ValueError:
            raise DataError(f"{file}, line {line}: '{row['value']}' is not a number.") from None
        scores.append(Score(row["case"], row["structure"], row["metric"], value, row["unit"]))
    return scores


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write any table as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(file, text.getvalue().encode("utf-8"))


def read_rows(file: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read any table with a header line.

    Args:
        file: A CSV file.
        required: Columns that must be there.

    Raises:
        DataError: If the file is missing, is not text, or lacks a column or a value.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error}).") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    absent = [name for name in required if name not in columns]
    if absent:
        raise DataError(
            f"{file}: has no column {' or '.join(repr(name) for name in absent)}; "
            f"its columns are {', '.join(columns) or 'none'}."
        )
    rows = list(reader)
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{file}, line {line}: has not as many values as columns.")
    return rows


def read_seen(predictions: Path) -> dict[str, str]:
    """Scans that were learnt from, and in which training; empty where nothing tells.

    Args:
        predictions: The folder that a network's predictions are in.

    Raises:
        DataError: If the table is malformed.
    """
    file = predictions / SEEN
    rows = read_rows(file, required=("case", "stage")) if file.is_file() else []
    return {row["case"]: row["stage"] for row in rows if row["stage"] not in {"", "unknown"}}


def by_structure(
    scores: Iterable[Score],
) -> dict[str, dict[str, dict[str, float]]]:
    """Values by structure, then metric, then case, in the order of their first row."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for score in scores:
        metrics = table.setdefault(score.structure, {})
        metrics.setdefault(score.metric, {})[score.case] = score.value
    return table


def mean_over_structures(
    table: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """By metric and case, the mean over the structures whose value is finite.

    ``nan`` where no structure of the case has a finite value.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for metrics in table.values():
        for metric, cases in metrics.items():
            for case, value in cases.items():
                kept = values.setdefault(metric, {}).setdefault(case, [])
                if math.isfinite(value):
                    kept.append(value)
    return {
        metric: {case: _mean(kept) for case, kept in cases.items()}
        for metric, cases in values.items()
    }


def number_text(value: float) -> str:
    """A number as a table holds it: six significant digits, ``nan``, ``inf``."""
    return f"{value:.6g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
