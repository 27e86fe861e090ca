import json
from pathlib import Path

import pytest
import torch
from learning import Follower, equal, follower, numbers, state
from torch import nn
from torch.optim import AdamW

from voco.engine.checkpoint import Checkpoints
from voco.engine.launch import launch
from voco.engine.loop import fit
from voco.engine.optimizer import OptimizerConfig, build_optimizer
from voco.errors import CheckpointError

CONFIG = OptimizerConfig(lr=0.01, amsgrad=True, warmup_steps=2)


@pytest.fixture
def kept(tmp_path) -> Checkpoints:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return Checkpoints(folder, "digest", keep=2)


def fresh(precision: str = "float32") -> tuple[Follower, AdamW]:
    task = follower()
    return task, build_optimizer(CONFIG, task, fused=precision != "fp16-mixed")


def saved(kept: Checkpoints, *steps: int) -> tuple[Follower, AdamW]:
    """A trained task, saved some times."""
    task, optimizer = fresh()
    fit(launch(), task, optimizer, numbers(0, 2), CONFIG, steps=range(2), seed=0)
    for step in steps:
        kept.save(step, task, optimizer, {})
    return task, optimizer


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed", "fp16-mixed"])
def test_going_on_from_a_checkpoint_equals_never_stopping(kept, precision):
    fabric = launch(precision)
    whole, optimizer = fresh(precision)
    fit(fabric, whole, optimizer, numbers(0, 6), CONFIG, steps=range(6), seed=3)

    fabric = launch(precision)
    half, optimizer = fresh(precision)
    stop = _StopAfter(3)
    with pytest.raises(_StoppedError):
        fit(fabric, half, optimizer, numbers(0, 6), CONFIG, steps=range(6), seed=3, hooks=(stop,))
    kept.save(3, half, optimizer, fabric.strategy.precision.state_dict())

    fabric = launch(precision)
    torch.manual_seed(99)
    other = Follower()
    optimizer = build_optimizer(CONFIG, other, fused=precision != "fp16-mixed")
    fabric.strategy.precision.load_state_dict(kept.load(3, other, optimizer))
    fit(fabric, other, optimizer, numbers(3, 6), CONFIG, steps=range(3, 6), seed=3)
    assert equal(state(whole), state(other))


class _StoppedError(Exception):
    pass


class _StopAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, record) -> None:
        if record.done == self.step:
            raise _StoppedError


def test_the_optimizer_comes_back_whole(kept):
    _, optimizer = saved(kept, 2)
    other = follower()
    loaded = build_optimizer(CONFIG, other)
    kept.load(2, other, loaded)
    one, two = optimizer.state_dict(), loaded.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for index, moments in one["state"].items():
        assert equal(moments, two["state"][index])


def test_the_last_ones_are_kept(kept):
    saved(kept, 1, 2, 3)
    assert kept.steps() == [2, 3]
    assert sorted(path.name for path in kept.folder.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    "name", ["task.safetensors", "optimizer.safetensors", "state.json"], ids=lambda name: name
)
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(kept, capsys, name, harm):
    saved(kept, 1, 2)
    _harm(kept.folder / "step-00000002" / name, harm)
    assert kept.newest() == 1
    said = capsys.readouterr().err
    assert "step-00000002 is damaged" in said
    assert "going on from step 1" in said
    assert kept.steps() == [1], "it is not counted any more"
    assert (kept.folder / "damaged-step-00000002").is_dir(), "and not thrown away"


def _harm(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[-30] ^= 1
        file.write_bytes(content)


def test_nothing_is_started_anew_where_all_are_damaged(kept):
    saved(kept, 1, 2)
    for step in (1, 2):
        (kept.folder / f"step-{step:08d}" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        kept.newest()
    assert kept.steps() == [1, 2]


def test_half_a_checkpoint_is_no_checkpoint(kept):
    saved(kept, 1)
    torn = kept.folder / ".step-00000002.123"
    torn.mkdir()
    (torn / "task.safetensors").write_bytes(b"half")
    assert kept.newest() == 1
    kept.clean()
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000001"]


def test_a_checkpoint_of_another_recipe_is_refused(kept):
    saved(kept, 1)
    task, optimizer = fresh()
    with pytest.raises(CheckpointError, match="another recipe"):
        Checkpoints(kept.folder, "other").load(1, task, optimizer)


def test_a_checkpoint_of_another_network_is_refused(kept):
    saved(kept, 1)
    task = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match="does not fit Sequential"):
        kept.load(1, task, build_optimizer(CONFIG, task))


def test_tied_weights_and_views_can_be_kept(kept):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.register_buffer("row", torch.arange(6.0).view(2, 3)[1])

    torch.manual_seed(0)
    task = Tied()
    kept.save(1, task, build_optimizer(CONFIG, task), {})
    torch.manual_seed(1)
    other = Tied()
    kept.load(1, other, build_optimizer(CONFIG, other))
    assert equal(state(task), state(other))
    assert other.two.weight is other.one.weight


def test_nothing_is_pickled(kept):
    saved(kept, 1)
    path = kept.folder / "step-00000001"
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["step"] == 1


def test_a_state_that_is_no_tensor_is_refused(kept):
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

    task = Stateful(1, 1)
    with pytest.raises(CheckpointError, match="'_extra_state' is dict"):
        kept.save(1, task, build_optimizer(CONFIG, task), {})


def test_a_full_disk_leaves_the_checkpoints_that_are_there(kept, monkeypatch):
    task, optimizer = saved(kept, 1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voco.engine.checkpoint.write_atomically", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.* are whole"):
        kept.save(2, task, optimizer, {})
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000001"]
    assert kept.newest() == 1
