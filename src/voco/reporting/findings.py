"""Sections about a comparison: who was better, by how much, and how sure that is."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from voco.evaluation.comparisons import WHOLE_SET, Cost, Value
from voco.evaluation.standing import ALL, LOWER_IS_BETTER, SCRATCH, Cell, Gain, Row
from voco.figures import Interval, Line, draw_intervals, draw_lines
from voco.reporting import words
from voco.reporting.compared import ComparisonTables, labels_name, metric_name, row_name
from voco.reporting.page import Picture, Section, Table, chart

_FEW_SEEDS, _FEW_CASES = 3, 10
"""Fewer are warned of."""

_NAMED_LINES = 5
"""Rows whose label efficiency is drawn in a colour."""


# --- in words -------------------------------------------------------------------------------------


def verdicts(tables: ComparisonTables) -> list[str]:
    """What the comparison shows, as sentences that claim no more than was measured."""
    found = [gain for gain in tables.gains if gain.metric == tables.metric]
    rivals = [gain for gain in tables.rivals if gain.metric == tables.metric]
    if not found:
        return ["Nothing can be compared yet: no row and its scratch are both measured."]
    said = [*_verdict(found, tables, "training from scratch")]
    if rivals:
        said += _verdict(rivals, tables, str(tables.against))
    return [*said, *_first_places(tables)]


def _verdict(found: Sequence[Gain], tables: ComparisonTables, opponent: str) -> Iterator[str]:
    """First in one short sentence, then which rows."""
    metric = words.METRICS.get(tables.metric, tables.metric)
    better = [gain for gain in found if gain.better]
    worse = [gain for gain in found if gain.worse]
    among = words.count(len(found), "comparison")
    if better:
        yield (
            f"Beyond chance, {len(better)} of {among} with {opponent} came out better and "
            f"{len(worse)} worse."
        )
        best = max(better, key=lambda gain: abs(gain.difference))
        yield (
            f"Better: {_listed(better, tables)}. The largest difference in {metric} is "
            f"{words.signed(best.difference)} (95 % interval {words.signed(best.low)} to "
            f"{words.signed(best.high)}), of {row_name(best.row, tables)} with "
            f"{labels_name(best.labels)}."
        )
    else:
        smallest = min(gain.holm_p for gain in found)
        yield (
            f"No method was better than {opponent} beyond chance (smallest corrected "
            f"{words.p_equals(smallest)} of {among})."
        )
    if worse:
        yield f"Worse than {opponent}: {_listed(worse, tables)}."


def _listed(found: Sequence[Gain], tables: ComparisonTables) -> str:
    by_row: dict[Row, list[str]] = {}
    for gain in found:
        by_row.setdefault(gain.row, []).append(gain.labels)
    several = len({cell.row.backbone for cell in tables.cells}) > 1
    return "; ".join(
        f"{row_name(row, tables)}{f' on {row.backbone}' if several else ''} "
        f"({', '.join(labels)} labels)"
        for row, labels in by_row.items()
    )


def _first_places(tables: ComparisonTables) -> Iterator[str]:
    for backbone in dict.fromkeys(rank.row.backbone for rank in tables.ranks):
        first = next(rank for rank in tables.ranks if rank.row.backbone == backbone)
        yield (
            f"The best mean rank on {backbone}: {row_name(first.row, tables)}, {first.rank:.1f} of "
            f"{first.rows} (95 % interval {first.low:.1f} to {first.high:.1f}); it comes first "
            f"in {words.percent(first.first_share)} of the resamples."
        )


def _warnings(tables: ComparisonTables) -> list[str]:
    counts = [gain for gain in tables.gains if gain.metric == tables.metric]
    said: list[str] = []
    trainings = min((gain.trainings for gain in counts), default=0)
    if counts and trainings < _FEW_SEEDS:
        what = "one training" if trainings == 1 else f"{trainings} trainings"
        said.append(
            f"Some rows stand on {what} only: that hardly shows how much seeds differ, so the "
            f"intervals are too narrow. Run {_FEW_SEEDS} seeds or more."
        )
    cases = min((gain.cases for gain in counts), default=0)
    if counts and cases < _FEW_CASES:
        said.append(
            f"Measured on {words.count(cases, 'case')} only: intervals are too narrow then, and "
            "no test can be sure."
        )
    seeds = {cost.pretraining_seed for cost in tables.costs if cost.kind == "pretraining"} - {""}
    if len(seeds) == 1:
        said.append(
            "Each method was pre-trained once: the figures do not say what another pre-training "
            "of the same method would give."
        )
    said += [*_learnt_from(tables), *_unfinished(tables.costs)]
    batches = {
        name: method.get("batch_size") for name, method in tables.recipe.get("methods", {}).items()
    }
    if len(set(batches.values())) > 1:
        said.append(
            "The methods saw different numbers of volumes in the same number of steps: "
            + ", ".join(f"{name} {size} a step" for name, size in batches.items())
            + "."
        )
    return said


def _learnt_from(tables: ComparisonTables) -> Iterator[str]:
    """Rows that were measured on what they have learnt from."""
    cases = {value.case for value in tables.values} - {WHOLE_SET}
    by_row: dict[Row, set[str]] = {}
    for value in tables.values:
        if value.seen:
            row = Row(value.backbone, value.method, value.handover)
            by_row.setdefault(row, set()).add(value.case)
    several = len({cell.row.backbone for cell in tables.cells}) > 1
    for row, seen in by_row.items():
        name = row_name(row, tables) + (f" on {row.backbone}" if several else "")
        yield (
            f"{name} has learnt from {len(seen)} of the {len(cases)} test cases: its figures say "
            "little about new scans."
        )


def _unfinished(costs: Iterable[Cost]) -> Iterator[str]:
    unfit: list[Cost] = []
    open_ones: dict[str, int] = {}
    for cost in costs:
        if cost.status == "does not fit":
            unfit.append(cost)
        elif cost.status == "failed":
            yield f"Failed: {_job_name(cost)}: {cost.reason}"
        elif cost.status != "done":
            open_ones[cost.status] = open_ones.get(cost.status, 0) + 1
    if open_ones:
        said = ", ".join(f"{count} {status}" for status, count in sorted(open_ones.items()))
        yield f"Not finished: {said}. Rows whose seeds are not all there stand on fewer."
    for cost in unfit:
        yield f"{cost.method} does not fit {cost.backbone}: {cost.reason}"


# --- findings -------------------------------------------------------------------------------------


def outcome_section(tables: ComparisonTables) -> Section:
    """What was found, in words, and what to be careful about."""
    section = Section("What was found", lead=verdicts(tables), warnings=_warnings(tables))
    section.lead.append(
        "Beyond chance: p below 0.05 after correction for the number of comparisons (Holm), in a "
        "test that takes seeds and cases for random. Where each row was trained once, it can only "
        "take the cases for random."
    )
    return section


def backbone_sections(tables: ComparisonTables) -> Iterator[Section]:
    """Charts and tables of each network."""
    backbones = dict.fromkeys(cell.row.backbone for cell in tables.cells)
    for backbone in backbones:
        several = len(backbones) > 1
        name = metric_name(tables.metric)
        section = Section(f"{name} on {backbone}" if several else f"{name}, row by row")
        order = _order(tables, backbone)
        section.pictures += _pictures(tables, backbone, order)
        section.tables += _tables(tables, backbone, order)
        yield section


def _order(tables: ComparisonTables, backbone: str) -> list[Row]:
    """A network's rows, the best first: by mean rank, those without one after them by mean."""
    ranked = [rank.row for rank in tables.ranks if rank.row.backbone == backbone]
    sign = 1 if tables.metric in LOWER_IS_BETTER else -1
    means: dict[Row, list[float]] = {}
    for cell in tables.cells:
        if cell.metric == tables.metric and cell.structure == ALL:
            means.setdefault(cell.row, []).append(sign * cell.mean)
    rest = [row for row in means if row.backbone == backbone and row not in ranked]
    return [*ranked, *sorted(rest, key=lambda row: statistics.fmean(means[row]))]


