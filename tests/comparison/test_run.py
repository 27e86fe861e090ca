"""Comparisons of seconds, whole ones."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from protocols import protocol, raw_protocol, store_of_scans

from voco.cli import DONE, INCOMPLETE, main
from voco.comparison.outcomes import Outcomes
from voco.comparison.run import compare, preview
from voco.data.imageio import read_image, write_image
from voco.errors import ConfigError, DataError, StoreError, UsageError
from voco.evaluation.comparisons import read_costs, read_values
from voco.geometry import Grid
from voco.volume import Volume
from voco.weights import read_handover, read_tensors
from voco.workflows.prepare import prepare
from voco.workflows.report import report


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory) -> Path:
    """A comparison that was never stopped."""
    out = tmp_path_factory.mktemp("straight") / "comparison"
    done = compare(protocol(store), out)
    assert done.complete, done
    return out


def outcomes(out: Path) -> dict[str, dict]:
    return {f.stem: json.loads(f.read_text()) for f in sorted((out / "outcomes").glob("*.json"))}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_every_value_of_every_training_is_in_the_table(straight):
    values = read_values(straight)
    assert {value.metric for value in values} == {"dice", "hd95", "nsd"}
    assert {value.case for value in values} == {"scan4", "scan5"}
    by_training = {value[:6] for value in values}
    assert len(by_training) == (1 + 2 + 1) * 2
    assert len(values) == len(by_training) * 2 * 2 * 3


def test_what_every_job_cost_is_told(straight):
    costs = read_costs(straight)
    assert [cost.status for cost in costs] == ["done"] * 10
    assert [cost.kind for cost in costs].count("pretraining") == 2
    for cost in costs:
        assert cost.steps == (3 if cost.kind == "pretraining" else 4)
        assert cost.cases == (4 if cost.kind == "pretraining" else 2)
        assert cost.seconds
        assert cost.cpu_seconds
        assert cost.memory_bytes
        assert cost.attempts == 1
    tuned = {(c.method, c.handover): c for c in costs if c.kind == "finetuning"}
    assert tuned["scratch", "none"].loaded_share is None
    assert tuned["voco", "encoder"].loaded_share == 1.0
    # The same encoder, and a decoder in addition.
    encoder, full = (tuned["fusion", one].loaded_tensors for one in ("encoder", "full"))
    assert encoder is not None
    assert full is not None
    assert full > encoder == tuned["voco", "encoder"].loaded_tensors


def test_rows_differ_in_what_they_start_from_and_in_nothing_else(straight):
    runs = straight / "finetuning"
    names = ["scratch--small--none--2--s0", "fusion--small--encoder--2--p0--s0"]
    names.append("fusion--small--full--2--p0--s0")
    cases = [json.loads((runs / name / "run/cases.json").read_text()) for name in names]
    assert cases[0] == cases[1] == cases[2]
    recipes = [yaml.safe_load((runs / name / "run/recipe.yaml").read_text()) for name in names]
    assert len({json.dumps({**recipe, "transfer": ""}) for recipe in recipes}) == 1
    weights = [read_tensors(runs / name / "run") for name in names]
    assert len({str(sorted((k, float(v.sum())) for k, v in w.items())) for w in weights}) == 3


def test_training_states_go_and_weights_stay(straight):
    assert list(straight.rglob("checkpoints")) == []
    assert len(list(straight.rglob("weights.safetensors"))) == 10
    assert list((straight / "claims").iterdir()) == []


def test_what_follows_from_the_tables_is_written_and_told(straight):
    gained = rows(straight / "gains.csv")
    assert {(row["method"], row["over"]) for row in gained} == {
        ("voco", "scratch"),
        ("fusion", "scratch"),
        ("fusion", "voco"),
    }
    assert {row["trainings"] for row in gained} == {"2"}
    assert len(rows(straight / "ranks.csv")) == 4 * 3
    page = (straight / "report.html").read_text()
    assert "none of 2 test cases (files, voxels and looks compared with those of 4 cases" in page
    assert "Measured on 2 cases only" in page
    assert "2 trainings only" in page


def test_the_page_is_made_anew_from_the_tables_alone(straight, tmp_path):
    for name in ("table.csv", "runs.csv", "comparison.yaml", "leaks.json"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    made = report(tmp_path).read_text().replace(f">{tmp_path.name}<", f">{straight.name}<")
    assert made == (straight / "report.html").read_text()


def test_a_finished_comparison_has_nothing_left_to_do(straight, store):
    before = {file: file.stat().st_mtime_ns for file in straight.rglob("outcomes/*.json")}
    assert compare(protocol(store), straight, resume=True).counts == {"done": 10}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "10 jobs in all: 10 done" in preview(protocol(store), straight)


def test_trainings_that_were_measured_by_two_conventions_share_no_table(straight, store, tmp_path):
    out = tmp_path / "mixed"
    shutil.copytree(straight, out)
    file = sorted(out.rglob("evaluation/summary.json"))[0]
    summary = json.loads(file.read_text())
    summary["convention"]["background"] = True
    file.write_text(json.dumps(summary))
    with pytest.raises(DataError, match="figures of two conventions do not compare"):
        compare(protocol(store), out, resume=True)


def test_a_folder_is_not_written_unasked(straight, store, tmp_path):
    with pytest.raises(UsageError, match="--resume goes on"):
        compare(protocol(store), straight)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="is no comparison"):
        compare(protocol(store), tmp_path)


def test_other_settings_are_not_mixed_with_what_was_run(straight, store):
    finetuning = raw_protocol(store)["finetuning"] | {"steps": 9}
    with pytest.raises(ConfigError, match="8 jobs were run with other settings"):
        compare(protocol(store, finetuning=finetuning), straight, resume=True)


def test_a_preview_writes_nothing(store, tmp_path):
    said = preview(protocol(store, seeds=[0]), tmp_path / "out")
    assert "6 jobs in all: 6 waiting" in said
    assert not (tmp_path / "out").exists()


def test_killed_and_gone_on_with_it_gives_the_same_table(straight, store, tmp_path):
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(raw_protocol(store), sort_keys=False))
    command = [sys.executable, "-m", "voco", "compare", str(recipe), "--out", str(out), "--resume"]
    # Killed while the third job runs, and once more three jobs later.
    for finished in (2, 5):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
            while len(outcomes(out)) < finished or len(list(out.glob("claims/*--*.claim"))) == 0:
                assert run.poll() is None
                time.sleep(0.01)
            run.kill()
    assert main(["compare", str(recipe), "--out", str(out), "--resume"]) == DONE
    assert (out / "table.csv").read_bytes() == (straight / "table.csv").read_bytes()


def test_a_signal_stops_the_job_in_good_order(store, tmp_path):
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    long = raw_protocol(store, methods={"voco": raw_protocol(store)["methods"]["voco"]})
    long["pretraining"] |= {"steps": 100_000, "checkpoint_every": 100_000}
    recipe.write_text(yaml.safe_dump(long))
    command = [sys.executable, "-m", "voco", "compare", str(recipe), "--out", str(out)]
    log = out / "pretraining/voco--small--p0/log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == 128 + signal.SIGTERM
    assert "The same command with --resume goes on" in " ".join(said.split())
    outcome = outcomes(out)["voco--small--p0--pretraining"]
    assert outcome["status"] == "interrupted"
    assert outcome["cpu_seconds"] > 0
    assert len(list((out / "pretraining/voco--small--p0/checkpoints").iterdir())) == 1
    assert list((out / "claims").iterdir()) == []


def test_a_failed_job_is_told_the_rest_goes_on_and_it_is_tried_again(tmp_path, capsys):
    store = store_of_scans(tmp_path / "scans")
    other = store_of_scans(tmp_path / "unlabelled")
    hidden = other / "images" / "scan0.b2nd"
    content = hidden.read_bytes()
    hidden.unlink()
    values = raw_protocol(store, seeds=0, pretrain_data=str(other))
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(values))
    words = ["compare", str(recipe), "--out", str(out)]
    assert main(words) == INCOMPLETE
    assert "scan0.b2nd: missing" in capsys.readouterr().out
    states = {(c.kind, c.method): c.status for c in read_costs(out)}
    assert states["finetuning", "scratch"] == "done"
    assert states["pretraining", "voco"] == "failed"
    assert states["finetuning", "fusion"] == "blocked"
    assert "Failed: pretraining voco" in (out / "report.html").read_text()
    hidden.write_bytes(content)
    assert main([*words, "--resume"]) == DONE
    costs = [cost for cost in read_costs(out) if cost.kind == "pretraining"]
    assert [(cost.status, cost.attempts) for cost in costs] == [("done", 2)] * 2


def test_a_job_that_is_killed_is_told_and_kills_no_other(store, tmp_path):
    """Its process alone, as for want of memory."""
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    values = raw_protocol(store, seeds=0, methods={"voco": raw_protocol(store)["methods"]["voco"]})
    values["pretraining"] |= {"steps": 100_000, "checkpoint_every": 100_000}
    recipe.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "voco", "compare", str(recipe), "--out", str(out)]
    log = out / "pretraining/voco--small--p0/log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        while not log.exists():
            assert run.poll() is None
            time.sleep(0.01)
        os.kill(job_of(run.pid), signal.SIGKILL)
        assert run.wait(timeout=200) == INCOMPLETE
    told = outcomes(out)
    assert "want of memory" in told["voco--small--p0--pretraining"]["reason"]
    assert told["scratch--small--none--2--s0--finetuning"]["status"] == "done"


def job_of(process: int) -> int:
    """The process that does a job for another: its only child's only child."""
    for _ in range(2):
        process = int(Path(f"/proc/{process}/task/{process}/children").read_text())
    return process


