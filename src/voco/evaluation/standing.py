"""How the rows of a comparison stand to each other: means, gains, tests, ranks.

A row is a method on a network with one kind of hand-over. Each was trained with several seeds, and
all of these trainings were measured on the same cases.

**Means** have intervals that resample seeds and cases (:func:`voco.evaluation.crossed.bootstrap`).

**Gains** of a row over another are taken case by case and seed by seed. Their intervals and ``p``
take both, seeds and cases, for random (:func:`voco.evaluation.crossed.crossed_test`); the p are
adjusted for the number of comparisons (Holm), and on these adjusted p stands what is said to be
better. The usual tests of cases alone, each averaged over its seeds (sign flips, Wilcoxon), are
given beside: they say how sure the difference of *these* trainings is. They are no ground for a
claim about methods, as two trainings of one method differ as well.

**Ranks**: on every case, at every number of labels, the rows of a network are ranked, 1 the best,
ties sharing their places; the mean over cases and numbers of labels is the mean rank, and its
interval resamples seeds and cases, the same for all rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from voco.evaluation.comparisons import WHOLE_SET, Value
from voco.evaluation.crossed import (
    Crossed,
    Noise,
    Trainings,
    bootstrap,
    complete_cases,
    crossed_test,
    draw_weights,
    ends,
    over_trainings,
    training_noise,
)
from voco.evaluation.statistics import bootstrap_interval, holm, sign_flip_p, wilcoxon_p

SCRATCH = "scratch"
"""The method of rows without pre-training."""

ALL = "all structures"
"""Instead of a structure: the mean over those of a case."""

LOWER_IS_BETTER = frozenset({"hd95"})

CHANCE = 0.05
"""An adjusted p below this is not taken for chance."""

_RANK_RESAMPLES = 1000


class Row(NamedTuple):
    """A method on a network, with what fine-tuning took over."""

    backbone: str
    method: str
    handover: str


class Cell(NamedTuple):
    """The mean of a row at a number of labels.

    Attributes:
        row: The row.
        labels: As in the recipe.
        metric: The metric.
        structure: A structure, or :data:`ALL`.
        mean: Over cases and seeds; of each case first over its seeds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        spread: Standard deviation of the means of the trainings (seeds); ``nan`` for one.
        cases: How many cases have a finite value.
        trainings: How many trainings it stands on.
        unit: Of the metric.
    """

    row: Row
    labels: str
    metric: str
    structure: str
    mean: float
    low: float
    high: float
    spread: float
    cases: int
    trainings: int
    unit: str


class Gain(NamedTuple):
    """How much higher a row is than another at the same number of labels.

    Attributes:
        row: The row.
        over: The other.
        labels: As in the recipe.
        metric: The metric, of all structures.
        difference: Row minus other, over the cases that are complete in all trainings of both.
        low: Lower end of its 95 % interval: seeds and cases are random. With a single training of
            each the cases alone are.
        high: Upper end.
        p: Two-sided p, of the same kind.
        case_p: Two-sided p of the sign-flip test of the cases, each averaged over its seeds.
        wilcoxon_p: The same of Wilcoxon's signed-rank test.
        higher: Cases in which the row is higher.
        lower: Cases in which it is lower.
        cases: How many cases.
        trainings: How many pairs of trainings.
        holm_p: ``p``, adjusted for all gains over the same opponent in the same metric.
        holm_case_p: ``case_p``, adjusted likewise.
    """

    row: Row
    over: Row
    labels: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    case_p: float
    wilcoxon_p: float
    higher: int
    lower: int
    cases: int
    trainings: int
    holm_p: float = math.nan
    holm_case_p: float = math.nan

    @property
    def better(self) -> bool:
        """Whether the row is better beyond chance."""
        return self.holm_p < CHANCE and (self.difference > 0) != (self.metric in LOWER_IS_BETTER)

    @property
    def worse(self) -> bool:
        """Whether it is worse beyond chance."""
        return self.holm_p < CHANCE and not self.better


class Rank(NamedTuple):
    """The place of a row among those of its network.

    Attributes:
        row: The row.
        metric: By which the rows are ranked.
        rank: Mean rank; 1 is the best that can be.
        low: Lower end of its 95 % interval.
        high: Upper end.
        first_share: Share of the resamples in which the row has the lowest mean rank.
        rows: How many rows are ranked.
        rankings: How many rankings are averaged: cases times numbers of labels.
    """

    row: Row
    metric: str
    rank: float
    low: float
    high: float
    first_share: float
    rows: int
    rankings: int


class Grid(NamedTuple):
    """Values of one row, number of labels and metric.

    Attributes:
        values: By seed and case; ``nan`` where there is none.
        seeds: Seeds of fine-tuning.
        cases: Names of the cases.
    """

    values: Trainings
    seeds: tuple[str, ...]
    cases: tuple[str, ...]

    def at(self, seeds: Sequence[str], cases: Sequence[str]) -> Trainings:
        """The values of some of its seeds and cases."""
        rows, columns = ({n: i for i, n in enumerate(ns)} for ns in (self.seeds, self.cases))
        picked = self.values[[rows[seed] for seed in seeds]]
        return picked[:, [columns[case] for case in cases]]


Scores = dict[tuple[str, str, str], float]
"""By seed of fine-tuning, case and structure."""


class Results:
    """The values of a comparison, found by row, number of labels and metric.

    Figures of whole sets (AUROC, ...) are left out: they have no cases to pair.
    """

    def __init__(self, values: Iterable[Value]) -> None:
        self._scores: dict[tuple[Row, str, str], Scores] = {}
        self.units: dict[str, str] = {}
        rows: dict[Row, None] = {}
        labels: dict[str, None] = {}
        structures: dict[str, None] = {}
        for value in values:
            if value.case == WHOLE_SET:
                continue
            row = Row(value.backbone, value.method, value.handover)
            key = (value.seed, value.case, value.structure)
            self._scores.setdefault((row, value.labels, value.metric), {})[key] = value.value
            self.units[value.metric] = value.unit
            rows[row] = labels[value.labels] = structures[value.structure] = None
        self.rows = tuple(rows)
        self.labels = tuple(labels)
        self.structures = tuple(structures)

    @property
    def metrics(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(self.units)

    def scores(self, row: Row, labels: str, metric: str) -> Scores:
        """All values of a cell; empty if it was not run."""
        return self._scores.get((row, labels, metric), {})

    def opponent(self, row: Row, against: str | None) -> Row | None:
        """The row that one is tested against: scratch, or the one of a method, on its network.

        Of a method with two kinds of hand-over it is that with the row's own, else the first.
        """
        method = SCRATCH if against is None else against
        there = [r for r in self.rows if r.backbone == row.backbone and r.method == method]
        same = [other for other in there if other.handover == row.handover]
        found = next(iter([*same, *there]), None)
        return None if found is None or row.method in {SCRATCH, method} else found


# --- figures --------------------------------------------------------------------------------------


def cells(results: Results, seed: int = 0) -> list[Cell]:
    """Every row's means, at every number of labels, of every metric, by structure and over all."""
    found = []
    for row in results.rows:
        for labels in results.labels:
            for metric in results.metrics:
                scores = results.scores(row, labels, metric)
                for structure in (ALL, *results.structures) if scores else ():
                    grid = grid_of(scores, None if structure == ALL else structure)
                    cell = _cell(grid, seed)
                    if cell is not None:
                        unit = results.units[metric]
                        found.append(Cell(row, labels, metric, structure, *cell, unit))
    return found


