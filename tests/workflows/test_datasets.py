"""Data sets in the layout of their owners: prepared, learnt from, predicted and measured."""

import json

import numpy as np
import official
import pytest
import SimpleITK as sitk  # noqa: N813
from blobs import recipe

from voco.cli import main
from voco.data.datasets import read_dataset
from voco.data.imageio import read_label
from voco.data.store import Store
from voco.errors import ConfigError, DataError, UsageError
from voco.evaluation.convention import Convention, convention_of, refuse_mixed
from voco.shipped import shipped
from voco.workflows.evaluate import evaluate
from voco.workflows.finetune import find_job, finetune
from voco.workflows.predict import predict
from voco.workflows.prepare import prepare
from voco.workflows.report import report
from voco.workflows.verify import verify

SHORT = {"steps": 2, "log_every": 1, "checkpoint_every": 2, "validation": 2, "batch_size": 1}
SEGMENT = {"name": "segmentation", "roi": [16, 16, 16], "crops_per_volume": 1}
CLASSIFY = {"name": "classification", "size": [16, 16, 16]}


def settings(name):
    """A recipe of seconds with what is particular to the data set's own."""
    dataset = read_dataset(name)
    channels = len(dataset.channels) or len(dataset.layouts[0].parts[0].images)
    regions = {"regions": dataset.regions} if name == "brats-2021" else {}
    task = CLASSIFY if dataset.targets else {**SEGMENT, **regions}
    network = {"name": "resenc_unet", "features": [8, 8], "blocks": [1, 1], "in_channels": channels}
    return recipe(**SHORT, task=task, backbone=network)


