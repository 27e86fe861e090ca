"""Sections about evaluations: the outcome, the figures per structure, the cases."""

from collections.abc import Mapping, Sequence
from typing import Any

from voco.evaluation.convention import Convention, convention_of
from voco.evaluation.summary import summarised
from voco.evaluation.tables import Score, by_structure, mean_over_structures
from voco.figures import Dots, draw_dots, draw_pairs
from voco.reporting import words
from voco.reporting.page import Picture, Section, Table, chart, photograph
from voco.reporting.tables import EvaluationTables

_HEADINGS = {"dice": "Dice ↑", "nsd": "NSD ↑", "hd95": "HD95 in mm ↓"}


def evaluation_section(tables: EvaluationTables) -> Section:
    """What was measured, and, where two were measured, how they compare."""
    classifies = tables.summary.get("task") == "classification"
    section = Section(_title(tables))
    if tables.comparison:
        section.lead += words.outcome(tables.comparison)
        section.lead.append(
            "Each side is one training run: the interval tells what other cases would give, not "
            "what another seed would."
        )
    elif tables.summary:
        section.lead.append(words.measured(tables.summary))
    section.warnings += _warnings(tables)
    if classifies:
        section.tables += _class_tables(tables)
    else:
        section.pictures += _charts(tables)
        section.tables += _structure_tables(tables)
    overlays = tables.folder / "overlays.png"
    if overlays.is_file():
        caption = "Lines: reference. Tinted areas: prediction. Slices that meet most structures."
        section.pictures.append(photograph(overlays, "Scans with both label maps", caption))
    section.facts += _facts(tables)
    return section


def apart(found: Sequence[EvaluationTables]) -> list[str]:
    """A warning where evaluations on one page were measured in different ways."""
    ways = {str(one) for tables in found if (one := _convention(tables)) is not None}
    if len(ways) < 2:
        return []
    return [
        f"This page holds evaluations of {len(ways)} conventions ({'; '.join(sorted(ways))}): "
        "their figures do not compare."
    ]


def _convention(tables: EvaluationTables) -> Convention | None:
    return convention_of(tables.summary, f"{tables.folder.name}/summary.json")


def _title(tables: EvaluationTables) -> str:
    if tables.comparison:
        return " against ".join(tables.comparison["names"])
    return f"Evaluation of {tables.summary.get('name', tables.folder.name)}"


def _warnings(tables: EvaluationTables) -> list[str]:
    problems = tables.summary.get("problems", [])
    lines = [f"Not measured: {each['case']}: {each['reason']}" for each in problems[:20]]
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines)} more, in summary.json.")
    lines += _learnt_from(tables)
    lines += [f"{note[:1].upper()}{note[1:]}." for note in tables.summary.get("notes", [])]
    left_out = (tables.comparison or {}).get("left_out", {})
    lines += [
        f"{words.METRICS.get(metric, metric)}: {words.count(number, 'time')} only one side has a "
        "finite value for a structure of a case; there both are left out of the comparison."
        for metric, number in left_out.items()
    ]
    return lines


def _learnt_from(tables: EvaluationTables) -> list[str]:
    """Cases that are no test of the first network, or of the second."""
    comparison = tables.comparison or {}
    names = comparison.get("names") or [tables.summary.get("name", "The network")]
    parts = [tables.summary.get("seen", {}), comparison.get("seen", {})]
    return [
        f"{name} has learnt from {len(seen)} of these cases ({words.listed(list(seen))}): their "
        "figures say nothing about new cases."
        for name, seen in zip(names, parts, strict=False)
        if seen
    ]


def _charts(tables: EvaluationTables) -> list[Picture]:
    names = (tables.comparison or {}).get("names") or [tables.summary.get("name", "")]
    parts = [tables.scores, *([tables.against] if tables.against else [])]
    methods = [_dots(name, scores) for name, scores in zip(names, parts, strict=False)]
    if not any(method.means for method in methods):
        return []
    dots = draw_dots(methods, "Dice by structure", limits=(0.0, 1.0))
    caption = "Large dots: means, with their 95 % intervals. Small dots: cases."
    pictures = [chart(dots, caption, wide=True)]
    if tables.against:
        first, second = (mean_over_structures(by_structure(part)).get("dice", {}) for part in parts)
        caption = (
            "One line per case: its mean Dice with each. Black: the mean over cases. "
            f"Orange: cases in which {names[0]} is lower."
        )
        pairs = draw_pairs(first, second, (names[0], names[1]), "Mean Dice of each case")
        pictures.append(chart(pairs, caption, wide=True))
    return pictures


