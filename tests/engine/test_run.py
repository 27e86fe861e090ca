import json

import pytest

from voco.config import read_yaml
from voco.engine.launch import launch
from voco.engine.run import FREE, digest, open_run
from voco.engine.settings import TrainingConfig
from voco.errors import ConfigError, UsageError

CONFIG = TrainingConfig(steps=7)
FACTS = {"stores": ["abc"]}


def opened(path, config=CONFIG, facts=FACTS, **how):
    return open_run(launch(), path, config, facts, **how)


def test_a_run_folder_says_how_it_was_made(tmp_path):
    run = opened(tmp_path / "run")
    assert not run.resumed
    assert TrainingConfig.model_validate(read_yaml(run.path / "recipe.yaml")) == CONFIG
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["stores"] == ["abc"]
    assert environment["seed"] == 0
    assert environment["processes"] == 1
    assert {"python", "torch", "voco"} <= environment["versions"].keys()
    assert environment["threads"] >= 1


def test_a_run_is_neither_mixed_with_another_nor_overwritten_unasked(tmp_path):
    opened(tmp_path / "run")
    with pytest.raises(UsageError, match="--resume goes on with it, --overwrite removes it"):
        opened(tmp_path / "run")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="is not empty, and is not a run"):
            opened(tmp_path, **how)
    assert (tmp_path / "thesis.tex").exists()


def test_overwriting_removes_all_of_the_old_run(tmp_path):
    opened(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "handover.json").write_text("{}")
    run = opened(tmp_path / "run", overwrite=True)
    assert {file.name for file in run.path.iterdir()} == {"recipe.yaml", "environment.json"}


def test_resuming_nothing_starts_and_says_so(tmp_path, capsys):
    assert not opened(tmp_path / "run", resume=True).resumed
    assert "no run in" in capsys.readouterr().err
    assert opened(tmp_path / "run", resume=True).resumed


def test_a_run_that_was_killed_while_it_began_can_begin_again(tmp_path):
    (tmp_path / "recipe.yaml").write_text("steps: 7")
    (tmp_path / ".environment.json.4711").write_text("{")
    run = opened(tmp_path, resume=True)
    assert {file.name for file in run.path.iterdir()} == {"recipe.yaml", "environment.json"}


def test_what_differs_is_named_when_another_recipe_is_to_be_resumed(tmp_path):
    opened(tmp_path / "run")
    other = CONFIG.model_copy(update={"steps": 9, "seed": 4})
    with pytest.raises(ConfigError) as error:
        opened(tmp_path / "run", other, {"stores": ["xyz"]}, resume=True)
    text = str(error.value)
    assert "steps: the run has 7, asked for is 9" in text
    assert "seed: the run has 0, asked for is 4" in text
    assert "stores: the run has ['abc'], now it is ['xyz']" in text
    assert "to train longer, start a new run with --weights" in text


def test_what_does_not_touch_the_weights_may_change(tmp_path):
    run = opened(tmp_path / "run")
    other = CONFIG.model_copy(update={"log_every": 3, "checkpoint_every": 1, "validate_every": 2})
    assert set(other.model_dump()) & FREE == {
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "trackers",
    }
    again = opened(tmp_path / "run", other, resume=True)
    assert again.digest == run.digest == digest(CONFIG)


def test_a_changed_machine_is_noted(tmp_path, capsys):
    run = opened(tmp_path / "run")
    file = run.path / "environment.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "threads": 1000}))
    opened(tmp_path / "run", resume=True)
    assert "other threads than when the run began" in capsys.readouterr().err
    assert json.loads(file.read_text())["resumed"][0]["threads"] == known["threads"]


def test_memory_that_is_taken_otherwise_is_noted_but_no_reason_to_warn(tmp_path, capsys):
    run = opened(tmp_path / "run")
    file = run.path / "environment.json"
    known = json.loads(file.read_text())
    before = {name: not known[name] for name in ("large_pages", "thread_cache")}
    file.write_text(json.dumps({**known, **before}))
    opened(tmp_path / "run", resume=True)
    assert capsys.readouterr().err == ""
    noted = json.loads(file.read_text())["resumed"][0]
    assert {name: noted[name] for name in before} == {name: known[name] for name in before}


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        opened(tmp_path / "run", resume=True, overwrite=True)