@pytest.mark.parametrize("name", sorted(official.CASES))
def test_a_data_set_goes_all_the_way(name, tmp_path):
    dataset = read_dataset(name)
    root = official.write(tmp_path / "set", name)
    done = prepare(root, tmp_path / "store", dataset=name, partial=True, workers=1)
    assert (done.taken, done.refusals) == (4, ())
    assert set(dataset.traps) <= set(done.notes)
    store = Store(tmp_path / "store")
    for case in store.cases.values():
        assert case.classes == dataset.labels
        assert set(case.class_voxels) == set(dataset.labels)
        assert case.modality == dataset.modality
        assert case.dataset == name
    splits = sorted(str(case.split) for case in store.cases.values())
    assert splits == (["train"] * 2 + ["validation"] * 2 if dataset.split else ["None"] * 4)

    run = finetune(settings(name), [tmp_path / "store"], None, tmp_path / "run")
    out = tmp_path / "masks"
    predicted = predict(run, [root], out, dataset=name, only="validation")
    held = json.loads((run / "cases.json").read_text())["validation"]
    assert predicted.complete
    assert [file.name for file in predicted.files] == [f"{case}.nii.gz" for case in held]
    # Predicted masks hold the owners' own values.
    values = {int(value) for file in predicted.files for value in np.unique(read_label(file).array)}
    assert values <= set(dataset.labels)

    measured = evaluate(out, out / "references.csv", tmp_path / "measured")
    assert measured.complete
    expected = dataset.regions if name == "brats-2021" else list(dataset.labels.values())[1:]
    assert list(measured.summary["structures"]) == list(expected)
    assert measured.summary["convention"]["regions"] == {
        region: list(parts) for region, parts in dataset.regions.items() if name == "brats-2021"
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert 0 <= log[-1]["validation"]["dice"] <= 1


def test_folders_of_pictures_become_cases_with_a_class(tmp_path):
    root = official.write(tmp_path / "set", "cc-ccii")
    done = prepare(root, tmp_path / "store", dataset="cc-ccii", partial=True, workers=1)
    assert (done.taken, done.refusals) == (7, ())
    assert any("405" in note and "not a partition" in note for note in done.notes)
    store = Store(tmp_path / "store")
    case = store.cases["p7-s70"]
    assert (case.target, case.group, case.shape) == ("Normal", "7", (20, 16, 11))
    assert any("no spacing and no orientation" in warning for warning in case.warnings)
    # Rows run backwards and columns to the left, so the first pixel is the last in RAS.
    assert store.read("p7-s70")[0, -1, -1].tolist() == list(range(11))

    run = finetune(settings("cc-ccii"), [tmp_path / "store"], None, tmp_path / "run")
    cases = json.loads((run / "cases.json").read_text())
    patients = [
        {store.cases[case].group for case in cases[part]} for part in ("train", "validation")
    ]
    assert patients[0] & patients[1] == set()
    out = tmp_path / "scores"
    assert predict(run, [root], out, dataset="cc-ccii", only="validation").complete
    measured = evaluate(out, out / "references.csv", tmp_path / "measured")
    assert measured.complete
    assert sorted(measured.summary["classes"]) == ["CP", "NCP", "Normal"]


@pytest.mark.parametrize(("name", "cases"), [("luna16", 2), ("tcia-covid-19", 3)])
def test_sets_for_pre_training_become_cases_without_labels(name, cases, tmp_path):
    root = official.write(tmp_path / "set", name)
    done = prepare(root, tmp_path / "store", dataset=name, partial=True, workers=1)
    assert (done.taken, done.refusals) == (cases, ())
    found = Store(tmp_path / "store").cases.values()
    assert {(case.modality, case.has_label) for case in found} == {("CT", False)}
    note = "2 images are no part of luna16" if name == "luna16" else "_day008, _1"
    assert any(note in each for each in done.notes)
    groups = [case.group for case in found]
    assert groups == ([None, None] if name == "luna16" else ["0001", "0001", "0702"])


def test_every_known_data_set_is_tried_here():
    assert set(shipped("data set")) == {*official.CASES, "cc-ccii", "luna16", "tcia-covid-19"}


# --- what is refused ------------------------------------------------------------------------------


def test_a_value_that_the_data_set_does_not_have_names_the_case_and_the_rest_goes_on(tmp_path):
    root = official.write(tmp_path / "set", "mm-whs")
    label = official.structures([0, 205, 421, 500])
    official.save(root / "ct_train/ct_train_1003_label.nii.gz", label[None])
    done = prepare(root, tmp_path / "store", dataset="mm-whs", partial=True, workers=1)
    assert done.taken == 3
    ((_, reason),) = done.refusals
    assert "the label of case 'ct_train_1003' holds [421]" in reason
    assert "420 (left atrium)" in reason
    assert "850 (pulmonary artery)" in reason


def test_labels_of_the_other_set_of_brain_tumours_are_refused(tmp_path):
    root = official.write(tmp_path / "set", "msd-brain-tumour", ("001", "002"))
    official.save(root / "labelsTr/BRATS_001.nii.gz", official.structures([0, 1, 2, 4])[None])
    done = prepare(root, tmp_path / "store", dataset="msd-brain-tumour", partial=True, workers=1)
    assert [("holds [4]" in reason, "BRATS_001" in reason) for _, reason in done.refusals] == [
        (True, True)
    ]
    other = settings("brats-2021").model_copy(update={"validation": 0})
    with pytest.raises(ConfigError, match=r"task.regions.TC: \[4\] are no labels of this data"):
        find_job(other, [tmp_path / "store"])


def test_a_data_set_that_is_not_whole_is_refused_before_anything_is_made(tmp_path, capsys):
    root = official.write(tmp_path / "set", "mm-whs")
    store = tmp_path / "store"
    words = ["prepare", str(root), "--dataset", "mm-whs", "--out", str(store)]
    assert main(words) == 1
    assert "20 expected, 4 found" in capsys.readouterr().err
    assert not store.exists()
    assert main([*words, "--partial", "--workers", "1"]) == 0
    assert Store(store).preprocessing.spacing_mm == (1.5, 1.5, 1.5)
    assert Store(store).preprocessing.foreground


def test_options_of_data_sets_need_one(tmp_path):
    with pytest.raises(UsageError, match="name it: --dataset"):
        prepare(tmp_path, tmp_path / "store", partial=True)
    with pytest.raises(UsageError, match="name the one folder that holds it"):
        prepare([tmp_path, tmp_path], tmp_path / "store", dataset="lits")


def test_known_data_sets_are_listed(capsys):
    assert main(["prepare", "--dataset", "list"]) == 0
    assert "msd-brain-tumour  484 cases" in capsys.readouterr().out


def test_a_damaged_case_of_a_data_set_is_made_anew(tmp_path):
    root = official.write(tmp_path / "set", "brats-2021", ("00000", "00002"))
    store = tmp_path / "store"
    prepare(root, store, dataset="brats-2021", partial=True, workers=1)
    before = Store(store).cases["BraTS2021_00002"]
    Store(store).image_file(before.id).write_bytes(b"torn")
    assert verify(store, repair=True).repaired == ("BraTS2021_00002",)
    assert Store(store).cases[before.id] == before


def test_pictures_that_are_no_slices_are_refused(tmp_path):
    root = official.write(tmp_path / "set", "cc-ccii")
    grey = np.zeros((16, 20), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(grey[:, :10]), str(root / "CP/9/90/3.png"))
    colour = np.stack([grey, grey, grey + 9], axis=-1)
    image = sitk.GetImageFromArray(colour, isVector=True)
    sitk.WriteImage(image, str(root / "NCP/11/110/3.png"))
    (root / "NCP/12/120/3.png").write_bytes(b"no picture")
    done = prepare(root, tmp_path / "store", dataset="cc-ccii", partial=True, workers=1)
    assert done.taken == 4
    reasons = "\n".join(reason for _, reason in done.refusals)
    assert "3.png: 10 x 16 pixels, but 0.png has 20 x 16" in reasons
    assert "3.png: a colour picture; expected grey" in reasons
    assert "3.png: damaged or no picture" in reasons


def test_cases_that_are_not_given_cannot_be_predicted(tmp_path):
    root = official.write(tmp_path / "set", "msd-spleen")
    prepare(root, tmp_path / "store", dataset="msd-spleen", partial=True, workers=1)
    run = finetune(settings("msd-spleen"), [tmp_path / "store"], None, tmp_path / "run")
    (root / "imagesTr/spleen_10.nii.gz").unlink()
    with pytest.raises(DataError, match="of the 2 cases of 'validation', 1 are not among the"):
        predict(run, [root], tmp_path / "masks", dataset="msd-spleen", only="validation")


# --- conventions ----------------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path):
    """A case with labels 1, 2 and 4 of 8 x 8 x 4 voxels each; predicted with 2 and 4 exchanged."""
    truth = np.zeros((12, 12, 12), np.int16)
    for place, value in enumerate((1, 2, 4)):
        truth[2:10, 2:10, 4 * place : 4 * place + 4] = value
    swapped = np.select([truth == 2, truth == 4], [4, 2], truth).astype(np.int16)
    official.save(tmp_path / "truth/a.nii.gz", truth[None], 1.0)
    official.save(tmp_path / "ours/a.nii.gz", swapped[None], 1.0)
    return tmp_path


def dice_of(done):
    return {name: entry["dice"]["mean"] for name, entry in done.summary["structures"].items()}


def test_regions_are_unions_of_labels(masks):
    regions = {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)}
    done = evaluate(masks / "ours", masks / "truth", masks / "out", regions=regions)
    assert dice_of(done) == {"TC": 0.5, "WT": 1.0, "ET": 0.0}
    assert done.summary["convention"]["regions"] == {"TC": [1, 4], "WT": [1, 2, 4], "ET": [4]}
    plain = evaluate(masks / "ours", masks / "truth", masks / "plain")
    assert dice_of(plain) == {"class 1": 1.0, "class 2": 0.0, "class 4": 0.0}