def gains(results: Results, against: str | None = None, seed: int = 0) -> list[Gain]:
    """Every row against its opponent, with p adjusted for all of them, metric by metric.

    Args:
        results: The values.
        against: A method; ``None`` for scratch.
        seed: Of resampling and of random sign flips.
    """
    found: list[Gain] = []
    for metric in results.metrics:
        some: list[Gain] = []
        for labels in results.labels:
            noise = {
                backbone: noise_of(results, rows, labels, metric)
                for backbone, rows in _by_backbone(results.rows).items()
            }
            for row in results.rows:
                over = results.opponent(row, against)
                if over is not None:
                    gain = _gain(results, row, over, labels, metric, noise[row.backbone], seed)
                    some += [] if gain is None else [gain]
        adjusted = (holm([gain.p for gain in some]), holm([gain.case_p for gain in some]))
        found += [
            gain._replace(holm_p=p, holm_case_p=case_p)
            for gain, p, case_p in zip(some, *adjusted, strict=True)
        ]
    return found


def noise_of(results: Results, rows: Sequence[Row], labels: str, metric: str) -> Noise | None:
    """How much a training differs by chance, from rows on the seeds and cases that all have.

    ``None`` if those are too few to tell.
    """
    grids = [
        grid_of(scores) for row in sorted(rows) if (scores := results.scores(row, labels, metric))
    ]
    if len(grids) < 2:
        return None
    seeds = sorted(set.intersection(*(set(grid.seeds) for grid in grids)))
    cases = sorted(set.intersection(*(set(grid.cases) for grid in grids)))
    tables = [grid.at(seeds, cases) for grid in grids]
    kept = complete_cases(tables)
    if not seeds or not kept.any():
        return None
    return training_noise(np.stack([table[:, kept].mean(axis=1) for table in tables]))


def ranks(results: Results, metric: str, seed: int = 0) -> list[Rank]:
    """The mean ranks of each network's rows, the best first.

    Only rows that were measured at every number of labels are ranked, and only on cases on which
    all of these have a value.
    """
    found = []
    for rows in _by_backbone(results.rows).values():
        complete = [
            r for r in rows if all(results.scores(r, one, metric) for one in results.labels)
        ]
        found += sorted(_ranked(results, complete, metric, seed), key=lambda rank: rank.rank)
    return found


def grid_of(scores: Scores, structure: str | None = None) -> Grid:
    """Values of a structure, or of each case the mean over its finite ones, as an array."""
    pooled: dict[tuple[str, str], list[float]] = {}
    for (seed, case, name), value in scores.items():
        if structure in (None, name):
            finite = [value] if math.isfinite(value) else []
            pooled.setdefault((seed, case), []).extend(finite)
    return _grid(pooled)


