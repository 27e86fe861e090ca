"""The tables of a comparison: every value that was measured, and what every job cost."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voco.comparison.outcomes import Outcome
from voco.comparison.plan import Job, Place, Plan, row_order
from voco.comparison.settings import ComparisonConfig
from voco.evaluation.comparisons import (
    COSTS_FILE,
    VALUES_FILE,
    WHOLE_SET,
    Cost,
    Value,
    read_values,
)
from voco.evaluation.convention import convention_of, refuse_mixed
from voco.evaluation.standing import Cell, Gain, Rank, Results, Row, cells, gains, ranks
from voco.evaluation.tables import number_text, read_scores, write_rows


def write_tables(
    config: ComparisonConfig,
    planned: Plan,
    outcomes: Mapping[str, Outcome],
    held: Mapping[str, str],
    out: Path,
) -> None:
    """Write ``table.csv`` and ``runs.csv``, the rows in the order of the recipe.

    Args:
        config: The recipe.
        planned: What it means.
        outcomes: Of the jobs that have ended, by id.
        held: Jobs that are being done, and where.
        out: The comparison's folder.

    Raises:
        DataError: If two jobs were measured by different conventions.
    """
    jobs = sorted(planned.jobs, key=lambda job: row_order(config, job.place))
    done = [job for job in jobs if job.kind == "finetuning" and _done(outcomes.get(job.id))]
    summaries = {job.id: _summary(job, out) for job in done}
    refuse_mixed((name, convention_of(each, name)) for name, each in summaries.items())
    values = [
        [*value[:9], number_text(value.value), *value[10:]]
        for job in done
        for value in _values(job, out, summaries[job.id])
    ]
    write_rows(out / VALUES_FILE, Value._fields, values)
    costs = [_cost(job, outcomes, held, planned) for job in _by_kind(jobs)]
    costs += [
        Cost("pretraining", *misfit.place, status="does not fit", reason=misfit.reason)
        for misfit in planned.misfits
    ]
    write_rows(out / COSTS_FILE, Cost._fields, _texts(costs))


def write_findings(config: ComparisonConfig, out: Path) -> None:
    """Write what follows from the tables: ``summary.csv``, ``gains.csv`` and ``ranks.csv``."""
    results = Results(read_values(out))
    means = [[*cell.row, *cell[1:]] for cell in cells(results)]
    write_rows(out / "summary.csv", [*Row._fields, *Cell._fields[1:]], _texts(means))
    opponents = [None, *([config.against] if config.against else [])]
    found = [gain for against in opponents for gain in gains(results, against)]
    differences = [[*gain.row, gain.over.method, gain.over.handover, *gain[2:]] for gain in found]
    columns = [*Row._fields, "over", "over_handover", *Gain._fields[2:]]
    write_rows(out / "gains.csv", columns, _texts(differences))
    places = [rank for metric in results.metrics for rank in ranks(results, metric)]
    rows = [[*rank.row, *rank[1:]] for rank in places]
    write_rows(out / "ranks.csv", [*Row._fields, *Rank._fields[1:]], _texts(rows))


def status_of(
    job: Job, outcomes: Mapping[str, Outcome], held: Mapping[str, str], jobs: Mapping[str, Job]
) -> str:
    """What has become of a job.

    Returns:
        ``done``, ``failed``, ``running``, ``interrupted``, ``blocked`` (what it needs failed), or
        ``waiting``.
    """
    outcome = outcomes.get(job.id)
    if outcome is not None and outcome.status == "done":
        return "done"
    if job.id in held:
        return "running"
    if outcome is not None:
        return outcome.status
    before = [status_of(jobs[need], outcomes, held, jobs) for need in job.needs]
    return "blocked" if {"failed", "blocked"} & {*before} else "waiting"


def _done(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == "done"


def _by_kind(jobs: Iterable[Job]) -> list[Job]:
    kinds = ("budget", "pretraining", "finetuning")
    return sorted(jobs, key=lambda job: kinds.index(job.kind))


def _summary(job: Job, out: Path) -> dict[str, Any]:
    file = out / job.folder / "evaluation" / "summary.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _values(job: Job, out: Path, summary: Mapping[str, Any]) -> Iterator[Value]:
    seen = summary.get("seen", {})
    for score in read_scores(out / job.folder / "evaluation" / "metrics.csv"):
        yield Value(*job.place, *score, seen=seen.get(score.case, ""))
    if summary["task"] == "classification":
        # These are figures of the whole set, which no mean over cases would give.
        for metric, entry in summary["mean"].items():
            value = math.nan if entry["mean"] is None else entry["mean"]
            yield Value(*job.place, WHOLE_SET, "all", metric, value, entry["unit"])


def _cost(
    job: Job, outcomes: Mapping[str, Outcome], held: Mapping[str, str], planned: Plan
) -> Cost:
    by_id = {one.id: one for one in planned.jobs}
    status = status_of(job, outcomes, held, by_id)
    outcome = outcomes.get(job.id)
    if outcome is None:
        return Cost(job.kind, *job.place, status=status)
    told = outcome.model_dump(include=set(Cost._fields) - {"status", *Place._fields})
    return Cost(job.kind, *job.place, status=status, **told)


def _texts(rows: Iterable[Sequence[object]]) -> list[list[object]]:
    return [[_text(cell) for cell in row] for row in rows]


def _text(cell: object) -> object:
    if cell is None:
        return ""
    return number_text(cell) if isinstance(cell, float) else cell
