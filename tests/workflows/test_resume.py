import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from blobs import blob_store
from pretraining import killed_recipe, plain_log, recipe

from voco.engine.log import Log, read_log
from voco.errors import CheckpointError, Interrupted
from voco.workflows.pretrain import pretrain

TESTS = Path(__file__).parents[1]
STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return blob_store(tmp_path_factory.mktemp("resume") / "store", 8)


def same(one: Path, other: Path) -> bool:
    files = ("weights.safetensors", "handover.json", "recipe.yaml")
    return plain_log(one) == plain_log(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(store, tmp_path):
    """SIGKILL at random moments, in training and while a checkpoint is written."""
    program = [sys.executable, TESTS / "pretraining.py", store]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}

    def through(folder: Path, kills: int) -> int:
        done = subprocess.run(
            [*program, folder, "3", str(STEPS), str(kills)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert through(tmp_path / "straight", 0) == 0
    assert through(tmp_path / "killed", 8) >= 4
    assert same(tmp_path / "straight", tmp_path / "killed")
    assert len(plain_log(tmp_path / "killed")) == STEPS


BATCH_NORM = {
    "method": {"name": "modelsgenesis", "crop": [16, 16, 16], "shuffle_blocks": 10},
    "backbone": {"name": "genesis_unet", "features": [2, 2, 2, 2]},
}
"""A network with running statistics, which must be taken up as well."""


@pytest.mark.parametrize("changes", [{}, BATCH_NORM], ids=["as it is", "batch norm"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(store, tmp_path, monkeypatch, changes):
    config = killed_recipe(STEPS, **changes)
    straight = pretrain(config, [store], tmp_path / "straight")
    stopped = tmp_path / "stopped"
    log_of = Log.__call__
    for step, wanted in ((3, signal.SIGTERM), (7, signal.SIGINT)):

        def signalled(log, record, step=step, wanted=wanted) -> None:
            log_of(log, record)
            if record.done == step:
                os.kill(os.getpid(), wanted)

        monkeypatch.setattr(Log, "__call__", signalled)
        with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}; .* --resume") as stop:
            pretrain(config, [store], stopped, resume=True)
        assert stop.value.status == 128 + wanted
        assert len(plain_log(stopped)) == step
        assert not (stopped / "handover.json").exists()
    monkeypatch.undo()
    pretrain(config, [store], stopped, resume=True)
    assert same(straight, stopped)


@pytest.mark.parametrize("broken", [1, 2])
def test_a_damaged_checkpoint_costs_steps_and_never_the_run(store, tmp_path, capsys, broken):
    config = recipe()
    straight = pretrain(config, [store], tmp_path / "straight")
    run = pretrain(config, [store], tmp_path / "run")
    (run / "handover.json").unlink()
    newest = sorted((run / "checkpoints").iterdir())[-broken:]
    for checkpoint in newest:
        (checkpoint / "task.safetensors").write_bytes(b"")
    if broken == 2:
        with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
            pretrain(config, [store], run, resume=True)
        assert not (run / "handover.json").exists()
    else:
        pretrain(config, [store], run, resume=True)
        assert "going on from step 4" in capsys.readouterr().err
        assert same(straight, run)


def test_a_run_whose_checkpoints_are_gone_is_not_started_anew(store, tmp_path):
    run = pretrain(recipe(), [store], tmp_path / "run")
    (run / "handover.json").unlink()
    for checkpoint in list((run / "checkpoints").iterdir()):
        for file in list(checkpoint.iterdir()):
            file.unlink()
        checkpoint.rmdir()
    with pytest.raises(CheckpointError, match="the log goes to step 6, but no checkpoint"):
        pretrain(recipe(), [store], run, resume=True)


def test_a_signal_to_the_whole_group_leaves_no_process_behind(store, tmp_path):
    """As schedulers send it: loader processes get it too, and an error is still on its way out."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom pretraining import killed_recipe\n"
        "from voco.workflows.pretrain import pretrain\n"
        "config = killed_recipe(10_000)\n"
        "windows = config.windows.model_copy(update={'workers': 1})\n"
        "config = config.model_copy(update={'windows': windows})\n"
        "pretrain(config, [Path(sys.argv[1])], Path(sys.argv[2]))\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", script, store, tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while program.poll() is None and not read_log(tmp_path / "run" / "log.jsonl"):
            time.sleep(0.05)
        os.killpg(program.pid, signal.SIGTERM)
        program.wait(timeout=60)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
