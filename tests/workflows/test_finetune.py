import csv
import json
import os
import signal

import genesis
import pytest
import torch
from blobs import NETWORK, TASK, blob_store, recipe

from voco.backbones.resenc_unet import repeated_names
from voco.data.store import Preprocessing, Store
from voco.errors import ConfigError, Interrupted, StoreError, UsageError, WeightsError
from voco.weights import read_handover, read_tensors
from voco.workflows import finetune as workflow
from voco.workflows.finetune import build_task, find_job, finetune

SHORT = {"steps": 6, "log_every": 2, "checkpoint_every": 2, "validation": 1}
CLASSIFY = {"task": {"name": "classification", "size": [16, 16, 16]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("blobs") / "store")


@pytest.fixture(scope="module")
def short_run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    return finetune(recipe(**SHORT), [store], None, out)


def rows(run):
    with (run / "validation.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_separable_task_is_learnt_in_seconds(store, tmp_path):
    run = finetune(recipe(steps=50), [store], None, tmp_path / "run")
    found = [float(row["value"]) for row in rows(run)]
    assert len(found) == 4
    assert sum(found) / 4 > 0.9


def test_a_run_folder_is_complete(short_run):
    names = {path.name for path in short_run.iterdir()}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "checkpoints",
        "cases.json",
        "weights.json",
        "validation.csv",
        "weights.safetensors",
        "handover.json",
        "views.png",
    }
    handover = read_handover(short_run)
    assert handover.kind == "segmentation"
    assert handover.classes == {0: "background", 205: "dark", 420: "bright"}
    assert handover.out_channels == 3
    assert handover.modalities == ("MR",)
    assert handover.data[0].cases == 7
    log = [json.loads(line) for line in (short_run / "log.jsonl").read_text().splitlines()]
    assert set(log[-1]["losses"]) == {"dice", "ce"}
    assert "dice" in log[-1]["validation"]


def test_the_chosen_cases_are_written_down(store, tmp_path):
    job = find_job(recipe(labels=3), [store])
    run = finetune(
        recipe(**SHORT | {"steps": 1, "labels": 3, "validation": 2}), [store], None, tmp_path / "r"
    )
    cases = json.loads((run / "cases.json").read_text())
    assert [len(cases[part]) for part in ("train", "validation", "unused")] == [3, 2, 3]
    assert cases["train"] == [one.case.id for one in job.split.train]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(store, short_run, tmp_path, monkeypatch):
    look = workflow._look

    def stop(*args):
        look(*args)
        if args[4].done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "_look", stop)
        with pytest.raises(Interrupted):
            finetune(recipe(**SHORT), [store], None, out)
    assert not (out / "handover.json").exists()
    finetune(recipe(**SHORT, workers=1), [store], None, out, resume=True)
    for name in ("weights.safetensors", "validation.csv", "cases.json"):
        assert (out / name).read_bytes() == (short_run / name).read_bytes()


def test_a_finished_run_is_left_as_it_is(store, short_run):
    before = (short_run / "weights.safetensors").stat().st_mtime_ns
    finetune(recipe(**SHORT), [store], None, short_run, resume=True)
    assert (short_run / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="--resume"):
        finetune(recipe(**SHORT), [store], None, short_run)


def test_held_out_cases_are_looked_at_when_asked(store, tmp_path):
    changes = SHORT | {"steps": 3, "validate_every": 2}
    run = finetune(recipe(**changes), [store], None, tmp_path / "run")
    assert [row["step"] for row in rows(run)] == ["2", "2", "3", "3"]
    assert {row["structure"] for row in rows(run)} == {"dark", "bright"}


