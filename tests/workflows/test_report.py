import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from voco.errors import DataError, UsageError
from voco.evaluation.tables import Score, write_scores
from voco.figures import draw_panels
from voco.method import Panel
from voco.workflows.report import report


class Page(HTMLParser):
    """What a page says, what it would load, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.words, self.loads, self.open = [], [], []
        self.feed(text)
        self.said = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href", "data", "srcset"}:
                self.loads.append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words.append(data)


def read(file):
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(link.startswith(("data:", "#")) for link in page.loads)
    assert not re.search(r"url\(\s*['\"]?http|@import|<script", text)
    return page


def write_run(folder, kind, *, steps=30, done=30, finished=True, weights=None):
    folder.mkdir(parents=True)
    section = (
        "method: {name: voco, variant: paper}" if kind == "pre" else "task: {name: segmentation}"
    )
    recipe = f"steps: {steps}\nbatch_size: 2\nseed: 4\n{section}\nbackbone: {{name: unet}}\n"
    (folder / "recipe.yaml").write_text(recipe)
    versions = {"voco": "0.1.0", "torch": "2.13.0"}
    environment = {"versions": versions, "device": "a <fast> machine", "cores": 2, "processes": 1}
    (folder / "environment.json").write_text(json.dumps(environment))
    with (folder / "log.jsonl").open("w") as stream:
        for step in range(1, done + 1):
            stream.write(json.dumps(line(step, kind)) + "\n")
    if finished:
        (folder / "handover.json").write_text('{"data": [{"digest": "x", "cases": 7}]}')
    if kind == "fine":
        (folder / "cases.json").write_text('{"train": ["a", "b"], "validation": ["c"]}')
        notes = {"weights": weights, "summary": "90 %; 3 new: a, b, c", "warnings": []}
        (folder / "weights.json").write_text(json.dumps(notes))


def line(step, kind):
    common = {"step": step, "loss": 1 / step, "lr": 1e-3, "seconds": 2.0 * step}
    common |= {"volumes_per_second": 3.0, "memory_bytes": 7e8}
    if kind == "fine":
        look = {"validation": {"dice": 0.5 + step / 100}} if step % 10 == 0 else {}
        return {**common, **look, "losses": {"ce": 1 / step}, "health": {"dice_score": 0.5}}
    health = {"position_accuracy": 0.4, "position_chance": 0.12, "effective_rank": 9.0}
    health |= {"similarity_inside": 0.5, "similarity_outside": 0.2}
    look = {"holdout": {"loss": 1 / step, "position_accuracy": 0.45, "position_chance": 0.12}}
    losses = {"prediction": 0.7 / step, "regularization": 0.3 / step}
    return {**common, "losses": losses, "health": health, **(look if step % 10 == 0 else {})}


def entry(mean, interval, **more):
    return {"mean": mean, "std": 0.1, "interval": interval, "cases": 2, "unit": "", **more}


def write_evaluation(folder, *, compared=True):
    folder.mkdir(parents=True)
    scores = [Score(case, "left_lobe", "dice", 0.7 + 0.1 * n) for n, case in enumerate("ab")]
    write_scores(folder / "metrics.csv", scores)
    figures = entry(0.75, [0.7, 0.8])
    summary = {
        "task": "segmentation",
        "name": "VoCo",
        "cases": 2,
        "tolerance_mm": 2.0,
        "problems": [{"case": "q", "reason": "other <grid>"}],
        "misses": {"left_lobe": ["b"]},
        "mean": {"dice": figures},
        "structures": {"left_lobe": {"dice": figures}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if compared:
        write_scores(folder / "against.csv", [s._replace(value=s.value - 0.1) for s in scores])
        pair = {"cases": 2, "first": 0.75, "second": 0.74, "difference": 0.01}
        pair |= {"interval": [-0.02, 0.04], "permutation_p": 0.5, "holm_p": 0.5}
        comparison = {
            "names": ["VoCo", "scratch"],
            "mean": {"dice": pair},
            "structures": {"left_lobe": {"dice": pair}},
            "left_out": {},
        }
        (folder / "comparison.json").write_text(json.dumps(comparison))


def test_a_run_of_pretraining_is_told_with_chance_and_pictures(tmp_path):
    write_run(tmp_path / "run", "pre")
    draw_panels([Panel("crop", np.zeros((4, 4), np.float32))], tmp_path / "run/method.png", "x")
    page = read(report(tmp_path / "run"))
    assert "position is right in 45 % of the held-out crops; chance is 12 %." in page.said
    assert "Loss: regularization" in page.said
    assert "7 cases" in page.said
    assert "a <fast> machine, 2 cores" in page.said
    assert sum(link.startswith("data:image/png;base64,") for link in page.loads) == 1


def test_a_run_of_finetuning_is_told_with_its_validation(tmp_path):
    write_run(tmp_path / "run", "fine", weights="runs/pretrain")
    page = read(report(tmp_path / "run"))
    assert "Dice 0.800 on 1 validation case after 30 steps." in page.said
    assert "pretrain: 90 %" in page.said
    assert "2 cases, 1 case held out" in page.said


def test_a_run_that_stopped_says_so(tmp_path):
    write_run(tmp_path / "run", "pre", done=3, finished=False)
    with (tmp_path / "run/log.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed while it wrote
    assert "is not finished: its log ends at step 3 of 30" in read(report(tmp_path / "run")).said


def test_an_evaluation_is_told_with_what_could_not_be_measured(tmp_path):
    write_evaluation(tmp_path / "out", compared=False)
    page = read(report(tmp_path / "out"))
    assert "Dice 0.750 [0.700, 0.800]" in page.said
    assert "Not measured: q: other <grid>" in page.said
    assert "2, 1 missed" in page.said


def test_the_report_says_when_pretraining_did_not_help(tmp_path):
    write_evaluation(tmp_path / "out")
    page = read(report(tmp_path / "out"))
    assert "Pre-training did not measurably help here" in page.said
    assert "0.750 with VoCo and 0.740 with scratch" in page.said
    assert "−0.020" in page.said


def test_a_folder_of_all_of_them_becomes_one_page(tmp_path):
    write_evaluation(tmp_path / "evaluation")
    write_run(tmp_path / "pretrain", "pre")
    write_run(tmp_path / "finetune-scratch", "fine")
    write_run(tmp_path / "finetune-voco", "fine", weights="pretrain")
    (tmp_path / "store").mkdir()
    file = report(tmp_path)
    page = read(file)
    assert file == tmp_path / "report.html"
    order = ["VoCo against scratch", "Fine-tuning", "Pre-training with VoCo"]
    places = [page.said.rindex(words) for words in order]
    assert places == sorted(places)
    assert page.said.index("finetune-voco:") < page.said.index("finetune-scratch:")
    assert report(tmp_path).read_bytes() == file.read_bytes()


def test_classification_is_told_with_its_confusions(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_scores(folder / "metrics.csv", [Score("a", "ill", "correct", 1.0)])
    summary = {
        "task": "classification",
        "cases": 1,
        "mean": {"auroc": entry(None, [None, None]), "accuracy": entry(0.9, [0.8, 1.0])},
        "classes": ["well", "ill"],
        "confusion": [[3, 1], [0, 4]],
        "notes": ["auroc is not defined: a class has no case"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    page = read(report(folder))
    assert "accuracy 0.900 [0.800, 1.000]" in page.said
    assert "Auroc is not defined" in page.said
    assert "said ill" in page.said


def test_a_folder_without_tables_is_refused_with_what_is_looked_for(tmp_path):
    with pytest.raises(
        UsageError, match=r"recipe\.yaml \(a run\), a metrics\.csv \(an evaluation\)"
    ):
        report(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        report(tmp_path / "nowhere")


def test_a_damaged_table_is_named(tmp_path):
    write_run(tmp_path / "run", "pre")
    (tmp_path / "run/environment.json").write_text("{")
    with pytest.raises(DataError, match=r"environment\.json: damaged"):
        report(tmp_path / "run")
