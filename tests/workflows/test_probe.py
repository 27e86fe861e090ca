import csv
import json
import os
import signal

import pytest
import torch
from blobs import blob_store
from pretraining import plain_log, recipe

from voco.cli import DONE, INCOMPLETE, USAGE, main
from voco.engine.log import Log
from voco.errors import ConfigError, Interrupted, UsageError
from voco.evaluation.tables import read_rows
from voco.probing import extracted, find_probe, judged, untrained
from voco.recipes import ProbeConfig
from voco.workflows.pretrain import pretrain
from voco.workflows.probe import probe

ASKED = {"window": [16, 16, 16], "voxels": 8, "validation": 2}
CONFIG = ProbeConfig.model_validate(ASKED)
FLAGS = ["--window", "16", "16", "16", "--voxels", "8", "--validation", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("probe") / "store", 6)


@pytest.fixture(scope="module")
def plain(store, tmp_path_factory):
    """A run without a probe."""
    return pretrain(recipe(), [store], tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """The same run with a probe."""
    config = recipe(probe=ASKED, probe_every=2)
    out = tmp_path_factory.mktemp("probed") / "run"
    return pretrain(config, [store], out, probe_data=[store])


@pytest.fixture(scope="module")
def probed(store, run, tmp_path_factory):
    """A probe of that run."""
    return probe(run, [store], tmp_path_factory.mktemp("out") / "probe", CONFIG)


def asked_lines(folder) -> dict[int, dict[str, float]]:
    return {line["step"]: line["probe"] for line in plain_log(folder) if "probe" in line}


def test_a_probe_changes_no_bit_of_the_training(plain, run):
    for name in ("weights.safetensors", "handover.json", "views.png"):
        assert (plain / name).read_bytes() == (run / name).read_bytes()
    lines = [{k: v for k, v in line.items() if k != "probe"} for line in plain_log(run)]
    assert lines == plain_log(plain)
    assert {file.name for file in run.iterdir()} - {file.name for file in plain.iterdir()} == {
        "probe.json"
    }


def test_the_log_tells_the_probe_beside_the_untrained_network_and_chance(run):
    lines = asked_lines(run)
    assert list(lines) == [2, 4, 6]
    metrics = ("accuracy", "balanced_accuracy")
    names = {f"{probe}_{metric}" for probe in ("linear", "neighbours") for metric in metrics}
    for line in lines.values():
        expected = {*names, *(f"untrained_{name}" for name in names)}
        assert set(line) == {*expected, *(f"{metric}_chance" for metric in metrics)}
        assert line["balanced_accuracy_chance"] == pytest.approx(1 / 3)
        assert line["untrained_linear_accuracy"] == lines[2]["untrained_linear_accuracy"]


def test_the_last_line_of_the_log_is_what_the_weights_are_found_to_tell(run, probed):
    last = asked_lines(run)[6]
    for name, prefix in (("trained", ""), ("untrained", "untrained_")):
        for asked, metrics in probed.summary["networks"][name].items():
            for metric, value in metrics.items():
                assert last[f"{prefix}{asked}_{metric}"] == value


def test_the_untrained_network_is_the_one_that_the_run_began_with(store, run):
    config = recipe()
    backbone = untrained(config.backbone, config.seed)
    found = find_probe(CONFIG, [store], backbone, config.intensity)
    rows = extracted(found, backbone, torch.device("cpu"))
    figures = judged(found, *rows, torch.device("cpu")).flat()
    assert json.loads((run / "probe.json").read_text())["untrained"] == figures


def test_a_stopped_run_goes_on_with_the_same_probe(store, run, tmp_path, monkeypatch):
    config, stopped = recipe(probe=ASKED, probe_every=2), tmp_path / "stopped"
    log_of = Log.__call__

    def signalled(log, record) -> None:
        log_of(log, record)
        if record.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "__call__", signalled)
        with pytest.raises(Interrupted):
            pretrain(config, [store], stopped, probe_data=[store])
    other = recipe(probe=ASKED | {"voxels": 9}, probe_every=2)
    with pytest.raises(ConfigError, match=r"probe\.json: the probe had other settings"):
        pretrain(other, [store], stopped, probe_data=[store], resume=True)
    pretrain(config, [store], stopped, probe_data=[store], resume=True)
    assert asked_lines(stopped) == asked_lines(run)
    for name in ("weights.safetensors", "probe.json"):
        assert (stopped / name).read_bytes() == (run / name).read_bytes()