def test_looking_at_held_out_cases_does_not_change_the_training(store, short_run, tmp_path):
    run = finetune(recipe(**SHORT, validate_every=1), [store], None, tmp_path / "run")
    ours, theirs = read_tensors(run), read_tensors(short_run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_are_loaded_and_accounted_for(store, short_run, tmp_path, capsys):
    run = finetune(recipe(**SHORT | {"steps": 1}), [store], short_run, tmp_path / "run")
    about = json.loads((run / "weights.json").read_text())
    assert about["accounting"]["tensors"][0] == about["accounting"]["tensors"][1] > 0
    assert about["sha256"] == read_handover(short_run).weights_sha256
    assert "100 % of the encoder" in about["summary"]
    assert about["summary"] in capsys.readouterr().err


def test_a_published_file_is_started_from_and_accounted_for(store, tmp_path):
    config = recipe(**SHORT | {"steps": 1})
    torch.manual_seed(3)
    network = config.backbone.build(5).network
    torch.save({"network_weights": repeated_names(network.state_dict())}, tmp_path / "other.pth")
    run = finetune(config, [store], tmp_path / "other.pth", tmp_path / "run")
    about = json.loads((run / "weights.json").read_text())
    accounting = about["accounting"]
    assert "nnssl or OpenMind" in accounting["origin"]
    assert accounting["tensors"][0] == accounting["tensors"][1] > 0
    assert [part["reason"] for part in accounting["left_out"]] == ["the encoder, listed once more"]
    assert about["leaks"]["certain"] is False  # it does not tell what it has learnt from


def test_models_genesis_is_started_from_with_its_decoder_and_running_statistics(store, tmp_path):
    tensors = genesis.tensors()
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(content, tmp_path / "Genesis_Chest_CT.pt")
    network = {"name": "genesis_unet", "features": list(genesis.SMALL)}
    config = recipe(**SHORT | {"steps": 1}, backbone=network)
    run = finetune(config, [store], tmp_path / "Genesis_Chest_CT.pt", tmp_path / "run")
    summary = json.loads((run / "weights.json").read_text())["summary"]
    assert "56 of 56 tensors, 100 % of the encoder" in summary
    assert "2 new: out_tr.final_conv.weight, out_tr.final_conv.bias" in summary
    trained = read_tensors(run)
    for name in ("down_tr64.ops.0.bn1.running_var", "up_tr64.ops.1.bn1.running_var"):
        # One step of momentum 0.1 away from where the file has it.
        assert not torch.equal(trained[name], tensors[name])
        assert (trained[name] - 0.9 * tensors[name]).min() > 0


def test_both_arms_start_with_the_same_new_parts(store):
    job = find_job(recipe(), [store])
    states = [build_task(recipe(), job).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = build_task(recipe(seed=1), job).state_dict()
    assert any(not torch.equal(states[0][name], other[name]) for name in other)


def test_weights_of_another_backbone_are_refused_with_both_values(store, short_run, tmp_path):
    wider = recipe(backbone=NETWORK | {"features": [8, 24]})
    with pytest.raises(WeightsError, match=r"features.*\(8, 16\).*\(8, 24\)"):
        finetune(wider, [store], short_run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_intensity_than_the_weights_saw_is_recorded(store, short_run, tmp_path):
    changes = SHORT | {"steps": 1, "intensity": {"name": "window", "low": -100, "high": 100}}
    run = finetune(recipe(**changes), [store], short_run, tmp_path / "run")
    warnings = json.loads((run / "weights.json").read_text())["warnings"]
    assert len(warnings) == 1
    assert "intensity" in warnings[0]


def test_a_frozen_encoder_stays_as_it_was(store, short_run, tmp_path):
    changes = SHORT | {"steps": 2, "encoder_lr_share": 0}
    run = finetune(recipe(**changes), [store], short_run, tmp_path / "run")
    before, after = read_tensors(short_run), read_tensors(run)
    same = {name: torch.equal(before[name], after[name]) for name in after}
    assert all(equal for name, equal in same.items() if name.startswith("encoder."))
    assert not all(same.values())


def test_a_slower_encoder_has_its_share_of_the_learning_rate(store, short_run, tmp_path):
    moved = []
    for share in (1.0, 0.1):
        changes = SHORT | {"steps": 1, "encoder_lr_share": share}
        run = finetune(recipe(**changes), [store], short_run, tmp_path / f"{share}")
        before, after = read_tensors(short_run), read_tensors(run)
        name = next(n for n in after if n.startswith("encoder.") and n.endswith("conv.weight"))
        moved.append((after[name] - before[name]).abs().max().item())
    assert moved[1] == pytest.approx(moved[0] / 10, rel=0.01)


def test_a_classification_is_learnt_and_handed_over(store, tmp_path):
    changes = SHORT | CLASSIFY | {"steps": 30, "validation": 4}
    run = finetune(recipe(**changes), [store], None, tmp_path / "run")
    values = {row["metric"]: float(row["value"]) for row in rows(run) if row["case"] == "all"}
    assert values["accuracy"] == 1
    assert values["auroc"] == 1
    handover = read_handover(run)
    assert handover.classes == {0: "plain", 1: "raised"}
    assert handover.trained == ("encoder",)
    assert {"task.classifier.weight", "task.classifier.bias"} < set(read_tensors(run))


def test_two_stores_are_learnt_from_together(store, tmp_path):
    more = blob_store(tmp_path / "more", 2, first=8)
    job = find_job(recipe(validation=1), [store, more])
    assert len(job.split.train) == 9
    run = finetune(recipe(**SHORT | {"steps": 1}), [store, more], None, tmp_path / "run")
    assert sum(part.cases for part in read_handover(run).data) == 9


def test_stores_that_were_prepared_differently_are_refused(store, tmp_path):
    other = Store.create(tmp_path / "other", Preprocessing(spacing_mm=(2, 2, 2))).path
    with pytest.raises(StoreError, match="Prepare both alike"):
        find_job(recipe(), [store, other])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": NETWORK | {"in_channels": 2}}, "backbone.in_channels is 2"),
        ({"labels": 99}, "labels: 99"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(store, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        finetune(recipe(**changes), [store], None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mirroring_sides_is_doubted(store):
    job = find_job(recipe(), [store])
    sided = workflow.Job(job.stores, job.split, {0: "b", 205: "left lung", 420: "right lung"})
    for changes, count in (
        ({}, 0),
        ({"flip_axes": ["x"]}, 1),
        ({"turn_probability": 0.2}, 1),
        ({"turn_probability": 0.2, "flip_axes": []}, 0),
    ):
        assert len(list(workflow._doubts(recipe(task=TASK | changes), sided))) == count


def test_accumulating_gives_the_same_first_losses(store, tmp_path):
    # Crops alike, augmentation off: only the order of the sums differs.
    still = TASK | {"flip_probability": 0, "scale_probability": 0, "shift_probability": 0}
    losses = []
    for accumulate in (1, 2):
        optimizer = {"lr": 0.01, "accumulate": accumulate}
        changes = SHORT | {"steps": 1, "task": still, "optimizer": optimizer}
        run = finetune(recipe(**changes), [store], None, tmp_path / str(accumulate))
        losses.append(json.loads((run / "log.jsonl").read_text())["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