def test_regions_beside_predictions_are_measured_unless_single_labels_are_wanted(masks):
    (masks / "ours/labels.json").write_text('{"1": "core", "regions": {"WT": [1, 2, 4]}}')
    assert dice_of(evaluate(masks / "ours", masks / "truth", masks / "a")) == {"WT": 1.0}
    single = evaluate(masks / "ours", masks / "truth", masks / "b", regions={})
    assert list(dice_of(single)) == ["core", "class 2", "class 4"]
    with pytest.raises(DataError, match=r"figures of both would not compare.*--regions"):
        evaluate(masks / "ours", masks / "truth", masks / "c", against=masks / "truth")


def test_the_background_raises_the_mean_and_is_recorded(masks):
    words = ["evaluate", str(masks / "ours"), str(masks / "truth"), "--out", str(masks / "out")]
    assert main([*words, "--background"]) == 0
    summary = json.loads((masks / "out/summary.json").read_text())
    assert summary["structures"]["background"]["dice"]["mean"] == 1
    assert summary["mean"]["dice"]["mean"] == 0.5
    assert summary["convention"]["background"] is True


def test_a_coarser_grid_is_another_convention(masks):
    done = evaluate(masks / "ours", masks / "truth", masks / "out", spacing_mm=(4.0, 4.0, 4.0))
    assert done.summary["convention"] == {
        "grid": "resampled",
        "spacing_mm": [4.0, 4.0, 4.0],
        "background": False,
        "regions": {},
    }


