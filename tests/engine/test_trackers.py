import json

import numpy as np
import pytest
from blobs import blob_store
from pretraining import plain_log, recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from voco.engine import trackers
from voco.engine.log import Log, read_log
from voco.engine.trackers import IDS_FILE, Tracker, Trackers
from voco.errors import Interrupted, UsageError
from voco.workflows.pretrain import pretrain


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("trackers") / "store", 3)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


class Broken(Tracker):
    """Fails at the third step; keeps what it was told before."""

    def __init__(self):
        self.steps = []

    def log(self, step, figures):
        if step > 2:
            raise RuntimeError("the disk\nis full")
        self.steps.append((step, dict(figures)))

    def close(self, *, finished):
        raise AssertionError("a tracker that failed is not asked again")


def train_and_stop(config, store, out, monkeypatch, after=3):
    """Train, be stopped by a signal after a step, and go on."""
    import os
    import signal

    log_of = Log.__call__

    def signalled(log, record) -> None:
        log_of(log, record)
        if record.done == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "__call__", signalled)
        with pytest.raises(Interrupted):
            pretrain(config, [store], out)
    before = json.loads((out / IDS_FILE).read_text()) if (out / IDS_FILE).exists() else {}
    pretrain(config, [store], out, resume=True)
    return before


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(capsys):
    broken, sound = Broken(), []

    class Sound(Broken):
        def log(self, step, figures):
            sound.append(step)

        def close(self, *, finished):
            sound.append(finished)

    def refuse():
        raise OSError("no such server")

    both = Trackers({"absent": refuse, "broken": lambda: broken, "sound": Sound})
    for step in range(1, 6):
        both.log(step, {"loss": 0.5})
    both.close(finished=True)
    assert broken.steps == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]
    assert sound == [1, 2, 3, 4, 5, True]
    absent, failed = capsys.readouterr().err.splitlines()
    assert "absent failed and is left out; the run goes on (OSError: no such server)" in absent
    assert (
        "broken failed and is left out; the run goes on (RuntimeError: the disk is full)" in failed
    )


def test_a_failing_tracker_changes_no_bit_of_the_run(store, tmp_path, monkeypatch, capsys):
    sound = pretrain(recipe(log_every=1), [store], tmp_path / "sound")
    monkeypatch.setattr(trackers, "TensorBoard", lambda *_: Broken())
    failing = pretrain(recipe(log_every=1), [store], tmp_path / "failing")
    assert capsys.readouterr().err.count("the tracker tensorboard failed") == 1
    assert plain_log(failing) == plain_log(sound)
    ours, theirs = (run / "weights.safetensors" for run in (failing, sound))
    assert ours.read_bytes() == theirs.read_bytes()


def test_event_files_hold_the_log_and_a_resumed_run_goes_on_in_them(store, tmp_path, monkeypatch):
    config = recipe(log_every=1)
    train_and_stop(config, store, tmp_path / "run", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    found = events.Scalars("losses/prediction")
    assert [event.step for event in found] == [1, 2, 3, 4, 5, 6]
    expected = [line["losses"]["prediction"] for line in lines]
    assert np.allclose([event.value for event in found], expected)
    assert {"loss", "lr", "gradient_norm", "seconds"} <= set(events.Tags()["scalars"])


def test_without_trackers_there_is_the_log_alone(store, tmp_path):
    run = pretrain(recipe(trackers=()), [store], tmp_path / "run")
    assert not (run / "tensorboard").exists()
    assert read_log(run / "log.jsonl")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_before_the_run_begins(
    store, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UsageError, match=rf"pip install 'voco\[{name}\]'"):
        pretrain(recipe(trackers=(name,)), [store], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_one_run_also_when_it_was_stopped(store, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    config = recipe(log_every=1, trackers=("mlflow",))
    before = train_and_stop(config, store, tmp_path / "run", monkeypatch)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "voco"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == before["mlflow"]["run"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["method.name"] == "voco"
    history = client.get_metric_history(run.info.run_id, "losses/prediction")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    lines = read_log(tmp_path / "run" / "log.jsonl")
    expected = [line["losses"]["prediction"] for line in lines]
    assert np.allclose([metric.value for metric in history], expected)


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_writes_offline_under_one_name(store, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    config = recipe(log_every=1, trackers=("wandb",))
    before = train_and_stop(config, store, tmp_path / "run", monkeypatch)
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    name = before["wandb"]["run"]
    assert len(parts) == 2
    assert all(part.name.endswith(f"-{name}") for part in parts)
    assert all(list(part.glob("run-*.wandb")) for part in parts)
    after = json.loads((tmp_path / "run" / IDS_FILE).read_text())
    assert after == before