def test_seconds_buy_the_same_steps_for_good(store, tmp_path):
    methods = {"voco": raw_protocol(store)["methods"]["voco"]}
    config = protocol(store, methods=methods, seeds=0, seconds=0.3)
    assert compare(config, tmp_path / "out").complete
    known = Outcomes(tmp_path / "out/outcomes")
    budget, trained = (known.read(f"voco--small--{n}") for n in ("budget", "p0--pretraining"))
    assert budget is not None
    assert trained is not None
    assert budget.steps == trained.steps
    assert budget.steps
    assert not (tmp_path / "out/budget/voco--small").exists()


def test_whole_volumes_are_classified(store, tmp_path):
    methods = {"voco": raw_protocol(store)["methods"]["voco"]}
    task = {"name": "classification", "size": [16, 16, 16]}
    finetuning = raw_protocol(store)["finetuning"] | {"task": task}
    config = protocol(store, methods=methods, seeds=0, finetuning=finetuning, keep="tables")
    assert compare(config, tmp_path / "out").complete
    values = read_values(tmp_path / "out")
    assert {value.metric for value in values} == {
        "correct",
        "accuracy",
        "balanced_accuracy",
        "auroc",
        "f1",
    }
    assert "Auroc" in (tmp_path / "out/report.html").read_text().replace("AUROC", "Auroc")
    assert list((tmp_path / "out/finetuning").rglob("*.safetensors")) == []


