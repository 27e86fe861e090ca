import json
import shutil

import pytest
import torch
from blobs import blob_store
from pretraining import FAST, plain_log, recipe
from safetensors.torch import load_file

from voco.errors import ConfigError, StoreError, WeightsError
from voco.weights import passport, read_handover, transfer
from voco.workflows.pretrain import build_method, pretrain, started_method


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("pretrain") / "store", 6)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A finished run."""
    config = recipe(holdout=0.2, validate_every=3)
    return pretrain(config, [store], tmp_path_factory.mktemp("run") / "run")


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def test_a_run_folder_holds_all_that_is_promised(run):
    assert {file.name for file in run.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "weights.safetensors",
        "handover.json",
        "views.png",
        "method.png",
    }
    names = {file.name for file in (run / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000006"}
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_the_log_tells_losses_health_and_what_it_cost(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # Every second step, the first, the last, and those that looked at held-out cases.
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6]
    assert [line["step"] for line in lines if "holdout" in line] == [3, 6]
    for line in lines:
        assert set(line["losses"]) == {"prediction", "regularization"}
        assert line["loss"] == pytest.approx(sum(line["losses"].values()))
        assert {"position_accuracy", "position_chance"} <= line["health"].keys()
        assert line["volumes_per_second"] > 0
        assert line["memory_bytes"] > 1e6
    assert {"loss", "prediction", "position_accuracy"} <= lines[-1]["holdout"].keys()
    assert lines[-1]["seconds"] > lines[0]["seconds"] > 0


def test_the_handover_names_what_was_trained_on_what(run):
    handover = read_handover(run)
    assert handover.kind == "pretraining"
    assert handover.trained == ("encoder",)
    assert handover.step == 6
    assert [one.cases for one in handover.data] == [5]
    assert handover.modalities == ("MR",)
    assert handover.method["variant"] == "v1"


def test_training_moves_the_encoder(run):
    start = build_method(recipe()).handover().network.state_dict()
    assert any(not torch.equal(start[name], tensor) for name, tensor in weights(run).items())


def test_the_same_seed_gives_the_same_weights_whatever_else_is_set(run, store, tmp_path):
    config = recipe(
        holdout=0.2, log_every=1, checkpoint_every=5, validate_every=0, windows={"workers": 2}
    )
    torch.rand(3)
    again = pretrain(config, [store], tmp_path / "again")
    assert (again / "weights.safetensors").read_bytes() == (
        run / "weights.safetensors"
    ).read_bytes()


def test_another_seed_gives_other_weights(run, store, tmp_path):
    other = pretrain(recipe(holdout=0.2, seed=1), [store], tmp_path / "other")
    ours, theirs = weights(run), weights(other)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_finished_run_is_left_as_it_is(run, store, capsys):
    before = (run / "log.jsonl").read_bytes()
    config = recipe(holdout=0.2, validate_every=3)
    assert pretrain(config, [store], run, resume=True) == run
    assert "is finished; nothing to do" in capsys.readouterr().err
    assert (run / "log.jsonl").read_bytes() == before


def test_training_goes_on_from_other_weights_and_accounts_for_them(run, store, tmp_path, capsys):
    config = recipe(steps=1, optimizer={"lr": 1e-12}, holdout=0.2)
    onwards = pretrain(config, [store], tmp_path / "onwards", weights=run)
    assert "100 % of the encoder" in capsys.readouterr().err
    for name, tensor in weights(onwards).items():
        torch.testing.assert_close(tensor, weights(run)[name])


def test_a_network_of_other_channels_is_refused(store, tmp_path):
    backbone = {**recipe().backbone.model_dump(), "in_channels": 2}
    with pytest.raises(ConfigError, match=r"in_channels is 2, and the cases of .* have 1"):
        pretrain(recipe(backbone=backbone), [store], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_scan_stops_the_run_with_its_name(tmp_path):
    store = blob_store(tmp_path / "store", 2)
    (store / "images" / "blob1.b2nd").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"blob1\.b2nd: damaged"):
        pretrain(recipe(windows={"workers": 1}), [store], tmp_path / "run")


def test_mixed_precision_trains(store, tmp_path):
    folder = pretrain(recipe(precision="bf16-mixed"), [store], tmp_path / "run")
    assert len(plain_log(folder)) == 4


def test_a_checkpoint_hands_on_heads_and_teacher(run, store, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "step-00000006"
    state = load_file(checkpoint / "task.safetensors")
    config = recipe(steps=9, optimizer={"lr": 0.02}, seed=4)
    method, accounting = started_method(config, checkpoint)
    assert accounting.share == 1.0
    ours = method.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())
    onwards = pretrain(recipe(steps=1), [store], tmp_path / "onwards", weights=checkpoint)
    about = json.loads((onwards / "weights.json").read_text())
    assert about["weights"] == str(checkpoint)
    assert about["accounting"]["tensors"] == [len(state), len(state)]
    assert about["summary"] in capsys.readouterr().err


def test_a_backbone_can_be_started_from_a_checkpoint(run):
    checkpoint = run / "checkpoints" / "step-00000006"
    backbone = recipe().backbone.build()
    assert transfer(backbone, checkpoint).share == 1.0
    state = backbone.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(run).items())
    found = passport(checkpoint)
    assert (found.kind, found.backbone, found.fits[0].fits) == ("checkpoint", "resenc_unet", True)


def test_a_checkpoint_of_another_method_or_a_damaged_one_is_refused(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000006"
    with pytest.raises(WeightsError, match="is of VoCo, asked for is SimCLR"):
        started_method(recipe(method={"name": "simclr", "crop": [8, 8, 8]}), checkpoint)
    with pytest.raises(WeightsError, match="do not fit the network"):
        started_method(recipe(method={**FAST["method"], "hidden": 8}), checkpoint)
    shutil.copytree(run, tmp_path / "copy")
    copy = tmp_path / "copy" / "checkpoints" / "step-00000006"
    (copy / "task.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match=r"checksum of task\.safetensors does not match"):
        started_method(recipe(), copy)


def test_a_run_of_one_channel_goes_on_with_two(run):
    config = recipe(backbone={**FAST["backbone"], "in_channels": 2})
    _, accounting = started_method(config, run)
    assert "1 input channel made 2" in str(accounting)