def test_a_probe_can_be_added_to_a_run_that_goes_on(store, plain, tmp_path, monkeypatch):
    log_of = Log.__call__

    def signalled(log, record) -> None:
        log_of(log, record)
        if record.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "__call__", signalled)
        with pytest.raises(Interrupted):
            pretrain(recipe(), [store], tmp_path / "run")
    config = recipe(probe=ASKED, probe_every=3)
    folder = pretrain(config, [store], tmp_path / "run", probe_data=[store], resume=True)
    assert list(asked_lines(folder)) == [3, 6]
    ours, theirs = (path / "weights.safetensors" for path in (folder, plain))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_probe_that_cannot_be_stops_the_run_before_it_begins(store, tmp_path):
    config = recipe(probe=ASKED | {"validation": 0})
    with pytest.raises(ConfigError, match="holds no case out"):
        pretrain(config, [store], tmp_path / "run", probe_data=[store])
    assert not (tmp_path / "run").exists()


def test_the_tables_of_a_probe_are_complete(probed):
    rows = read_rows(probed.folder / "probe.csv")
    kinds = {(row["network"], row["probe"], row["metric"]) for row in rows}
    assert len(kinds) == 2 * 2 * 3
    structures = {row["structure"] for row in rows if row["metric"] == "found"}
    assert structures == {"background", "dark", "bright"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert all(bool(row["chance"]) == (row["structure"] == "all") for row in rows)
    summary = json.loads((probed.folder / "probe.json").read_text())
    assert not set(summary["cases"]["train"]) & set(summary["cases"]["test"])
    assert summary["rows"] == {"train": 4 * 24, "test": 2 * 24}
    assert summary["comparison"]["linear"]["cases"] == 2
    assert summary["warnings"] == []


def test_the_same_probe_gives_the_same_figures(store, run, probed, tmp_path):
    again = probe(run, [store], tmp_path / "again", CONFIG)
    assert (again.folder / "probe.csv").read_bytes() == (probed.folder / "probe.csv").read_bytes()
    other = CONFIG.model_copy(update={"seed": 1})
    moved = probe(run, [store], tmp_path / "other", other)
    assert moved.summary["networks"] != probed.summary["networks"]


def test_balls_of_another_brightness_are_told_from_random_features(probed):
    """The blobs differ in brightness alone: even an untrained network shows that."""
    found = probed.summary["networks"]["untrained"]["linear"]
    assert found["balanced_accuracy"] > 0.8


def test_a_probe_that_is_there_is_not_replaced_unasked(store, run, probed):
    with pytest.raises(UsageError, match="--overwrite"):
        probe(run, [store], probed.folder, CONFIG)


def test_cases_are_asked_about_from_the_command_line(store, run, tmp_path, capsys):
    words = ["probe", str(run), "--data", str(store), "--out", str(tmp_path / "out")]
    assert main([*words, *FLAGS, "--of", "cases", "--labels", "3"]) == DONE
    printed = capsys.readouterr().out
    assert "3 cases to learn from, 2 to ask about (3 and 2 cases" in printed
    assert "linear, auroc:" in printed
    assert main(["report", str(tmp_path / "out")]) == DONE
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Probe of frozen features" in page
    assert "vote of nearest neighbours, AUROC" in page


def test_a_run_is_probed_from_the_command_line_and_its_report_draws_it(store, tmp_path):
    text = "method: {name: voco, variant: v1, grid: [2, 2, 1], crop: [8, 8, 8], width: 16}\n"
    text += "backbone: {name: resenc_unet, features: [4, 8], blocks: [1, 1]}\n"
    text += "steps: 2\nbatch_size: 2\nwindows: {workers: 0}\n"
    (tmp_path / "mine.yaml").write_text(text)
    words = ["pretrain", str(tmp_path / "mine.yaml"), "--data", str(store)]
    words += ["--out", str(tmp_path / "run"), "--probe_data", str(store), "--probe_every", "1"]
    asked = [word.replace("--", "--probe.") for word in FLAGS]
    assert main([*words, *asked]) == DONE
    assert list(asked_lines(tmp_path / "run")) == [1, 2]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "At the end a linear probe on frozen features has a balanced accuracy of" in page
    assert "Vote of nearest neighbours: balanced accuracy" in page


def test_weights_that_nobody_describes_and_stores_without_labels_are_refused(
    store, run, tmp_path, capsys
):
    words = ["--data", str(store), "--out", str(tmp_path / "out")]
    assert main(["probe", str(tmp_path), *words]) == INCOMPLETE
    assert "has no handover.json" in capsys.readouterr().err
    assert main(["probe", str(run), *words, "--validation", "9"]) == USAGE
    assert "validation: 9 cases asked for, 6 are there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_is_plain_csv(probed):
    with (probed.folder / "probe.csv").open() as stream:
        first = next(csv.reader(stream))
    assert first == ["network", "probe", "structure", "metric", "value", "chance"]