def _pictures(tables: ComparisonTables, backbone: str, order: Sequence[Row]) -> Iterator[Picture]:
    name = metric_name(tables.metric)
    names = {row: row_name(row, tables) for row in order}
    found = [g for g in tables.gains if g.metric == tables.metric and g.row.backbone == backbone]
    if found:
        panels = [
            (labels_name(labels), [_interval(g, names) for g in _sorted(found, labels, order)])
            for labels in dict.fromkeys(gain.labels for gain in found)
        ]
        svg = draw_intervals(
            panels, f"Gain of each row over scratch, {backbone}", unit=name, zero=0.0
        )
        caption = (
            f"Gain in {name} over training from scratch, with 95 % intervals (seeds and cases "
            "random). Green: better beyond chance; red: worse beyond chance."
        )
        yield chart(svg, caption, wide=True)
    lines = list(_lines(tables, order))
    if lines and len(lines[0].places) > 1:
        caption = f"{name} by number of labelled cases. Dashed: scratch. Bands: 95 % intervals."
        if len(lines) > _NAMED_LINES + 1:
            caption += f" In colour: the {_NAMED_LINES} best by mean rank. Grey: the others."
        yield chart(draw_lines(lines, "Label efficiency", unit=name), caption, wide=True)
    placed = [rank for rank in tables.ranks if rank.row.backbone == backbone]
    if placed:
        dots = [
            Interval(names[r.row], r.rank, r.low, r.high, _kind(r.row, tables.against))
            for r in placed
        ]
        caption = (
            f"Mean rank by {name} over {words.count(placed[0].rankings, 'ranking')} of "
            f"{len(placed)} rows (every case at every number of labels), with its 95 % interval. "
            "1 is the best."
        )
        svg = draw_intervals([("Mean rank", dots)], f"Mean ranks, {backbone}")
        yield chart(svg, caption, wide=True)