def difference(ours: Scores, theirs: Scores) -> Grid | None:
    """Ours minus theirs, of each case over the structures that are finite in both.

    ``None`` if they share nothing.
    """
    pooled: dict[tuple[str, str], list[float]] = {}
    for (seed, case, structure), value in ours.items():
        other = theirs.get((seed, case, structure), math.nan)
        if math.isfinite(value) and math.isfinite(other):
            pooled.setdefault((seed, case), []).append(value - other)
    return _grid(pooled) if pooled else None


# --- how ------------------------------------------------------------------------------------------


def _by_backbone(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.backbone, []).append(row)
    return found


def _grid(pooled: Mapping[tuple[str, str], Sequence[float]]) -> Grid:
    """Means as an array in the order of the names, so that the order of rows changes nothing."""
    seeds, cases = (sorted(set(names)) for names in zip(*pooled, strict=True))
    array = np.full((len(seeds), len(cases)), np.nan)
    for (seed, case), some in pooled.items():
        if some:
            array[seeds.index(seed), cases.index(case)] = float(np.mean(some))
    return Grid(array, tuple(seeds), tuple(cases))


def _cell(grid: Grid, seed: int) -> tuple[float, float, float, float, int, int] | None:
    per_case = over_trainings(grid.values)
    finite = np.isfinite(per_case)
    if not finite.any():
        return None
    means = [row[np.isfinite(row)].mean() for row in grid.values if np.isfinite(row).any()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    mean = float(per_case[finite].mean())
    return (mean, *bootstrap(grid.values, seed), spread, int(finite.sum()), len(means))


def _gain(
    results: Results,
    row: Row,
    over: Row,
    labels: str,
    metric: str,
    noise: Noise | None,
    seed: int,
) -> Gain | None:
    ours, theirs = (results.scores(each, labels, metric) for each in (row, over))
    grid = difference(ours, theirs)
    if grid is None:
        return None
    values = grid.values[:, complete_cases([grid.values])]
    if values.shape[1] == 0:
        return None
    # Where other rows have not got so far, the pair itself must tell.
    noise = noise or noise_of(results, (row, over), labels, metric)
    per_case = values.mean(axis=0)
    case_p = sign_flip_p(per_case, seed)
    if noise is not None and min(values.shape) > 1:
        crossed = crossed_test(values, noise)
    else:
        mean, ends_of = float(per_case.mean()), bootstrap_interval(per_case, seed)
        crossed = Crossed(mean, *ends_of, case_p)
    return Gain(
        row,
        over,
        labels,
        metric,
        *crossed,
        case_p,
        wilcoxon_p(per_case),
        int((per_case > 0).sum()),
        int((per_case < 0).sum()),
        len(per_case),
        len(values),
    )


def _ranked(results: Results, rows: list[Row], metric: str, seed: int) -> list[Rank]:
    values = _aligned(results, rows, metric)
    if len(rows) < 2 or values.shape[-1] == 0:
        return []
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    *_, seeds, cases = values.shape

    def mean_ranks(trainings: np.ndarray, weights: np.ndarray) -> np.ndarray:
        per_case = np.einsum("rlsc,s->rlc", values, trainings / trainings.sum())
        # Rounded, since means that are equal on paper may differ in the last bit.
        places = rankdata(sign * per_case.round(9), axis=0)
        return (places * weights).sum(axis=(1, 2)) / (weights.sum() * len(results.labels))

    generator = np.random.default_rng(seed)
    factors = [draw_weights(generator, n, _RANK_RESAMPLES) for n in (seeds, cases)]
    drawn = np.array([mean_ranks(*weights) for weights in zip(*factors, strict=True)])
    observed = mean_ranks(np.ones(seeds), np.ones(cases))
    lowest = drawn == drawn.min(axis=1, keepdims=True)
    first = (lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0)
    return [
        Rank(
            row,
            metric,
            float(observed[number]),
            *ends(drawn[:, number]),
            float(first[number]),
            len(rows),
            cases * len(results.labels),
        )
        for number, row in enumerate(rows)
    ]


def _aligned(results: Results, rows: list[Row], metric: str) -> Float64[np.ndarray, "r l s c"]:
    """Values of all rows on the seeds that all have, and on the cases that are complete in all."""
    if not rows:
        return np.empty((0, 0, 0, 0))
    grids = [[grid_of(results.scores(row, one, metric)) for one in results.labels] for row in rows]
    every = [grid for some in grids for grid in some]
    seeds = sorted(set.intersection(*(set(grid.seeds) for grid in every)))
    cases = sorted(set.intersection(*(set(grid.cases) for grid in every)))
    array = np.array([[grid.at(seeds, cases) for grid in some] for some in grids])
    kept = np.isfinite(array).all(axis=(0, 1, 2)) if seeds else np.zeros(len(cases), bool)
    return array[..., kept]
