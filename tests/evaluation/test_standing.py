import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voco.evaluation.comparisons import WHOLE_SET, Value
from voco.evaluation.standing import ALL, Gain, Results, Row, cells, gains, ranks
from voco.evaluation.statistics import sign_flip_p

SCRATCH = Row("net", "scratch", "none")


def values(
    table, *, backbone="net", metric="dice", structure="liver", labels="5", handover="encoder"
):
    """Values from ``{method: {seed: [a value per case]}}``."""
    return [
        Value(
            method,
            backbone,
            "none" if method == "scratch" else handover,
            labels,
            "" if method == "scratch" else "0",
            seed,
            f"case{number}",
            structure,
            metric,
            value,
        )
        for method, seeds in table.items()
        for seed, scores in seeds.items()
        for number, value in enumerate(scores)
    ]


def row(method, handover="encoder", backbone="net"):
    return Row(backbone, method, handover)


def test_a_cell_is_the_mean_over_cases_of_means_over_seeds():
    table = {"a": {"0": [0.2, 0.4], "1": [0.4, 0.8]}}
    cell = next(c for c in cells(Results(values(table))) if c.structure == ALL)
    assert cell.mean == pytest.approx(0.45)
    assert (cell.cases, cell.trainings) == (2, 2)
    # The trainings' own means are 0.3 and 0.6.
    assert cell.spread == pytest.approx(0.3 / math.sqrt(2))


def test_a_case_counts_with_the_mean_over_its_structures_that_are_there():
    liver = values({"a": {"0": [0.2, 0.4]}})
    spleen = values({"a": {"0": [0.6, math.nan]}}, structure="spleen")
    found = {cell.structure: cell for cell in cells(Results(liver + spleen))}
    assert found[ALL].mean == pytest.approx((0.4 + 0.4) / 2)
    assert found["spleen"].mean == pytest.approx(0.6)
    assert found["spleen"].cases == 1


def test_a_gain_is_taken_case_by_case_and_seed_by_seed():
    table = {
        "scratch": {"0": [0.5, 0.6, 0.7], "1": [0.4, 0.5, 0.6]},
        "a": {"0": [0.6, 0.6, 0.9], "1": [0.5, 0.4, 0.8], "2": [0.0, 0.0, 0.0]},
    }
    (gain,) = gains(Results(values(table)))
    assert gain.row == row("a")
    assert gain.over == SCRATCH
    # Per case: 0.1, -0.05, 0.2. Seed 2 has no partner.
    assert gain.difference == pytest.approx(0.25 / 3)
    assert (gain.higher, gain.lower, gain.cases, gain.trainings) == (2, 1, 3, 2)
    assert gain.case_p == pytest.approx(0.5)  # 4 of 8 sign flips give as much


def test_p_is_adjusted_for_all_comparisons_with_one_opponent():
    table = {
        "scratch": {"0": [0.1, 0.2, 0.3, 0.4, 0.5]},
        "a": {"0": [0.2, 0.4, 0.6, 0.8, 0.9]},  # always higher: p = 2 of 32
        "b": {"0": [0.0, 0.4, 0.2, 0.8, 0.1]},
    }
    by_row = {gain.row.method: gain for gain in gains(Results(values(table)))}
    assert by_row["a"].p == pytest.approx(2 / 32)
    assert by_row["a"].holm_p == pytest.approx(2 * 2 / 32)
    assert by_row["b"].holm_p == pytest.approx(max(4 / 32, by_row["b"].p))


def test_with_one_training_cases_alone_are_tested():
    table = {"scratch": {"0": [0.1, 0.2, 0.3, 0.7]}, "a": {"0": [0.3, 0.3, 0.6, 0.6]}}
    (gain,) = gains(Results(values(table)))
    assert gain.p == gain.case_p == sign_flip_p(np.array([0.2, 0.1, 0.3, -0.1]))


def test_better_and_worse_follow_the_metric():
    gain = Gain(row("a"), SCRATCH, "5", "dice", 0.1, 0.05, 0.15, 0, 0, 0, 9, 0, 9, 3, 0.01, 0.01)
    assert gain.better
    assert not gain.worse
    distance = gain._replace(metric="hd95")
    assert distance.worse
    assert not distance.better
    chance = gain._replace(holm_p=0.2)
    assert not chance.better
    assert not chance.worse


