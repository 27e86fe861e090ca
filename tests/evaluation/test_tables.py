import math

import pytest

from voco.errors import DataError
from voco.evaluation.tables import (
    Score,
    by_structure,
    mean_over_structures,
    read_scores,
    write_scores,
)

SCORES = [
    Score("a", "left, lobe", "dice", 0.5),
    Score("a", "left, lobe", "hd95", math.inf, "mm"),
    Score("a", "spleen", "dice", math.nan),
    Score("a", "spleen", "hd95", 2.0, "mm"),
]


def test_a_table_has_exactly_the_five_columns_and_survives_a_round_trip(tmp_path):
    file = tmp_path / "metrics.csv"
    write_scores(file, SCORES)
    assert file.read_text().splitlines()[0] == "case,structure,metric,value,unit"
    assert str(read_scores(file)) == str(SCORES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,value\na,1\n", "'structure'"),
        ("case,structure,metric,value,unit\na,b,dice,good,\n", "line 2: 'good'"),
        ("case,structure,metric,value,unit\na,b,dice\n", "line 2: has not as many"),
        ("", "its columns are none"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(tmp_path, text, reason):
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_scores(file)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_scores(tmp_path / "none.csv")


def test_the_mean_over_structures_leaves_out_what_is_not_finite():
    means = mean_over_structures(by_structure(SCORES))
    assert means == {"dice": {"a": 0.5}, "hd95": {"a": 2.0}}
    assert math.isnan(mean_over_structures(by_structure([SCORES[2]]))["dice"]["a"])