def test_what_is_learnt_from_is_not_measured_on(store, tmp_path):
    scans = store.parent
    test = {"images": [str(scans / "scan0.nii.gz")], "references": str(scans)}
    with pytest.raises(ConfigError, match="1 of the scans to measure on are also learnt from"):
        compare(protocol(store, test=test), tmp_path / "out")


@pytest.fixture(scope="module")
def leaking(store, tmp_path_factory) -> Path:
    """A store to pre-train on with a copy of a test case, of other intensities and header."""
    folder = tmp_path_factory.mktemp("leaking")
    (folder / "scans").mkdir()
    for new, old in (("one", "scan0"), ("two", "scan1"), ("three", "scan4")):
        volume = read_image(store.parent / f"{old}.nii.gz")
        moved = np.array(volume.grid.affine)
        moved[:3, 3] += 7
        image = Volume(volume.array * 2 + 100, Grid(volume.grid.shape, moved))
        write_image(image, folder / "scans" / f"{new}.nii.gz")
    prepare([folder / "scans"], folder / "store", workers=1, modality="MR")
    return folder / "store"


def test_a_copy_of_a_test_case_is_refused_under_any_name(store, leaking, tmp_path):
    config = protocol(store, pretrain_data=[str(store), str(leaking)])
    with pytest.raises(ConfigError, match=r"scan4 of .* looks like three of .*leaks: exclude"):
        compare(config, tmp_path / "out")


