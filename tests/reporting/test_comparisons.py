"""The page of a comparison, from tables that are made up."""

import random

import pytest
import yaml

from voco.errors import DataError
from voco.evaluation.comparisons import Cost, Value, read_costs, read_values
from voco.evaluation.tables import write_rows
from voco.reporting.costs import differences
from voco.workflows.report import report

METHODS = {"a": 0.0, "b": 0.0, "c": 0.0}


def write_comparison(folder, gains, *, seeds=3, cases=12, labels=("5",), noise=0.01, **recipe):
    """A comparison in which each method is so much better than scratch, up to noise."""
    generator = random.Random(0)
    level = {f"case{n}": generator.gauss(0.7, 0.05) for n in range(cases)}
    values = []
    costs = [cost("pretraining", method, pretraining_seed="0", steps=9) for method in gains]
    for seed in map(str, range(seeds)):
        for some in labels:
            for method, gain in {"scratch": 0.0, **gains}.items():
                given = "" if method == "scratch" else "0"
                handover = "none" if method == "scratch" else "encoder"
                place = (method, "net", handover, some, given, seed)
                drift = generator.gauss(0, noise)
                for case, base in level.items():
                    dice = base + gain + drift + generator.gauss(0, 0.01)
                    values.append(Value(*place, case, "liver", "dice", dice))
                costs.append(cost("finetuning", *place[0:1], *place[2:], cases=int(some)))
    folder.mkdir(exist_ok=True)
    write_tables(folder, values, costs)
    recipe = {"methods": {name: {"steps": 9, "batch_size": 2} for name in gains}, **recipe}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(recipe))
    return values, costs


def write_tables(folder, values, costs):
    write_rows(folder / "table.csv", Value._fields, values)
    rows = [["" if cell is None else cell for cell in one] for one in costs]
    write_rows(folder / "runs.csv", Cost._fields, rows)


def cost(kind, method, *place, status="done", **more):
    known = {"cases": 9, "seconds": 60.0, "training_seconds": 50.0, "memory_bytes": 7, "steps": 4}
    names = ("handover", "labels", "pretraining_seed", "seed")
    told = dict(zip(names, place, strict=False))
    return Cost(kind, method, "net", **{**told, "status": status, **known, **more})


def said(folder):
    text = report(folder).read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    return text


def test_tables_are_read_as_they_were_written(tmp_path):
    values, costs = write_comparison(tmp_path, METHODS)
    assert read_values(tmp_path) == values
    assert read_costs(tmp_path) == costs


def test_it_is_said_when_pretraining_did_not_help(tmp_path):
    write_comparison(tmp_path, METHODS)
    text = said(tmp_path)
    assert "No method was better than training from scratch beyond chance" in text
    assert "smallest corrected p" in text
    assert "came out better" not in text


def test_it_is_said_who_was_better_and_who_was_worse(tmp_path):
    write_comparison(tmp_path, {"good": 0.1, "bad": -0.1, "same": 0.0}, against="same")
    text = said(tmp_path)
    assert "1 of 3 comparisons with training from scratch came out better and 1 worse" in text
    assert "Better: good (5 labels)." in text
    assert "Worse than training from scratch: bad (5 labels)." in text
    assert "1 of 2 comparisons with same came out better and 1 worse" in text
    assert "The best mean rank on net: good" in text


def test_rows_come_best_first_and_their_lines_over_all_numbers_of_labels(tmp_path):
    write_comparison(tmp_path, {"low": 0.0, "high": 0.1, "mid": 0.05}, labels=("5", "20"))
    text = said(tmp_path)
    places = [text.index(f'<th scope="row">{name}</th>') for name in ("high", "mid", "low")]
    assert places == sorted(places)
    assert "Label efficiency" in text
    assert "20 labels" in text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"seeds": 2}, "Some rows stand on 2 trainings only"),
        ({"seeds": 1}, "Some rows stand on one training only"),
        ({"cases": 5}, "Measured on 5 cases only"),
        ({}, "Each method was pre-trained once"),
    ],
)
def test_figures_that_stand_on_little_are_warned_of(tmp_path, changes, warning):
    write_comparison(tmp_path, METHODS, **changes)
    assert warning in said(tmp_path)


def test_enough_seeds_and_cases_are_not_warned_of(tmp_path):
    values, costs = write_comparison(tmp_path, METHODS)
    more = [one._replace(pretraining_seed="1") for one in costs if one.kind == "pretraining"]
    write_tables(tmp_path, values, costs + more)
    assert "<ul" not in said(tmp_path)


def test_what_failed_does_not_fit_or_is_not_done_is_told(tmp_path):
    values, costs = write_comparison(tmp_path, METHODS)
    costs += [
        cost("pretraining", "wild", pretraining_seed="0", status="failed", reason="loss is nan"),
        cost("pretraining", "odd", status="does not fit", reason="needs tokens"),
        cost("finetuning", "a", "encoder", "9", "0", "0", status="waiting"),
    ]
    write_tables(tmp_path, values, costs)
    text = said(tmp_path)
    assert "Failed: pretraining wild net seed 0: loss is nan" in text
    assert "odd does not fit net: needs tokens" in text
    assert "Not finished: 1 waiting" in text


def test_unequal_numbers_of_volumes_are_told(tmp_path):
    methods = {"a": {"steps": 9, "batch_size": 2}, "b": {"steps": 9, "batch_size": 8}}
    write_comparison(tmp_path, {"a": 0.0, "b": 0.0}, methods=methods)
    assert "a 2 a step, b 8 a step" in said(tmp_path)


def test_before_anything_is_measured_the_page_says_so(tmp_path):
    write_tables(tmp_path, [], [cost("pretraining", "a", pretraining_seed="0", status="running")])
    assert "Nothing can be compared yet" in said(tmp_path)


def test_settings_in_which_methods_differ_are_found():
    methods = {
        "a": {"method": {"name": "x"}, "optimizer": {"lr": 1}, "steps": 5, "log_every": 1},
        "b": {"method": {"name": "y"}, "optimizer": {"lr": 2}, "steps": 5, "log_every": 2},
    }
    assert differences(methods) == {"optimizer.lr": {"a": 1, "b": 2}}


@pytest.mark.parametrize("file", ["table.csv", "runs.csv"])
def test_a_damaged_table_is_named(tmp_path, file):
    write_comparison(tmp_path, METHODS)
    with (tmp_path / file).open("a") as stream:
        stream.write(",".join("x" * (11 if file == "table.csv" else 20)) + "\n")
    with pytest.raises(DataError, match=file):
        report(tmp_path)
