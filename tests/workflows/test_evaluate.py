import csv
import json
import math
import re

import numpy as np
import pytest

from voco.data.imageio import write_image
from voco.errors import DataError, UsageError
from voco.evaluation.tables import read_scores
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows.evaluate import evaluate

SPACING = np.diag([1.5, 1.5, 1.5, 1.0])


def write(folder, case, array, affine=SPACING):
    folder.mkdir(parents=True, exist_ok=True)
    write_image(Volume(array[None], Grid(array.shape, affine)), folder / f"{case}.nii.gz")


def cubes(shift=0, second=True, shape=(34, 24, 24)):
    labels = np.zeros(shape, np.uint8)
    labels[2 + shift : 22 + shift, 2:22, 2:22] = 1
    if second:
        labels[27:30, 3:6, 3:6] = 2
    return labels


@pytest.fixture
def folders(tmp_path):
    """References of four cases; predictions shifted by 0, 1, 2 and 3 voxels."""
    for number in range(4):
        write(tmp_path / "labelsTr", f"case{number}", cubes())
        write(tmp_path / "ours", f"case{number}", cubes(number))
        write(tmp_path / "worse", f"case{number}", cubes(number + 1))
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "air", "1": "liver", "2": "cyst"}}')
    return tmp_path


def test_the_tables_hold_the_metrics_of_every_case_and_structure(folders):
    done = evaluate(folders / "ours", folders / "labelsTr", folders / "out")
    assert done.complete
    with (folders / "out/metrics.csv").open() as stream:
        assert next(csv.reader(stream)) == ["case", "structure", "metric", "value", "unit"]
    values = {s[:3]: s.value for s in read_scores(folders / "out/metrics.csv")}
    assert len(values) == 4 * 2 * 3
    assert values["case3", "liver", "dice"] == pytest.approx(0.85)
    assert values["case3", "liver", "hd95"] == pytest.approx(4.5)
    assert values["case3", "cyst", "dice"] == values["case0", "liver", "nsd"] == 1
    units = {s.metric: s.unit for s in read_scores(folders / "out/metrics.csv")}
    assert units == {"dice": "", "hd95": "mm", "nsd": ""}


