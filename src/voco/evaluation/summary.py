"""Tables of metrics condensed into what ``summary.json`` and ``comparison.json`` hold.

Numbers that are not finite become ``null``: JSON has no others.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from voco.evaluation.statistics import Comparison, Summary, compare, holm, summarise
from voco.evaluation.tables import Score, by_structure, mean_over_structures

Stats = dict[str, dict[str, Any]]
"""By metric: the figures of one structure."""


def summarised(scores: Sequence[Score], seed: int = 0) -> dict[str, Any]:
    """Per structure and metric: mean, spread, interval, and how many cases it stands on.

    Returns:
        ``structures``: by structure and metric ``mean``, ``std``, ``interval`` (95 % bootstrap),
        ``cases`` (with a finite value), ``infinite`` (distances to something absent), ``absent``
        (in neither map) and ``unit``. ``mean``: the same of each case's mean over its structures.
    """
    table = by_structure(scores)
    units = {score.metric: score.unit for score in scores}
    means = mean_over_structures(table)
    return {
        "mean": {
            metric: summary_entry(summarise(list(cases.values()), seed), units[metric])
            for metric, cases in means.items()
        },
        "structures": {
            structure: {
                metric: _entry(list(cases.values()), units[metric], seed)
                for metric, cases in metrics.items()
            }
            for structure, metrics in table.items()
        },
    }


def compared(first: Sequence[Score], second: Sequence[Score], seed: int = 0) -> dict[str, Any]:
    """The paired differences of two tables, first minus second, on the cases that both have.

    A value that is not finite in one of them leaves both out, so that a method cannot gain by
    missing what is hard.

    Returns:
        ``structures``: by structure and metric the fields of
        :class:`~voco.evaluation.statistics.Comparison` and ``holm_p``, the sign-flip p adjusted
        for the number of structures (Holm, per metric). ``mean``: the same of each case's mean
        over its structures, a single test per metric that needs no adjustment. ``left_out``: by
        metric, in how many structures of cases only one of the two has a finite value.
    """
    shared, left_out = _shared(first, second)
    tables = tuple(by_structure(s for s in scores if s[:3] in shared) for scores in (first, second))
    means = mean_over_structures(tables[0]), mean_over_structures(tables[1])
    found = {
        structure: _differences(tables[0][structure], tables[1][structure], seed)
        for structure in tables[0]
    }
    return {
        "mean": {
            metric: comparison_entry(result)
            for metric, result in _differences(means[0], means[1], seed).items()
        },
        "structures": _adjusted(found),
        "left_out": left_out,
    }


def summary_entry(summary: Summary, unit: str = "") -> dict[str, Any]:
    """A summary as JSON holds it."""
    return {
        "mean": number(summary.mean),
        "std": number(summary.std),
        "interval": [number(summary.low), number(summary.high)],
        "cases": summary.cases,
        "unit": unit,
    }


def comparison_entry(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON holds it."""
    values = comparison._asdict()
    interval = [number(values.pop("low")), number(values.pop("high"))]
    return {**{key: number(value) for key, value in values.items()}, "interval": interval}


def number(value: float | int) -> float | int | None:
    """A number as JSON holds it: ``None`` if it is not finite, six significant digits."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _entry(values: Sequence[float], unit: str, seed: int) -> dict[str, Any]:
    return {
        **summary_entry(summarise(values, seed), unit),
        "infinite": sum(map(math.isinf, values)),
        "absent": sum(map(math.isnan, values)),
    }


def _shared(
    first: Sequence[Score], second: Sequence[Score]
) -> tuple[set[tuple[str, str, str]], dict[str, int]]:
    """What is finite in both tables; by metric, how much is finite in one only."""
    finite = [{score[:3] for score in t if math.isfinite(score.value)} for t in (first, second)]
    known = [{score[:3] for score in table} for table in (first, second)]
    one_sided = (finite[0] ^ finite[1]) & known[0] & known[1]
    counts = Counter(metric for _, _, metric in one_sided)
    return finite[0] & finite[1], dict(sorted(counts.items()))


def _differences(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], seed: int
) -> dict[str, Comparison]:
    """By metric, over the cases that both have."""
    found = {}
    for metric, cases in first.items():
        shared = [case for case in cases if case in second.get(metric, {})]
        ours = [cases[case] for case in shared]
        theirs = [second[metric][case] for case in shared]
        found[metric] = compare(ours, theirs, seed)
    return found


def _adjusted(found: Mapping[str, Mapping[str, Comparison]]) -> dict[str, Stats]:
    """Entries with Holm's p, per metric over the structures that were tested."""
    entries = {
        structure: {metric: comparison_entry(result) for metric, result in metrics.items()}
        for structure, metrics in found.items()
    }
    for metric in {metric for metrics in found.values() for metric in metrics}:
        tested = [structure for structure in found if metric in found[structure]]
        p_values = [
            found[structure][metric].permutation_p if found[structure][metric].cases else math.nan
            for structure in tested
        ]
        for structure, p in zip(tested, holm(p_values), strict=True):
            entries[structure][metric]["holm_p"] = number(p)
    return entries