@pytest.mark.parametrize(
    "options",
    [
        {"background": True, "regions": {"TC": (1,)}},
        {"regions": {"TC": ()}},
        {"regions": {"TC": (0, 1)}},
        {"spacing_mm": (1.0, 0.0, 1.0)},
    ],
)
def test_a_convention_without_sense_is_wrong_usage(masks, options):
    with pytest.raises(UsageError):
        evaluate(masks / "ours", masks / "truth", masks / "out", **options)


@pytest.mark.parametrize("word", ["TC", "TC=", "TC=a", "=1"])
def test_a_malformed_region_is_wrong_usage(masks, word, capsys):
    words = ["evaluate", str(masks / "ours"), str(masks / "truth"), "--out", str(masks / "out")]
    assert main([*words, "--regions", word]) == 2
    assert "--regions takes NAME=1,4" in capsys.readouterr().err


def test_figures_of_two_conventions_never_share_a_table():
    native, coarse = Convention(), Convention(grid="resampled", spacing_mm=(1.5, 1.5, 1.5))
    refuse_mixed([("a", native), ("b", None), ("c", native)])
    with pytest.raises(
        DataError, match=r"a was measured on the grid of the reference.*b resampled"
    ):
        refuse_mixed([("a", native), ("b", coarse)])


def test_evaluations_that_record_no_convention_are_of_the_default():
    assert convention_of({"task": "segmentation"}, "old") == Convention()
    assert convention_of({"task": "classification"}, "scores") is None


def test_a_report_warns_of_two_conventions_on_one_page(masks):
    folder = masks / "both"
    evaluate(masks / "ours", masks / "truth", folder / "without")
    assert "do not compare" not in report(folder).read_text()
    evaluate(masks / "ours", masks / "truth", folder / "with", background=True)
    page = report(folder).read_text()
    assert "2 conventions" in page
    assert "on the grid of the reference, with background" in page


def test_references_in_a_list_are_found_and_doubles_are_refused(masks):
    file = masks / "truth.csv"
    file.write_text("case,label\na,truth/a.nii.gz\n")
    assert evaluate(masks / "ours", file, masks / "out").complete
    file.write_text("case,label\na,truth/a.nii.gz\na,truth/a.nii.gz\n")
    with pytest.raises(DataError, match="more than one row for a"):
        evaluate(masks / "ours", file, masks / "other")
