import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voco.comparison.claims import Claims

CLAIMER = """
import sys, time
from pathlib import Path
from voco.comparison.claims import Claims
folder, done = Path(sys.argv[1]), Path(sys.argv[2])
claims = Claims(folder, stale_seconds=60)
left = [f"job{number}" for number in range(int(sys.argv[3]))]
while left:
    for job in list(left):
        claim = claims.take(job)
        if claim is None:
            continue
        if not (done / job).exists():
            with (done / "order").open("a") as stream:
                stream.write(f"{job}\\n")
            time.sleep(0.001)
            (done / job).touch()
        claim.release()
        left.remove(job)
"""
"""Does every job that nobody has done, as a comparison does, and notes each beginning."""


def of_another_machine(folder: Path, job: str, *, seconds_ago: float, number: int = 1) -> Path:
    file = folder / f"{job}.{number}.claim"
    content = {"token": "theirs", "host": "there", "machine": "another", "processes": [[1, "1"]]}
    file.write_text(json.dumps(content))
    now = file.stat().st_mtime
    os.utime(file, (now - seconds_ago, now - seconds_ago))
    return file


def finished_process() -> int:
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


def test_a_job_is_held_by_one_until_it_is_given_back(tmp_path):
    claims = Claims(tmp_path)
    claim = claims.take("job")
    assert claim is not None
    assert claims.take("job") is None
    assert list(claims.held()) == ["job"]
    assert claims.take("job2") is not None
    claim.release()
    assert claims.take("job") is not None


@pytest.mark.parametrize("left", [0, 12])
def test_no_job_is_done_twice_whoever_asks(tmp_path, left):
    """Also where a process that is no more has left its claims behind."""
    folder, done = tmp_path / "claims", tmp_path / "done"
    folder.mkdir()
    done.mkdir()
    for number in range(left):
        of_another_machine(folder, f"job{number}", seconds_ago=1000)
    command = [sys.executable, "-c", CLAIMER, str(folder), str(done), "25"]
    together = [subprocess.Popen(command) for _ in range(4)]
    assert [one.wait(timeout=100) for one in together] == [0] * 4
    begun = (done / "order").read_text().split()
    assert sorted(begun) == sorted({f"job{number}" for number in range(25)})
    assert list(folder.iterdir()) == []


def test_a_claim_from_elsewhere_holds_as_long_as_it_is_touched(tmp_path):
    claims = Claims(tmp_path, stale_seconds=100.0)
    fresh = of_another_machine(tmp_path, "fresh", seconds_ago=50)
    of_another_machine(tmp_path, "stale", seconds_ago=150)
    assert claims.take("fresh") is None
    assert claims.held() == {"fresh": "there"}
    assert claims.take("stale") is not None
    now = fresh.stat().st_mtime
    os.utime(fresh, (now - 100, now - 100))
    assert claims.take("fresh") is not None


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    claims = Claims(tmp_path)
    assert claims.take("job") is not None
    (file,) = tmp_path.glob("*.claim")
    content = json.loads(file.read_text())
    content["processes"] = [[finished_process(), "1"]]
    file.write_text(json.dumps(content))
    assert claims.held() == {}
    assert claims.take("job") is not None


def test_a_job_is_held_while_the_process_that_does_it_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as helper:
        assert Claims(tmp_path).take("job", helper.pid) is not None
        (file,) = tmp_path.glob("*.claim")
        content = json.loads(file.read_text())
        content["processes"][0] = [finished_process(), "1"]
        file.write_text(json.dumps(content))
        assert Claims(tmp_path).take("job") is None
        assert helper.stdin is not None
        helper.stdin.close()
        helper.wait()
        assert Claims(tmp_path).take("job") is not None


def test_who_was_taken_for_dead_learns_that_its_job_is_gone(tmp_path):
    theirs = Claims(tmp_path).take("job")
    assert theirs is not None
    assert theirs.beat()
    of_another_machine(tmp_path, "job", seconds_ago=0, number=2)
    assert not theirs.beat()
    theirs.release()
    assert Claims(tmp_path).held() == {"job": "there"}


def test_a_beat_keeps_a_claim_fresh(tmp_path):
    claim = Claims(tmp_path).take("job")
    assert claim is not None
    os.utime(claim.file, (0, 0))
    assert claim.beat()
    assert claim.file.stat().st_mtime > 1e9


def test_a_claim_that_is_being_written_holds(tmp_path):
    (tmp_path / "job.1.claim").touch()
    assert Claims(tmp_path).take("job") is None