def test_copies_of_test_cases_are_left_out_of_pretraining_on_request(store, leaking, tmp_path):
    methods = {"voco": raw_protocol(store)["methods"]["voco"]}
    both = [str(store), str(leaking)]
    config = protocol(store, methods=methods, seeds=0, pretrain_data=both, leaks="exclude")
    assert compare(config, tmp_path / "out").complete
    run = tmp_path / "out/pretraining/voco--small--p0"
    assert [row["case"] for row in rows(run / "left_out.csv")] == ["three"]
    handover = read_handover(run)
    assert [part.cases for part in handover.data] == [4, 2]
    assert [part.cases for part in handover.guarded] == [2]
    assert {value.seen for value in read_values(tmp_path / "out")} == {""}
    page = (tmp_path / "out/report.html").read_text()
    assert "1 of 2 test cases; their copies were left out of pre-training" in page


def test_values_of_cases_that_were_learnt_from_say_so(store, leaking, tmp_path):
    methods = {"voco": raw_protocol(store)["methods"]["voco"]}
    config = protocol(
        store, methods=methods, seeds=0, pretrain_data=str(leaking), leaks="report", against=None
    )
    assert compare(config, tmp_path / "out").complete
    seen = {(value.method, value.case): value.seen for value in read_values(tmp_path / "out")}
    assert seen == {
        ("voco", "scan4"): "pretraining",
        ("voco", "scan5"): "",
        ("scratch", "scan4"): "",
        ("scratch", "scan5"): "",
    }
    page = (tmp_path / "out/report.html").read_text()
    assert "voco has learnt from 1 of the 2 test cases" in page


def test_only_cases_of_a_store_can_be_excluded(store, tmp_path):
    test = {"images": [str(store.parent / "scan5.nii.gz")], "references": str(store.parent)}
    with pytest.raises(ConfigError, match="needs test cases that are in a store"):
        compare(protocol(store, test=test, leaks="exclude"), tmp_path / "out")


def test_tables_without_a_column_of_what_was_seen_are_read(straight, tmp_path):
    table = rows(straight / "table.csv")
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        names = [name for name in table[0] if name != "seen"]
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    # Compared as texts, since a value that is not a number equals nothing.
    assert str(read_values(tmp_path)) == str(read_values(straight))


def test_originals_that_are_gone_are_asked_for(tmp_path):
    store = store_of_scans(tmp_path / "scans")
    (tmp_path / "scans/scan5.nii.gz").unlink()
    with pytest.raises(StoreError, match="Bring it back"):
        compare(protocol(store), tmp_path / "out")


def test_a_folder_in_which_others_work_is_not_removed(store, tmp_path):
    (tmp_path / "comparison.yaml").touch()
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/voco--small--p0--pretraining.1.claim").write_text('{"host": "there"}')
    with pytest.raises(UsageError, match="there is working in it"):
        compare(protocol(store), tmp_path, overwrite=True)


def test_other_test_cases_are_not_mixed_with_those_it_was_begun_with(store, straight, tmp_path):
    shutil.copytree(straight / "test", tmp_path / "test")
    (tmp_path / "test/cases.json").write_text('{"another": "case"}')
    with pytest.raises(ConfigError, match="not those that it was begun with"):
        compare(protocol(store), tmp_path, resume=True)