def _dots(name: str, scores: Sequence[Score]) -> Dots:
    dice = [score for score in scores if score.metric == "dice"]
    entries = summarised(dice)["structures"]
    means = {
        words.plain(structure): _ends(metrics["dice"])
        for structure, metrics in entries.items()
        if metrics["dice"]["mean"] is not None
    }
    cases = {
        words.plain(structure): list(metrics["dice"].values())
        for structure, metrics in by_structure(dice).items()
    }
    return Dots(name, means, cases)


def _ends(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = entry["interval"]
    missing = float("nan")
    return (entry["mean"], missing if low is None else low, missing if high is None else high)


def _structure_tables(tables: EvaluationTables) -> list[Table]:
    summary = tables.summary
    metrics = list(summary.get("mean", {}))
    if not metrics:
        return []
    tolerance = summary.get("tolerance_mm")
    found = [_comparison_table(tables.comparison)] if tables.comparison else []
    rows = [
        [
            words.plain(structure),
            *(words.estimate(entries[metric], unit=False) for metric in metrics),
            _cases(structure, entries, summary),
        ]
        for structure, entries in summary["structures"].items()
    ]
    total = [
        "all structures",
        *(words.estimate(summary["mean"][metric], unit=False) for metric in metrics),
    ]
    name = summary.get("name", "")
    note = (
        f"Mean over cases and 95 % bootstrap interval. NSD: share of the surfaces that agree "
        f"within {tolerance:g} mm. HD95: in mm, lower is better, means leave out structures that "
        "were missed altogether. Cases: those that the mean of Dice stands on; missed: in the "
        "reference, not in the prediction; made up: the other way round (both have Dice 0)."
        if tolerance is not None
        else ""
    )
    headings = [_HEADINGS.get(metric, metric) for metric in metrics]
    columns = ["structure", *headings, "cases"]
    rows.append([*total, str(summary["mean"][metrics[0]]["cases"])])
    title = f"Metrics of {name}" if name else "Metrics"
    return [*found, Table(title, columns, rows, note, folded=bool(found))]


def _cases(structure: str, entries: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Cases that count, and how many of them were missed or made up."""
    said = [str(next(iter(entries.values()))["cases"])]
    for kind, word in (("misses", "missed"), ("false_positives", "made up")):
        if number := len(summary.get(kind, {}).get(structure, ())):
            said.append(f"{number} {word}")
    return ", ".join(said)


def _comparison_table(comparison: Mapping[str, Any]) -> Table:
    first, second = comparison["names"]
    metric = words.primary(comparison["mean"]) or "dice"
    rows = [
        [
            words.plain(structure),
            words.value(entries[metric]["first"]),
            words.value(entries[metric]["second"]),
            words.difference(entries[metric]),
            words.p_value(entries[metric].get("holm_p")),
        ]
        for structure, entries in comparison["structures"].items()
        if metric in entries
    ]
    total = comparison["mean"][metric]
    rows.append(
        [
            "all structures",
            words.value(total["first"]),
            words.value(total["second"]),
            words.difference(total),
            words.p_value(total.get("permutation_p")),
        ]
    )
    name = words.METRICS.get(metric, metric)
    return Table(
        f"{name}, case by case",
        ["structure", first, second, "difference", "p"],
        rows,
        "Brackets: 95 % bootstrap interval of the mean difference. p: two-sided sign-flip test; "
        "of single structures adjusted for their number (Holm).",
    )


def _class_tables(tables: EvaluationTables) -> list[Table]:
    summary, found = tables.summary, []
    if tables.comparison:
        first, second = tables.comparison["names"]
        rows = [
            [
                words.METRICS.get(metric, metric),
                words.value(entry["first"]),
                words.value(entry["second"]),
                words.difference(entry),
                words.p_value(entry.get("permutation_p")),
            ]
            for metric, entry in tables.comparison["mean"].items()
        ]
        columns = ["metric", first, second, "difference", "p"]
        found.append(Table("Both on the same cases", columns, rows))
    rows = [
        [words.METRICS.get(metric, metric), words.estimate(entry)]
        for metric, entry in summary.get("mean", {}).items()
    ]
    found.append(Table("Metrics", ["metric", "value [95 % interval]"], rows))
    classes = summary.get("classes", [])
    rows = [
        [name, *map(str, row)]
        for name, row in zip(classes, summary.get("confusion", []), strict=True)
    ]
    columns = ["true class", *(f"said {name}" for name in classes)]
    found.append(Table("Cases of each class, and what was said of them", columns, rows))
    return found


def _facts(tables: EvaluationTables) -> list[tuple[str, str]]:
    summary = tables.summary
    facts = [
        ("measured", _convention(tables)),
        ("predictions", summary.get("predictions")),
        ("against", (tables.comparison or {}).get("against")),
        ("references", summary.get("references")),
        ("cases measured", summary.get("cases")),
        ("tables", f"{tables.folder.name}/metrics.csv, summary.json"),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]
