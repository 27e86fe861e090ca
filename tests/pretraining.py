"""A pre-training run of a second or two, and a program that is killed while it trains.

As a program: ``python pretraining.py STORE FOLDER SEED STEPS`` trains in a forked process, kills
it with SIGKILL at random moments, resumes it, and so on until it gets through. Forking spares the
imports, so the kills fall into training, and into the writing of checkpoints.
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


def killed_recipe(steps: int) -> PretrainConfig:
    """A checkpoint at every step, so that many kills fall into writing one."""
    return recipe(
        steps=steps, checkpoint_every=1, log_every=1, holdout=0.25, windows={"workers": 1}
    )


def kill_until_done(store: Path, run: Path, seed: int, steps: int) -> int:
    """How many times the run was killed before it got through."""
    moments = random.Random(seed)
    kills = 0
    while not (run / "handover.json").exists():
        child = os.fork()
        if not child:
            pretrain(killed_recipe(steps), [store], run, resume=True)
            os._exit(0)
        # After enough kills it may get through: the test must end on a slow machine, too.
        limit = moments.uniform(0.2, 2.0) if kills < 12 else 600
        kills += _killed(child, limit)
    return kills


def _killed(child: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the run failed by itself"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


if __name__ == "__main__":
    kills = kill_until_done(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
    sys.stdout.write(f"{kills}\n")
