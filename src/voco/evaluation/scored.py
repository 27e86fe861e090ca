"""Class scores of whole scans, and their targets, as tables on disk.

``scores.csv`` has a column ``case`` and one column of scores per class, in the order of the class
numbers and headed by their names; columns ``predicted``, ``target`` and ``scan`` are not scores.
Targets are a CSV with the columns ``case`` (or ``id``) and ``target``: a class name, or its
number. A store tells targets as well.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voco.data.store import Store
from voco.errors import DataError
from voco.evaluation import classification
from voco.evaluation.classification import ClassScores, Targets
from voco.evaluation.statistics import bootstrap_statistic, compare
from voco.evaluation.summary import comparison_entry, number, summary_entry
from voco.evaluation.tables import Score, read_rows

_NOT_SCORES = frozenset({"case", "id", "predicted", "prediction", "target", "scan", "source"})


class Scored(NamedTuple):
    """Scored cases.

    Attributes:
        cases: Their names.
        classes: Names of the classes.
        scores: One row per case, one column per class.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    scores: ClassScores

    def rows(self, cases: list[str]) -> ClassScores:
        """The scores of some cases, in their order."""
        place = {case: row for row, case in enumerate(self.cases)}
        return self.scores[[place[case] for case in cases]]


def scores_file(predictions: Path) -> Path | None:
    """The table of class scores that a path names, or ``None`` if it names masks."""
    if predictions.suffix.lower() == ".csv":
        return predictions
    file = predictions / "scores.csv"
    return file if file.is_file() else None


def read_class_scores(file: Path) -> Scored:
    """Read class scores.

    Raises:
        DataError: If a column is missing, a score is no finite number, or a case comes twice.
    """
    rows = read_rows(file, required=("case",))
    if not rows:
        raise DataError(f"{file}: holds no case.")
    classes = tuple(name for name in rows[0] if name.lower() not in _NOT_SCORES)
    if len(classes) < 2:
        raise DataError(
            f"{file}: needs a column of scores for each of at least two classes; "
            f"its columns are {', '.join(rows[0])}."
        )
    scores = [
        [_score(row[name], name, file, line) for name in classes] for line, row in _lines(rows)
    ]
    cases = tuple(row["case"] for row in rows)
    _refuse_doubles(cases, file)
    return Scored(cases, classes, np.array(scores, float))


def read_targets(references: Path) -> dict[str, str]:
    """The target of every case, as written, from a CSV or a store.

    Raises:
        DataError: If there are none, or a case comes twice.
    """
    if (references / "store.json").is_file():
        cases = Store(references).cases.values()
        found = {case.id: str(case.target) for case in cases if case.target is not None}
        if not found:
            raise DataError(f"{references}: no case of this store has a target.")
        return found
    rows = read_rows(references, required=("target",))
    key = next((name for name in ("case", "id") if rows and name in rows[0]), None)
    if key is None:
        raise DataError(f"{references}: needs the columns 'case' and 'target', and a row per case.")
    _refuse_doubles(tuple(row[key] for row in rows), references)
    return {row[key]: row["target"].strip() for row in rows if row["target"].strip()}


def class_numbers(targets: dict[str, str], classes: tuple[str, ...], source: Path) -> Targets:
    """Targets as class numbers: names of classes, or their numbers.

    Raises:
        DataError: If a target is neither.
    """
    numbers = []
    for case, target in targets.items():
        if target in classes:
            numbers.append(classes.index(target))
        elif target.isdigit() and int(target) < len(classes):
            numbers.append(int(target))
        else:
            raise DataError(
                f"{source}: case {case} has the target '{target}'; the scores know the classes "
                f"{', '.join(f'{number} = {name}' for number, name in enumerate(classes))}."
            )
    return np.array(numbers, np.int64)


def unmatched(
    file: Path, table: Scored, targets: dict[str, str], references: Path
) -> Iterator[tuple[str, str]]:
    """Cases that only one of the two knows, and which."""
    for case in targets:
        if case not in table.cases:
            yield (case, f"no scores in {file}")
    for case in table.cases:
        if case not in targets:
            yield (case, f"no target in {references}")


def summarised(
    targets: Targets,
    scores: ClassScores,
    classes: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """What ``summary.json`` holds of a set of cases, all under the structure ``all``."""
    entries = {
        name: summary_entry(summary)
        for name, summary in classification.summarise(targets, scores, seed).items()
    }
    undefined = [
        f"{name} is not defined: a class has no case"
        for name, entry in entries.items()
        if entry["mean"] is None
    ]
    return {
        "mean": entries,
        "structures": {"all": entries},
        "classes": list(classes),
        "confusion": classification.confusion(targets, scores).tolist(),
        "notes": undefined,
    }


def compared(
    targets: Targets,
    first: ClassScores,
    second: ClassScores,
    seed: int,
) -> dict[str, Any]:
    """Differences of the set's figures; accuracy, a mean over cases, is tested as well."""
    entries = {}
    for name, metric in classification.METRICS.items():
        gap = bootstrap_statistic(_difference(metric, targets, first, second), len(targets), seed)
        entries[name] = {
            "cases": gap.cases,
            "first": number(metric(targets, first)),
            "second": number(metric(targets, second)),
            "difference": number(gap.mean),
            "interval": [number(gap.low), number(gap.high)],
        }
    hits = [(table.argmax(axis=1) == targets).astype(float) for table in (first, second)]
    entries["accuracy"] = comparison_entry(compare(hits[0], hits[1], seed))
    return {"mean": entries, "structures": {"all": entries}}


def _difference(
    metric: Callable[[Targets, ClassScores], float],
    targets: Targets,
    first: ClassScores,
    second: ClassScores,
) -> Callable[[np.ndarray], float]:
    def difference(rows: np.ndarray) -> float:
        return metric(targets[rows], first[rows]) - metric(targets[rows], second[rows])

    return difference


def score_rows(
    cases: Iterable[str],
    targets: Targets,
    scores: ClassScores,
    classes: tuple[str, ...],
) -> list[Score]:
    """Per case, whether its highest score is at its true class (the structure)."""
    hits = scores.argmax(axis=1) == targets
    return [
        Score(case, classes[target], "correct", float(hit))
        for case, target, hit in zip(cases, targets.tolist(), hits.tolist(), strict=True)
    ]


def _lines(rows: list[dict[str, str]]) -> list[tuple[int, dict[str, str]]]:
    return list(enumerate(rows, start=2))


def _score(text: str, name: str, file: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{file}, line {line}: '{text}' in column '{name}' is no finite number.")
    return value


def _refuse_doubles(cases: tuple[str, ...], file: Path) -> None:
    doubles = sorted({case for case in cases if cases.count(case) > 1})
    if doubles:
        raise DataError(f"{file}: more than one row for {', '.join(doubles[:5])}.")
