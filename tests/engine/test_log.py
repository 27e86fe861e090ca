import json
import time

import pytest
import torch
from learning import follower, learn, numbers

from voco.engine.launch import launch
from voco.engine.log import TIMES, Log, read_log


@pytest.fixture
def fabric():
    return launch()


def logged(fabric, folder, *, every=2, done=0, stop=7, hooks=()):
    folder.mkdir(exist_ok=True)
    log = Log(fabric, folder, every, volumes=4, done=done)
    learn(
        follower(),
        numbers(done, stop),
        steps=range(done, stop),
        fabric=fabric,
        hooks=(*hooks, log),
    )
    log.close()
    return read_log(folder / "log.jsonl")


def test_the_first_the_last_and_every_so_many_steps_have_a_line(fabric, tmp_path):
    assert [line["step"] for line in logged(fabric, tmp_path, every=3)] == [1, 3, 6, 7]


def test_a_line_holds_what_is_promised(fabric, tmp_path):
    line = logged(fabric, tmp_path)[-1]
    assert set(line) == {"step", "loss", "losses", "gradient_norm", "lr", "health", *TIMES}
    assert set(line["losses"]) == {"near", "small"}
    assert line["loss"] == pytest.approx(sum(line["losses"].values()))
    assert set(line["health"]) == {"spread"}


def test_the_share_of_waiting_for_data_is_logged(fabric, tmp_path):
    def slow(stream):
        for number in stream:
            time.sleep(0.1)
            yield number

    log = Log(fabric, tmp_path, 2, volumes=4, done=0)
    learn(follower(), slow(numbers(0, 6)), steps=range(6), fabric=fabric, hooks=(log,))
    fast = logged(fabric, tmp_path / "fast", stop=6)
    waited = read_log(tmp_path / "log.jsonl")
    assert all(0.2 < line["data_share"] <= 1 for line in waited[1:])
    assert all(0 <= line["data_share"] < 0.2 for line in fast[1:])


def test_a_resumed_log_is_cut_to_the_checkpoint_and_has_no_line_twice(fabric, tmp_path):
    straight = logged(fabric, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    again = logged(fabric, tmp_path, done=3)
    assert [line["step"] for line in again] == [1, 2, 4, 6, 7]
    assert again[:2] == straight[:2]
    assert again[2]["seconds"] > again[1]["seconds"], "the time before counts"


def test_a_step_to_which_a_hook_added_figures_has_a_line(fabric, tmp_path):
    def look(record):
        if record.done == 3:
            record.figures["holdout"] = {"loss": 1.5}

    lines = logged(fabric, tmp_path, every=100, hooks=(look,))
    assert [line["step"] for line in lines] == [1, 3, 7]
    assert lines[1]["holdout"] == {"loss": 1.5}


def test_what_is_not_a_number_is_null(fabric, tmp_path):
    def look(record):
        record.health["spread"] = torch.tensor(float("nan"))

    logged(fabric, tmp_path, hooks=(look,))
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        found = json.loads(line, parse_constant=pytest.fail)
        assert found["health"] == {"spread": None}
