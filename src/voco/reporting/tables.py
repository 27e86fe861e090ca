"""What lies in the folders that a report is about."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco.config import read_yaml
from voco.errors import DataError, UsageError
from voco.evaluation.tables import Score, read_rows, read_scores

Line = dict[str, Any]
"""One line of a log."""


@dataclass(frozen=True)
class RunTables:
    """The tables of a run folder; what is not there is empty.

    Attributes:
        folder: The folder.
        recipe: ``recipe.yaml``.
        environment: ``environment.json``.
        log: ``log.jsonl``, whole lines only.
        notes: ``handover.json``, ``cases.json`` and ``weights.json`` by their names.
    """

    folder: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    log: list[Line]
    notes: dict[str, dict[str, Any]]

    @property
    def pretrains(self) -> bool:
        """Whether this is a run of pre-training, not of fine-tuning."""
        return "method" in self.recipe

    @property
    def steps(self) -> tuple[int, int]:
        """Logged steps, and steps of the recipe."""
        return (self.log[-1]["step"] if self.log else 0, int(self.recipe.get("steps", 0)))


@dataclass(frozen=True)
class EvaluationTables:
    """The tables of an evaluation.

    Attributes:
        folder: The folder.
        summary: ``summary.json``.
        scores: ``metrics.csv``.
        comparison: ``comparison.json``, if there is one.
        against: ``against.csv``, the metrics of the second predictions.
    """

    folder: Path
    summary: dict[str, Any]
    scores: list[Score]
    comparison: dict[str, Any] | None
    against: list[Score]


@dataclass(frozen=True)
class ProbeTables:
    """The tables of a probe.

    Attributes:
        folder: The folder.
        summary: ``probe.json``.
        rows: ``probe.csv``.
    """

    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Found:
    """What a report is about."""

    pretraining: list[RunTables]
    finetuning: list[RunTables]
    evaluations: list[EvaluationTables]
    probes: list[ProbeTables]


def find_tables(folder: Path) -> Found:
    """The runs and evaluations in a folder: itself, or the folders in it.

    Raises:
        UsageError: If there are none.
        DataError: If a table is damaged; names it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder.")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    runs = [_read_run(place) for place in places if (place / "recipe.yaml").is_file()]
    evaluations = [_read_evaluation(p) for p in places if (p / "metrics.csv").is_file()]
    # The table alone is a probe that was killed while it wrote.
    probes = [
        ProbeTables(p, _json(p / "probe.json"), read_rows(p / "probe.csv"))
        for p in places
        if (p / "probe.csv").is_file() and (p / "probe.json").is_file()
    ]
    if not (runs or evaluations or probes):
        raise UsageError(
            f"{folder}: holds nothing to report on: neither it nor a folder in it has a "
            "recipe.yaml (a run), a metrics.csv (an evaluation) or a probe.csv (a probe)."
        )
    return Found(
        [run for run in runs if run.pretrains],
        [run for run in runs if not run.pretrains],
        evaluations,
        probes,
    )


def _read_run(folder: Path) -> RunTables:
    names = ("handover", "cases", "weights")
    return RunTables(
        folder,
        read_yaml(folder / "recipe.yaml"),
        _json(folder / "environment.json"),
        list(_lines(folder / "log.jsonl")),
        {name: _json(folder / f"{name}.json") for name in names},
    )


def _read_evaluation(folder: Path) -> EvaluationTables:
    against = folder / "against.csv"
    return EvaluationTables(
        folder,
        _json(folder / "summary.json"),
        read_scores(folder / "metrics.csv"),
        _json(folder / "comparison.json") or None,
        read_scores(against) if against.is_file() else [],
    )


def _lines(file: Path) -> Iterator[Line]:
    """The lines of a log; a last one without its end is of a process that was killed."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            yield _parsed(line, f"{file}, line {number}")


def _json(file: Path) -> dict[str, Any]:
    return _parsed(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: damaged ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{place}: holds {type(values).__name__}; expected keys and values.")
    return values