def test_the_summary_has_mean_spread_interval_and_count(folders):
    evaluate(folders / "ours", folders, folders / "out")
    summary = json.loads((folders / "out/summary.json").read_text())
    liver = summary["structures"]["liver"]["dice"]
    values = [1, 0.95, 0.9, 0.85]
    assert liver["mean"] == pytest.approx(np.mean(values))
    assert liver["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    assert liver["interval"][0] < liver["mean"] < liver["interval"][1]
    assert liver["cases"] == summary["cases"] == 4
    assert summary["mean"]["dice"]["mean"] == pytest.approx((np.mean(values) + 1) / 2)


def test_the_same_seed_gives_the_same_files(folders):
    for name in ("one", "two"):
        evaluate(folders / "ours", folders, folders / name, against=folders / "worse", seed=3)
    for file in ("metrics.csv", "summary.json", "comparison.json", "against.csv"):
        assert (folders / "one" / file).read_bytes() == (folders / "two" / file).read_bytes()


def test_misses_and_false_positives_are_counted_and_never_averaged_as_numbers(folders):
    write(folders / "ours", "case0", cubes(second=False))  # misses the cyst
    write(folders / "labelsTr", "case1", cubes(second=False))  # has none, ours finds one
    write(folders / "labelsTr", "case2", cubes(second=False))
    write(folders / "ours", "case2", cubes(second=False))  # absent from both
    done = evaluate(folders / "ours", folders / "labelsTr", folders / "out")
    assert done.summary["misses"] == {"cyst": ["case0"]}
    assert done.summary["false_positives"] == {"cyst": ["case1"]}
    cyst = done.summary["structures"]["cyst"]
    assert (cyst["dice"]["cases"], cyst["dice"]["absent"]) == (3, 1)
    assert cyst["dice"]["mean"] == pytest.approx(1 / 3, rel=1e-4)
    assert (cyst["hd95"]["cases"], cyst["hd95"]["infinite"]) == (1, 2)
    assert "NaN" not in (folders / "out/summary.json").read_text()
    values = {s[:3]: s.value for s in done.scores}
    assert values["case0", "cyst", "hd95"] == math.inf
    assert math.isnan(values["case2", "cyst", "dice"])


def test_what_cannot_be_measured_is_reported_and_the_rest_goes_on(folders):
    (folders / "ours/case0.nii.gz").unlink()
    write(folders / "ours", "case1", cubes(), np.diag([2.0, 1.5, 1.5, 1.0]))
    (folders / "ours/case2.nii.gz").write_bytes(b"not an image")
    write(folders / "ours", "stranger", cubes())
    done = evaluate(folders / "ours", folders / "labelsTr", folders / "out")
    assert not done.complete
    reasons = dict(done.problems)
    assert "no prediction of this name" in reasons["case0"]
    assert "34 x 24 x 24 voxels of 2 x 1.5 x 1.5 mm" in reasons["case1"]
    assert "34 x 24 x 24 voxels of 1.5 x 1.5 x 1.5 mm" in reasons["case1"]
    assert "case2" in reasons
    assert "no reference of this name" in reasons["stranger"]
    assert {score.case for score in done.scores} == {"case3"}
    assert "not measured: case0" in str(done)


def test_a_class_without_a_name_is_measured_in_every_case(folders):
    odd = cubes()
    odd[:2, :2, :2] = 9
    write(folders / "ours", "case1", odd)
    done = evaluate(folders / "ours", folders / "labelsTr", folders / "out")
    found = {s.case: s.value for s in done.scores if s[1:3] == ("class 9", "dice")}
    assert found["case1"] == 0
    assert all(math.isnan(found[case]) for case in ("case0", "case2", "case3"))


def test_two_predictions_are_compared_case_by_case(folders):
    done = evaluate(folders / "ours", folders, folders / "out", against=folders / "worse")
    assert done.comparison is not None
    liver = done.comparison["structures"]["liver"]["dice"]
    assert liver["difference"] == pytest.approx(0.05)
    assert liver["permutation_p"] == pytest.approx(2 / 2**4)
    assert liver["holm_p"] == pytest.approx(2 * liver["permutation_p"])
    assert (liver["cases"], liver["higher"]) == (4, 4)
    assert done.comparison["names"] == ["ours", "worse"]
    differences = str(done).split("ours minus worse")[1]
    assert re.search(r"hd95: -?[\d.]+ mm", differences)
    assert "fewer than 10 cases are too narrow" in differences
    assert len(read_scores(folders / "out/against.csv")) == len(done.scores)


def test_missing_what_is_hard_does_not_help_in_a_comparison(folders):
    # The second predictions miss the worst case: its distance leaves both out.
    write(folders / "worse", "case3", np.zeros((34, 24, 24), np.uint8))
    done = evaluate(folders / "ours", folders, folders / "out", against=folders / "worse")
    assert done.comparison is not None
    assert done.comparison["structures"]["liver"]["hd95"]["cases"] == 3
    assert done.comparison["left_out"] == {"hd95": 2}
    assert done.comparison["structures"]["liver"]["dice"]["cases"] == 4


def test_pictures_are_drawn_where_the_scans_are_given(folders):
    for number in range(4):
        write(folders / "imagesTr", f"case{number}_0000", cubes().astype(np.int16) * 40)
    evaluate(folders / "ours", folders, folders / "out", images=folders / "imagesTr")
    assert (folders / "out/overlays.png").read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_is_not_overwritten_unasked(folders):
    evaluate(folders / "ours", folders, folders / "out", against=folders / "worse")
    with pytest.raises(UsageError, match=r"holds metrics\.csv"):
        evaluate(folders / "ours", folders, folders / "out")
    evaluate(folders / "ours", folders, folders / "out", overwrite=True)
    assert not (folders / "out/comparison.json").exists()  # it would tell of other predictions


def test_names_that_do_not_fit_at_all_are_a_wrong_call(folders):
    write(folders / "theirs", "other", cubes())
    with pytest.raises(UsageError, match=r"other, \.\.\..*case0, case1"):
        evaluate(folders / "theirs", folders, folders / "out")
    with pytest.raises(UsageError, match="tolerance_mm = -1"):
        evaluate(folders / "ours", folders, folders / "out", tolerance_mm=-1.0)


# --- class scores ---------------------------------------------------------------------------------


def class_tables(folder, scores, targets):
    folder.mkdir(exist_ok=True)
    rows = [f"{case},{'ab'[b > a]},{a},{b}" for case, (a, b) in scores.items()]
    (folder / "scores.csv").write_text("\n".join(["case,predicted,normal,ill", *rows]))
    file = folder.parent / "targets.csv"
    file.write_text("\n".join(["case,target", *(f"{c},{t}" for c, t in targets.items())]))
    return file


SCORES = {f"p{n}": (1 - n / 20, n / 20) for n in range(20)}
TARGETS = {f"p{n}": "ill" if n >= 8 else "normal" for n in range(20)}


def test_class_scores_give_the_figures_of_the_set(tmp_path):
    file = class_tables(tmp_path / "ours", SCORES, TARGETS)
    done = evaluate(tmp_path / "ours", file, tmp_path / "out")
    entries = done.summary["structures"]["all"]
    assert entries["auroc"]["mean"] == 1
    assert entries["accuracy"]["mean"] == pytest.approx(17 / 20)
    assert done.summary["confusion"] == [[8, 0], [3, 9]]
    assert done.complete
    assert next(tuple(s)[:4] for s in done.scores) == ("p0", "normal", "correct", 1)


def test_targets_may_be_class_numbers_and_must_be_classes(tmp_path):
    numbers = {case: int(target == "ill") for case, target in TARGETS.items()}
    file = class_tables(tmp_path / "ours", SCORES, numbers)
    done = evaluate(tmp_path / "ours/scores.csv", file, tmp_path / "out")
    assert done.summary["mean"]["auroc"]["mean"] == 1
    class_tables(tmp_path / "ours", SCORES, {**TARGETS, "p3": "unwell"})
    with pytest.raises(DataError, match="p3 has the target 'unwell'"):
        evaluate(tmp_path / "ours", file, tmp_path / "other")


def test_a_case_without_scores_or_target_is_reported(tmp_path):
    scores = {case: SCORES[case] for case in SCORES if case != "p4"}
    file = class_tables(tmp_path / "ours", scores, {c: t for c, t in TARGETS.items() if c != "p5"})
    done = evaluate(tmp_path / "ours", file, tmp_path / "out")
    assert {problem.case for problem in done.problems} == {"p4", "p5"}
    assert done.summary["cases"] == 18


def test_a_single_class_leaves_auroc_undefined_and_says_so(tmp_path):
    file = class_tables(tmp_path / "ours", SCORES, dict.fromkeys(SCORES, "ill"))
    done = evaluate(tmp_path / "ours", file, tmp_path / "out")
    assert done.summary["mean"]["auroc"]["mean"] is None
    assert done.summary["notes"] == ["auroc is not defined: a class has no case"]


def test_two_tables_of_scores_are_compared(tmp_path):
    turned = {case: (b, a) for case, (a, b) in SCORES.items()}
    class_tables(tmp_path / "theirs", turned, TARGETS)
    file = class_tables(tmp_path / "ours", SCORES, TARGETS)
    done = evaluate(tmp_path / "ours", file, tmp_path / "out", against=tmp_path / "theirs")
    assert done.comparison is not None
    assert done.comparison["mean"]["auroc"]["difference"] == 1
    assert done.comparison["mean"]["accuracy"]["permutation_p"] < 0.05


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,a,b\nx,1,good\n", "'good' in column 'b'"),
        ("case,a\nx,1\n", "at least two classes"),
        ("case,a,b\nx,1,2\nx,2,1\n", "more than one row for x"),
    ],
)
def test_malformed_scores_are_refused(tmp_path, text, reason):
    file = class_tables(tmp_path / "ours", SCORES, TARGETS)
    (tmp_path / "ours/scores.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        evaluate(tmp_path / "ours", file, tmp_path / "out")
