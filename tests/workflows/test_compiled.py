"""Runs whose networks are compiled. In a program of their own: the checks of shapes that tests
switch on cannot be compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blobs import blob_store
from pretraining import plain_log, recipe
from tiny import tiny as build_tiny

from voco.engine.compiling import compiled
from voco.errors import ConfigError, UsageError
from voco.workflows.pretrain import pretrain

TESTS = Path(__file__).parents[1]

TRAINED = """
import sys
from pathlib import Path

import torch
from pretraining import recipe
from voco.workflows.pretrain import pretrain

store, whole, cut = map(Path, sys.argv[1:])
pretrain(recipe(compiled=True), [store], whole)
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
if cut.exists():
    pretrain(recipe(compiled=True), [store], cut, resume=True)
print(graphs)
"""


def run_compiled(store: Path, whole: Path, cut: Path, cache: Path) -> int:
    """How many graphs were compiled for a run, and for the rest of another."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-c", TRAINED, str(store), str(whole), str(cut)]
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing to compile with")
def test_a_compiled_run_learns_what_a_plain_one_does_and_is_gone_on_with_to_the_bit(tmp_path):
    store = blob_store(tmp_path / "store", 8)
    pretrain(recipe(), [store], tmp_path / "plain")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_compiled(store, whole, cut, tmp_path / "cache") > 0
    expected = [line["loss"] for line in plain_log(tmp_path / "plain")]
    found = [line["loss"] for line in plain_log(whole)]
    # Sums are rounded in another order, and what that does grows from step to step.
    assert found[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert found == pytest.approx(expected, rel=3e-2)
    assert found != expected

    shutil.copytree(whole, cut)
    newest = max((cut / "checkpoints").iterdir())
    shutil.rmtree(newest)
    (cut / "handover.json").unlink()
    shutil.rmtree(whole)
    run_compiled(store, whole, cut, tmp_path / "cache")
    assert (cut / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()
    assert plain_log(cut) == plain_log(whole)


def test_a_plain_run_is_not_gone_on_with_compiled(tmp_path):
    store = blob_store(tmp_path / "store", 8)
    pretrain(recipe(), [store], tmp_path / "run")
    (tmp_path / "run" / "handover.json").unlink()
    with pytest.raises(ConfigError, match="compiled"):
        pretrain(recipe(compiled=True), [store], tmp_path / "run", resume=True)


def test_networks_are_as_they_were_when_training_ends():
    backbone = build_tiny()
    before = dict(vars(backbone))
    with compiled(backbone):
        assert "encode" in vars(backbone)
        assert set(backbone.state_dict()) == set(build_tiny().state_dict())
    assert vars(backbone) == before


def test_without_a_compiler_it_says_what_to_do_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    store = blob_store(tmp_path / "store", 8)
    with pytest.raises(UsageError, match=r"no no-such-compiler.*leave compiled out"):
        pretrain(recipe(compiled=True), [store], tmp_path / "run")
    assert not (tmp_path / "run").exists()