def _sorted(found: Iterable[Gain], labels: str, order: Sequence[Row]) -> list[Gain]:
    return sorted(
        (gain for gain in found if gain.labels == labels), key=lambda gain: order.index(gain.row)
    )


def _interval(gain: Gain, names: Mapping[Row, str]) -> Interval:
    kind = "better" if gain.better else "worse" if gain.worse else ""
    return Interval(names[gain.row], gain.difference, gain.low, gain.high, kind)


def _kind(row: Row, against: str | None) -> str:
    return "reference" if row.method in {SCRATCH, against} else ""


def _lines(tables: ComparisonTables, order: Sequence[Row]) -> Iterator[Line]:
    pretrained = [row for row in order if row.method != SCRATCH]
    for row in order:
        some = [
            (count, cell)
            for cell in tables.cells
            if cell.row == row and cell.metric == tables.metric and cell.structure == ALL
            if (count := _labelled_cases(tables.costs, row, cell.labels)) is not None
        ]
        some.sort(key=lambda each: each[0])
        if not some:
            continue
        kind = "main" if row in pretrained[:_NAMED_LINES] else ""
        yield Line(
            row_name(row, tables),
            [count for count, _ in some],
            [cell.mean for _, cell in some],
            [cell.low for _, cell in some],
            [cell.high for _, cell in some],
            "reference" if row.method == SCRATCH else kind,
        )


def _labelled_cases(costs: Iterable[Cost], row: Row, labels: str) -> int | None:
    """How many cases ``all``, or a share, came to."""
    for cost in costs:
        same = (cost.backbone, cost.method, cost.handover) == row and cost.labels == labels
        if same and cost.cases is not None:
            return cost.cases
    return None


def _tables(tables: ComparisonTables, backbone: str, order: Sequence[Row]) -> Iterator[Table]:
    name = metric_name(tables.metric)
    labels = list(dict.fromkeys(cell.labels for cell in tables.cells))
    placed = {rank.row: rank for rank in tables.ranks if rank.row.backbone == backbone}
    means = {(c.row, c.labels, c.metric, c.structure): c for c in tables.cells}
    over = {(g.row, g.labels): g for g in tables.gains if g.metric == tables.metric}
    rivals = {(g.row, g.labels): g for g in tables.rivals if g.metric == tables.metric}
    rows = []
    for row in order:
        cells_of = [means.get((row, one, tables.metric, ALL)) for one in labels]
        rank = placed.get(row)
        place = f"{rank.rank:.1f} [{rank.low:.1f}, {rank.high:.1f}]" if rank else "–"
        texts = [*map(_cell_text, cells_of), *([place] if placed else [])]
        rows.append([row_name(row, tables), *texts])
    columns = ["row", *map(labels_name, labels), *(["mean rank"] if placed else [])]
    note = "Mean over cases and seeds, and its 95 % interval (seeds and cases resampled)."
    yield Table(name, columns, rows, note)
    yield _gain_table("Gain over scratch", over, tables, order)
    if rivals:
        yield _gain_table(f"Gain over {tables.against}", rivals, tables, order, folded=True)
    yield _tests_table("Tests against scratch", over, tables, order)
    if rivals:
        yield _tests_table(f"Tests against {tables.against}", rivals, tables, order)
    yield from _other_metrics(tables, order, labels, means)
    if placed:
        rows = [
            [
                row_name(row, tables),
                f"{placed[row].rank:.2f}",
                words.percent(placed[row].first_share),
            ]
            for row in order
            if row in placed
        ]
        note = "How often the row has the lowest mean rank when seeds and cases are resampled."
        yield Table(f"Ranks on {backbone}", ["row", "mean rank", "first"], rows, note, folded=True)


Gains = Mapping[tuple[Row, str], Gain]
"""By row and number of labels."""