def test_a_case_that_one_side_lacks_counts_for_neither():
    table = {
        "scratch": {"0": [0.5, 0.1], "1": [0.5, 0.2]},
        "a": {"0": [0.6, math.nan], "1": [0.6, 0.9]},
    }
    (gain,) = gains(Results(values(table)))
    assert gain.difference == pytest.approx(0.1)
    assert gain.cases == 1


def test_rows_are_tested_against_scratch_of_their_own_network():
    one = values({"scratch": {"0": [0.5, 0.5]}, "a": {"0": [0.7, 0.7]}})
    two = values({"scratch": {"0": [0.1, 0.1]}, "a": {"0": [0.2, 0.2]}}, backbone="other")
    found = {gain.row.backbone: gain.difference for gain in gains(Results(one + two))}
    assert found == {"net": pytest.approx(0.2), "other": pytest.approx(0.1)}


def test_a_named_opponent_is_met_with_the_same_handover_where_it_has_it():
    table = {"scratch": {"0": [0.5, 0.5]}, "a": {"0": [0.7, 0.7]}, "b": {"0": [0.8, 0.8]}}
    full = {"b": {"0": [0.9, 0.9]}}
    results = Results(values(table) + values(full, handover="full"))
    found = {(gain.row, gain.over) for gain in gains(results, "a")}
    assert found == {(row("b"), row("a")), (row("b", "full"), row("a"))}
    against_b = {(gain.row, gain.over) for gain in gains(results, "b")}
    assert against_b == {(row("a"), row("b"))}


def test_ranks_are_those_made_by_hand():
    table = {
        "scratch": {"0": [0.1, 0.5]},
        "a": {"0": [0.2, 0.4]},
        "b": {"0": [0.3, 0.4]},
    }
    found = {rank.row.method: rank for rank in ranks(Results(values(table)), "dice")}
    # First case: b, a, scratch. Second: scratch, then a and b who share the places 2 and 3.
    assert found["b"].rank == pytest.approx((1 + 2.5) / 2)
    assert found["a"].rank == pytest.approx((2 + 2.5) / 2)
    assert found["scratch"].rank == pytest.approx((3 + 1) / 2)
    assert ranks(Results(values(table)), "dice")[0].row.method == "b"
    assert sum(rank.first_share for rank in found.values()) == pytest.approx(1)
    assert all(rank.low <= rank.rank <= rank.high for rank in found.values())


def test_a_low_distance_ranks_first():
    table = {"a": {"0": [1.0, 2.0]}, "b": {"0": [3.0, 4.0]}}
    found = {r.row.method: r for r in ranks(Results(values(table, metric="hd95")), "hd95")}
    assert (found["a"].rank, found["a"].first_share) == (1, 1)


def test_a_row_that_was_not_run_at_every_number_of_labels_is_not_ranked():
    both = [
        *values({"a": {"0": [0.1]}, "b": {"0": [0.2]}}),
        *values({"a": {"0": [0.1]}}, labels="9"),
    ]
    assert ranks(Results(both), "dice") == []


def test_figures_of_a_whole_set_are_no_cases():
    whole = Value("a", "net", "encoder", "5", "0", "0", WHOLE_SET, "all", "auroc", 0.9)
    assert cells(Results([whole])) == []


@given(st.integers(0, 10))
def test_the_order_of_the_rows_of_the_table_changes_nothing(seed):
    generator = random.Random(0)
    table = {
        method: {s: [generator.random() for _ in range(4)] for s in "012"}
        for method in ("scratch", "a", "b")
    }
    rows = values(table)
    shuffled = rows.copy()
    random.Random(seed).shuffle(shuffled)
    first, second = Results(rows), Results(shuffled)
    assert sorted(cells(first)) == sorted(cells(second))
    assert sorted(ranks(first, "dice")) == sorted(ranks(second, "dice"))
    ours, theirs = (sorted(gains(each, "a")) for each in (first, second))
    assert ours == theirs
