"""Predictions against references: a table of metrics, means with intervals, a paired comparison."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voco.data.imageio import read_image, read_label
from voco.data.listings import stem
from voco.data.preprocess import resample
from voco.data.store import write_atomically
from voco.errors import DataError, UsageError
from voco.evaluation import matching, scored
from voco.evaluation.convention import Convention, convention
from voco.evaluation.overlap import Counts, count_voxels
from voco.evaluation.segmentation import METRICS, UNITS, measure, measure_regions
from voco.evaluation.summary import compared, summarised
from voco.evaluation.tables import (
    Score,
    by_structure,
    mean_over_structures,
    read_seen,
    write_scores,
)
from voco.progress import track
from voco.shapes import Spacing

OUTPUTS = ("metrics.csv", "summary.json", "comparison.json", "against.csv", "overlays.png")
"""Files that an evaluation writes; ``comparison.json`` and ``against.csv`` only with ``against``,
``overlays.png`` only with ``images``."""


class Problem(NamedTuple):
    """A case that could not be measured, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """What came out of an evaluation.

    Attributes:
        folder: Where the tables are.
        scores: One value per case, structure and metric.
        summary: What ``summary.json`` holds.
        comparison: What ``comparison.json`` holds, if a comparison was asked for.
        problems: What could not be measured.
    """

    folder: Path
    scores: list[Score]
    summary: dict[str, Any]
    comparison: dict[str, Any] | None
    problems: list[Problem]

    @property
    def complete(self) -> bool:
        """Whether everything was measured."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.summary['cases']} cases measured: {self.folder / 'metrics.csv'}"]
        lines += [_mean_line(name, entry) for name, entry in self.summary["mean"].items()]
        if self.comparison:
            first, second = self.comparison["names"]
            lines += [f"{first} minus {second}, on the same cases:"]
            lines += [_mean_line(name, e) for name, e in self.comparison["mean"].items()]
        if self.summary["cases"] < _FEW:
            lines += [f"intervals over fewer than {_FEW} cases are too narrow to be relied on"]
        if seen := list(self.summary.get("seen", {})):
            few = ", ".join(seen[:5]) + (", ..." if seen[5:] else "")
            lines.append(
                f"{len(seen)} of these cases were learnt from ({few}): their figures say nothing "
                "about new cases"
            )
        lines += [f"not measured: {case}: {reason}" for case, reason in self.problems]
        return "\n".join(lines)


@dataclass
class Measured:
    """What was measured of one folder of predictions."""

    scores: list[Score] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    misses: dict[str, list[str]] = field(default_factory=dict)
    """By structure: cases that have it and whose prediction has not."""
    false_positives: dict[str, list[str]] = field(default_factory=dict)
    """By structure: cases that have it not and whose prediction has."""
    seen: dict[str, str] = field(default_factory=dict)
    """Cases that the network has learnt from, and in which training."""

    @property
    def cases(self) -> list[str]:
        """Cases that were measured."""
        return list(dict.fromkeys(score.case for score in self.scores))


def evaluate(  # noqa: PLR0913 (one argument per option)
    predictions: Path | str,
    references: Path | str,
    out: Path | str,
    *,
    against: Path | str | None = None,
    names: tuple[str, str] | None = None,
    images: Path | str | None = None,
    tolerance_mm: float = 2.0,
    seed: int = 0,
    overwrite: bool = False,
    regions: Mapping[str, tuple[int, ...]] | None = None,
    background: bool = False,
    spacing_mm: Spacing | None = None,
) -> Evaluation:
    """Measure predictions against references.

    Masks: Dice, HD95 (mm) and NSD of every structure of every case, on the grid of the reference,
    without background: the convention, which ``summary.json`` records.
    Class scores (``scores.csv``): accuracy, balanced accuracy, AUROC and F1 of the whole set.

    Args:
        predictions: Folder of masks, or a table of class scores, or the folder that holds it.
        references: Folder of masks (of a Decathlon folder, ``labelsTr``), a CSV with the columns
            ``case`` and ``label`` that names them, or a CSV of targets.
        out: Folder to write ``metrics.csv`` and ``summary.json`` into.
        against: Second predictions of the same cases: both are compared case by case, and
            ``comparison.json`` and ``against.csv`` (their metrics) are written.
        names: What to call the first and the second predictions; their folders' names if not
            given.
        images: Folder of the scans, for pictures of the best, the median and the worst case.
        tolerance_mm: Distance within which two surfaces agree (NSD).
        seed: Of the bootstrap.
        overwrite: Replace the tables that are there.
        regions: Unions of label values to measure instead of single labels, such as
            ``{"TC": (1, 4)}``; what ``labels.json`` beside the predictions says for ``None``.
        background: Whether label 0 counts as a structure (its Dice only).
        spacing_mm: Bring both masks to this spacing before they are compared.

    Returns:
        The tables, and every case that could not be measured.

    Raises:
        UsageError: If ``out`` holds an evaluation, no prediction fits any reference, or the
            convention makes no sense.
        DataError: If class names contradict each other, or a table is malformed.
    """
    predictions, references, out = Path(predictions), Path(references), Path(out)
    against = None if against is None else Path(against)
    _check(out, tolerance_mm, overwrite=overwrite)
    called = names or _names(predictions, against)
    file = scored.scores_file(predictions)
    if file is None:
        chosen = _regions(predictions, against) if regions is None else regions
        how = convention(spacing_mm, chosen, background=background)
        done = _masks(predictions, references, against, how, tolerance_mm, seed)
    else:
        if regions or background or spacing_mm:
            raise UsageError("regions, background and spacing_mm are about masks, not scores.")
        done = _classes(file, references, against, seed)
    summary, comparison, tables, problems = done
    summary = {
        "task": "segmentation" if file is None else "classification",
        "name": called[0],
        "predictions": str(predictions),
        "references": str(references),
        "seed": seed,
        "problems": [problem._asdict() for problem in problems],
        **summary,
    }
    if comparison is not None:
        comparison = {"names": list(called), "against": str(against), "seed": seed, **comparison}
    out.mkdir(parents=True, exist_ok=True)
    _write(out, summary, comparison, tables)
    if images is not None and file is None:
        _draw(out, tables[0], predictions, references, Path(images))
    return Evaluation(out, tables[0], summary, comparison, problems)


_FEW = 10
"""Cases below which a bootstrap is known to give intervals that are too narrow."""

Done = tuple[dict[str, Any], dict[str, Any] | None, list[list[Score]], list[Problem]]
"""Summary, comparison, tables (of the second predictions too), problems."""


def _check(out: Path, tolerance_mm: float, *, overwrite: bool) -> None:
    if tolerance_mm < 0:
        raise UsageError(f"tolerance_mm = {tolerance_mm}: must be 0 or more (mm).")
    there = [name for name in OUTPUTS if (out / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{out}: holds {', '.join(there)}. Give another folder, or --overwrite.")
    for name in there:
        (out / name).unlink()


def _names(predictions: Path, against: Path | None) -> tuple[str, str]:
    first, second = predictions.name, against.name if against else ""
    return (str(predictions), str(against)) if first == second else (first, second)


# --- masks ----------------------------------------------------------------------------------------


def _regions(predictions: Path, against: Path | None) -> dict[str, tuple[int, ...]]:
    """What ``labels.json`` says of the regions to measure.

    Raises:
        DataError: If it says different things beside two folders of predictions.
    """
    found = matching.regions_in(predictions)
    if against is not None and (other := matching.regions_in(against)) != found:
        raise DataError(
            f"{predictions}/labels.json names the regions {found}, {against}/labels.json {other}: "
            "figures of both would not compare. Say what to measure: --regions."
        )
    return found


def _masks(
    predictions: Path,
    references: Path,
    against: Path | None,
    how: Convention,
    tolerance_mm: float,
    seed: int,
) -> Done:
    truth = matching.find_masks(references)
    folders = [predictions, *([Path(against)] if against else [])]
    found = [_measured(folder, references, truth, how, tolerance_mm) for folder in folders]
    first = found[0]
    summary = {
        "cases": len(first.cases),
        "convention": how.model_dump(mode="json"),
        "tolerance_mm": tolerance_mm,
        "misses": first.misses,
        "false_positives": first.false_positives,
        "seen": first.seen,
        **summarised(first.scores, seed),
    }
    comparison = None
    if against:
        comparison = {"seen": found[1].seen, **compared(first.scores, found[1].scores, seed)}
    problems = [problem for measured in found for problem in measured.problems]
    return summary, comparison, [measured.scores for measured in found], problems


def _measured(
    predictions: Path,
    references: Path,
    truth: matching.Masks,
    how: Convention,
    tolerance_mm: float,
) -> Measured:
    """Every metric of a folder of predictions."""
    masks = matching.find_masks(predictions)
    pairs = matching.matched(masks, truth)
    if not pairs:
        raise UsageError(
            f"no file in {predictions} ({', '.join(list(masks)[:3])}, ...) has the name of a "
            f"reference in {references} ({', '.join(list(truth)[:3])}, ...)."
        )
    classes = matching.class_names(predictions, references)
    if how.background:
        classes = {0: "background", **classes}
    measured = Measured()
    for case in track(truth, "evaluate", len(truth)):
        if case not in pairs:
            reason = f"no prediction of this name in {predictions}"
            measured.problems.append(Problem(case, reason))
            continue
        try:
            _measure(case, pairs[case], truth[case], classes, how, tolerance_mm, measured)
        except DataError as error:
            measured.problems.append(Problem(case, str(error)))
    used = set(pairs.values())
    measured.problems += [
        Problem(name, f"{file}: no reference of this name in {references}")
        for name, file in masks.items()
        if file not in used
    ]
    measured.scores = _completed(measured.scores)
    seen = read_seen(predictions)
    measured.seen = {case: seen[stem(f)] for case, f in pairs.items() if stem(f) in seen}
    return measured


def _measure(
    case: str,
    prediction: Path,
    reference: Path,
    classes: dict[int, str],
    how: Convention,
    tolerance_mm: float,
    measured: Measured,
) -> None:
    """Add one case. Class numbers without a name get one, in ``classes`` too.

    Raises:
        DataError: If a file cannot be read, or the two lie on different grids.
    """
    ours, theirs = read_label(prediction), read_label(reference)
    if not matching.same_place(ours.grid, theirs.grid):
        raise DataError(
            f"{prediction} and {reference} lie on different grids: "
            f"{matching.described(ours.grid)}, against {matching.described(theirs.grid)}. "
            "Bring the prediction onto the reference's grid first."
        )
    if how.spacing_mm is not None:
        ours, theirs = (resample(mask, how.spacing_mm, label=True) for mask in (ours, theirs))
    masks = ours.array[0], theirs.array[0]
    spacing = theirs.grid.spacing_mm
    counts = count_voxels(*masks)
    if how.regions:
        measured.scores += measure_regions(
            case, *masks, spacing, how.regions, tolerance_mm=tolerance_mm
        )
        _note_presence(case, counts, how.regions, measured)
        return
    for value in np.flatnonzero(counts.reference + counts.prediction)[1:].tolist():
        classes.setdefault(value, f"class {value}")
    measured.scores += measure(case, *masks, spacing, classes, tolerance_mm=tolerance_mm)
    _note_presence(case, counts, {name: (value,) for value, name in classes.items()}, measured)


def _note_presence(
    case: str, counts: Counts, structures: Mapping[str, tuple[int, ...]], measured: Measured
) -> None:
    present = {*np.flatnonzero(counts.reference).tolist()}
    predicted = {*np.flatnonzero(counts.prediction).tolist()}
    for structure, values in structures.items():
        there, claimed = bool(present & {*values}), bool(predicted & {*values})
        if there and not claimed:
            measured.misses.setdefault(structure, []).append(case)
        if claimed and not there:
            measured.false_positives.setdefault(structure, []).append(case)


def _completed(scores: list[Score]) -> list[Score]:
    """A row for every case, structure and metric: a class met in one case is absent in others."""
    structures = dict.fromkeys(score.structure for score in scores)
    known = {(score.case, score.structure, score.metric): score for score in scores}
    return [
        known.get((case, structure, metric))
        or Score(case, structure, metric, float("nan"), UNITS[metric])
        for case in dict.fromkeys(score.case for score in scores)
        for structure in structures
        for metric in METRICS
    ]


# --- class scores ---------------------------------------------------------------------------------


def _classes(file: Path, references: Path, against: Path | None, seed: int) -> Done:
    targets = scored.read_targets(references)
    files = [file, *([_second(Path(against))] if against else [])]
    found = [scored.read_class_scores(each) for each in files]
    problems = [
        Problem(case, reason)
        for each, table in zip(files, found, strict=True)
        for case, reason in scored.unmatched(each, table, targets, references)
    ]
    shared = {
        case: target
        for case, target in targets.items()
        if all(case in table.cases for table in found)
    }
    if not shared:
        raise UsageError(f"no case of {file} has a target in {references}.")
    if len({table.classes for table in found}) > 1:
        raise DataError(f"{files[0]} and {files[1]} do not score the same classes.")
    classes = found[0].classes
    numbers = scored.class_numbers(shared, classes, references)
    scores = [table.rows(list(shared)) for table in found]
    seen = [
        {case: stage for case, stage in read_seen(each.parent).items() if case in shared}
        for each in files
    ]
    summary = {
        "cases": len(shared),
        "seen": seen[0],
        **scored.summarised(numbers, scores[0], classes, seed),
    }
    comparison = None
    if against:
        comparison = {"seen": seen[1], **scored.compared(numbers, scores[0], scores[1], seed)}
    tables = [scored.score_rows(shared, numbers, each, classes) for each in scores]
    return summary, comparison, tables, problems


def _second(against: Path) -> Path:
    file = scored.scores_file(against)
    if file is None:
        raise UsageError(f"{against}: holds no scores.csv to compare with.")
    return file


# --- files, pictures, words -----------------------------------------------------------------------


def _write(
    out: Path,
    summary: dict[str, Any],
    comparison: dict[str, Any] | None,
    tables: list[list[Score]],
) -> None:
    for name, table in zip(("metrics.csv", "against.csv"), tables, strict=False):
        write_scores(out / name, table)
    for name, content in (("comparison.json", comparison), ("summary.json", summary)):
        if content is not None:
            write_atomically(out / name, json.dumps(content, indent=2).encode())


def _draw(
    out: Path, scores: list[Score], predictions: Path, references: Path, images: Path
) -> None:
    """Pictures of the best, the median and the worst case by mean Dice."""
    from voco.figures import Overlay, draw_overlays  # noqa: PLC0415 (matplotlib takes a second)

    truth = matching.find_masks(references)
    masks = matching.matched(matching.find_masks(predictions), truth)
    scans = matching.matched(matching.find_masks(images), truth)
    classes = matching.class_names(predictions, references)
    means = mean_over_structures(by_structure(scores))["dice"]
    ranked = sorted((c for c in means if c in scans and means[c] >= 0), key=lambda c: -means[c])
    places = {0: "best", len(ranked) // 2: "median", len(ranked) - 1: "worst"} if ranked else {}
    overlays = [
        Overlay(
            f"{ranked[place]} ({word}, Dice {means[ranked[place]]:.2f})",
            read_image(scans[ranked[place]]),
            read_label(truth[ranked[place]]),
            read_label(masks[ranked[place]]),
        )
        for place, word in places.items()
    ]
    if overlays:
        draw_overlays(overlays, classes, out / "overlays.png")


def _mean_line(metric: str, entry: dict[str, Any]) -> str:
    value = entry["difference"] if "difference" in entry else entry["mean"]
    low, high = entry["interval"]
    known = next((unit for name, unit in UNITS.items() if name == metric), "")
    unit = f" {known}" if known else ""
    if value is None:
        return f"  {metric}: not defined"
    interval = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"  {metric}: {value:.3f}{unit}{interval}"