def _gain_table(
    caption: str,
    found: Gains,
    tables: ComparisonTables,
    order: Sequence[Row],
    *,
    folded: bool = False,
) -> Table:
    note = (
        "Difference and its 95 % interval (seeds and cases random). ▲ better, ▼ worse beyond "
        "chance."
    )
    return _gains_shown(caption, found, tables, order, _gain_text, note, folded=folded)


def _tests_table(
    caption: str, found: Gains, tables: ComparisonTables, order: Sequence[Row]
) -> Table:
    note = (
        "First the p on which claims stand: seeds and cases random, corrected for all comparisons "
        "of this table (Holm). Then two tests of the cases alone, each averaged over its seeds, "
        "which tell these trainings apart but not the methods: sign flips, corrected likewise, "
        "and Wilcoxon's signed-rank test, not corrected. Last, in how many cases the row is higher "
        "and lower. All p are two-sided."
    )
    return _gains_shown(caption, found, tables, order, _test_text, note, folded=True)


def _gains_shown(
    caption: str,
    found: Gains,
    tables: ComparisonTables,
    order: Sequence[Row],
    shown: Callable[[Gain], str],
    note: str,
    *,
    folded: bool,
) -> Table:
    labels = list(dict.fromkeys(cell.labels for cell in tables.cells))
    rows = []
    for row in order:
        some = [found.get((row, one)) for one in labels]
        if any(some):
            texts = ("–" if gain is None else shown(gain) for gain in some)
            rows.append([row_name(row, tables), *texts])
    return Table(caption, ["row", *map(labels_name, labels)], rows, note, folded)


def _gain_text(gain: Gain) -> str:
    entry = {"difference": gain.difference, "interval": _pair(gain.low, gain.high)}
    mark = " ▲" if gain.better else " ▼" if gain.worse else ""
    return f"{words.difference(entry)}{mark}"


def _test_text(gain: Gain) -> str:
    numbers = (gain.holm_p, gain.holm_case_p, gain.wilcoxon_p)
    return f"{'; '.join(map(words.p_value, numbers))}; {gain.higher}:{gain.lower}"


def _other_metrics(
    tables: ComparisonTables,
    order: Sequence[Row],
    labels: Sequence[str],
    means: Mapping[tuple[Row, str, str, str], Cell],
) -> Iterator[Table]:
    """Folded: the structures of the metric that counts, and the other metrics."""
    structures = list(dict.fromkeys(c.structure for c in tables.cells if c.structure != ALL))
    others = list(dict.fromkeys(c.metric for c in tables.cells if c.metric != tables.metric))
    wanted = [(tables.metric, one) for one in structures] if len(structures) > 1 else []
    wanted += [(metric, ALL) for metric in others]
    columns = ["row", *map(labels_name, labels)]
    for metric, structure in wanted:
        rows = [
            [
                row_name(row, tables),
                *(_cell_text(means.get((row, one, metric, structure))) for one in labels),
            ]
            for row in order
        ]
        name = metric_name(metric)
        of = "" if structure == ALL else f": {words.plain(structure)}"
        note = "Means leave out structures that were missed altogether." if metric == "hd95" else ""
        yield Table(f"{name}{of}", columns, rows, note, folded=True)
    for metric in dict.fromkeys(v.metric for v in tables.values if v.case == WHOLE_SET):
        rows = [
            [
                row_name(row, tables),
                *(_whole_set_text(tables.values, row, one, metric) for one in labels),
            ]
            for row in order
        ]
        note = "Of the whole set of cases: mean over the trainings, and their range."
        yield Table(metric_name(metric), columns, rows, note, folded=True)


def _whole_set_text(values: Iterable[Value], row: Row, labels: str, metric: str) -> str:
    found = [
        value.value
        for value in values
        if (value.backbone, value.method, value.handover) == row
        and (value.labels, value.metric, value.case) == (labels, metric, WHOLE_SET)
        and math.isfinite(value.value)
    ]
    if not found:
        return "–"
    return (
        f"{words.value(statistics.fmean(found))} ({words.value(min(found))} to "
        f"{words.value(max(found))})"
    )


def _job_name(cost: Cost) -> str:
    seed = cost.seed or cost.pretraining_seed
    parts = [cost.kind, cost.method, cost.backbone, cost.handover, cost.labels]
    return " ".join([*(part for part in parts if part), f"seed {seed}" if seed else ""]).strip()


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return words.estimate(
        {"mean": cell.mean, "interval": _pair(cell.low, cell.high), "unit": cell.unit}, unit=False
    )


def _pair(low: float, high: float) -> list[float | None]:
    return [None if math.isnan(low) else low, None if math.isnan(high) else high]
