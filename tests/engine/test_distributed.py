import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blobs import blob_store
from distributed import train_batch_norm, train_brightness, train_voco
from pretraining import plain_log

from voco.weights import read_tensors

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    """A store, and the runs of two processes on it."""
    folder = tmp_path_factory.mktemp("distributed")
    store = blob_store(folder / "store", 6)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, HERE / "distributed.py", store, folder / "two"],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return store, folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brightness", "accumulated", "v1", "v2", "batch norm"])
def test_two_processes_learn_as_one_of_twice_the_batch(two, name):
    store, folder = two
    one = folder / "one" / name
    if name == "brightness":
        train_brightness(store, one, batch_size=2)
    elif name == "accumulated":
        train_brightness(store, one, batch_size=4, accumulate=2)
    elif name == "batch norm":
        train_batch_norm(store, one, batch_size=2)
        ours, theirs = (read_tensors(run) for run in (one, folder / "two" / name))
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    else:
        train_voco(store, one, batch_size=2, variant=name)
    ours, theirs = plain_log(one), plain_log(folder / "two" / name)
    assert len(ours) == len(theirs) >= 5
    for line, other in zip(ours, theirs, strict=True):
        # Sums are rounded in another order. What that does grows from step to step, by up to a
        # factor of 30 where similarities are clamped, so the first steps are those that tell.
        tolerance = 1e-5
        if name not in ("brightness", "accumulated"):
            tolerance = 3e-4 if line["step"] <= 3 else 3e-2
        assert line["losses"] == pytest.approx(other["losses"], rel=tolerance, abs=1e-6)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=tolerance)
        assert line["lr"] == other["lr"]
        # Both ask the very same untrained network.
        assert untrained_figures(line) == untrained_figures(other)
    assert any(map(untrained_figures, ours)) == (name in ("v1", "v2"))


def untrained_figures(line: dict) -> dict[str, float]:
    figures = line.get("probe", {})
    return {name: value for name, value in figures.items() if name.startswith("untrained_")}
