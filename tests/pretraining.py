"""A pre-training run of a second or two, and a program that is killed while it trains.

As a program: ``python pretraining.py STORE FOLDER SEED STEPS KILLS`` trains in a forked process,
kills it with SIGKILL at random moments, resumes it, and so on until it gets through. Forking spares
the imports, so the kills fall into training, and into the writing of checkpoints.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from voco.engine.log import TIMES, read_log
from voco.recipes import PretrainConfig
from voco.workflows.pretrain import pretrain

FAST = {
    "method": {
        "name": "voco",
        "variant": "v1",
        "grid": [2, 2, 1],
        "crop": [8, 8, 8],
        "hidden": 16,
        "width": 16,
    },
    "backbone": {"name": "resenc_unet", "features": [4, 8], "blocks": [1, 1]},
    "intensity": {"name": "window", "low": -200, "high": 200},
    "optimizer": {"lr": 0.01, "warmup_steps": 2},
    "steps": 6,
    "batch_size": 2,
    "log_every": 2,
    "checkpoint_every": 2,
    "windows": {"workers": 0},
}


def recipe(**changes) -> PretrainConfig:
    """A recipe that takes seconds."""
    return PretrainConfig.model_validate({**FAST, **changes})


def plain_log(run: Path) -> list[dict]:
    """The log without what differs between equal runs."""
    lines = read_log(run / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def killed_recipe(steps: int, **changes) -> PretrainConfig:
    """A checkpoint at every step, so that many kills fall into writing one."""
    often = {"checkpoint_every": 1, "log_every": 1, "holdout": 0.25, "windows": {"workers": 1}}
    return recipe(steps=steps, **often, **changes)


def kill_until_done(store: Path, run: Path, seed: int, steps: int, most: int) -> int:
    """How many times the run was killed before it got through; not more than ``most`` times."""
    moments = random.Random(seed)
    kills = 0
    while not (run / "handover.json").exists():
        child = os.fork()
        if not child:
            pretrain(killed_recipe(steps), [store], run, resume=True)
            os._exit(0)
        lines = moments.randint(0, 3) if kills < most else steps + 1
        kills += _killed(child, run, lines, moments.uniform(0, 0.03))
    return kills


def _killed(child: int, run: Path, lines: int, seconds: float) -> bool:
    """Kill a process that trains, some lines of its log and a moment later, unless it is done."""
    file = run / "log.jsonl"
    before = _size(file)
    while _size(file) < before + lines or not run.exists():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the run failed by itself"
            return False
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != 0


def _size(file: Path) -> int:
    return len(read_log(file))


if __name__ == "__main__":
    kills = kill_until_done(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
    sys.stdout.write(f"{kills}\n")
