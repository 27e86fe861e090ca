"""Leaks: what was learnt from against what is tested on, from the scans to the report."""

import csv
import gzip
import json

import blobs
import numpy as np
import pretraining
import pytest
from scipy import ndimage

from voco.cli import DONE, INCOMPLETE, USAGE, main
from voco.data.imageio import write_image
from voco.data.store import Store
from voco.errors import ConfigError, DataError, StoreError, UsageError, WeightsError
from voco.geometry import Grid
from voco.volume import Volume
from voco.weights import read_handover
from voco.workflows.evaluate import evaluate
from voco.workflows.finetune import finetune
from voco.workflows.leaks import leaks
from voco.workflows.predict import predict
from voco.workflows.prepare import prepare
from voco.workflows.pretrain import pretrain
from voco.workflows.report import report

SHAPE = (40, 36, 32)
EYE = np.eye(4)


def scan(seed, shape=SHAPE):
    """A smooth volume like no other, with HU of a body in air."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    organs = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    tissue = 40 + 80 * organs / organs.std()
    return np.where((places**2).sum(axis=0) < 0.8, tissue, -1000).round().astype(np.int16)


def write(folder, scans, affine=EYE):
    """NIfTI files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in scans.items():
        write_image(Volume(array[None], Grid(array.shape, affine)), folder / f"{name}.nii.gz")
    return folder


def stored(sources, out, **settings):
    prepare(sources, out, workers=1, modality="CT", **settings)
    return out


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A store to learn from; one to test on, of other scans and of copies; a folder of scans."""
    home = tmp_path_factory.mktemp("leaks")
    write(home / "old", {f"a{n}": scan(n) for n in range(5)})
    write(home / "new", {"b0": scan(100), "b1": scan(101)})
    write(home / "new", {"copy_of_a1": scan(1), "cut_copy_of_a2": scan(2)[..., :-1]})
    stored(home / "old", home / "learnt", spacing_mm=1.0)
    stored(home / "new", home / "tested", spacing_mm=1.3, foreground=True)
    return home


def rows(file):
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_copies_are_found_and_nothing_else(places, tmp_path):
    found = leaks([places / "learnt"], [places / "tested"], tmp_path / "out")
    pairs = {(leak.case, leak.seen) for leak in found.leaks}
    assert pairs == {("copy_of_a1", "a1"), ("cut_copy_of_a2", "a2")}
    assert (found.seen, found.tested, found.clean) == (5, 4, False)
    assert found.cases == ("copy_of_a1", "cut_copy_of_a2")
    table = rows(tmp_path / "out" / "leaks.csv")
    assert [(row["case"], row["seen"], row["same"]) for row in table] == [
        ("copy_of_a1", "a1", "files"),
        ("cut_copy_of_a2", "a2", "look"),
    ]
    assert 0.9 <= float(table[1]["likeness"]) < 1


def test_a_folder_of_scans_needs_no_store(places):
    found = leaks([places / "old"], [places / "new"])
    assert found.cases == ("copy_of_a1", "cut_copy_of_a2")
    assert found.table is None


def test_another_compression_and_another_header_leave_the_voxels_as_they_are(places, tmp_path):
    file = places / "old" / "a3.nii.gz"
    loose = tmp_path / "scans" / "renamed.nii.gz"
    loose.parent.mkdir()
    loose.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1))
    elsewhere = EYE.copy()
    elsewhere[:3, 3] = 50
    write(loose.parent, {"moved": scan(4)}, elsewhere)
    found = leaks([places / "learnt"], [loose.parent])
    assert {(leak.case, leak.seen, leak.same) for leak in found.leaks} == {
        ("renamed", "a3", "voxels"),
        ("moved", "a4", "voxels"),
    }


def test_a_scan_that_was_turned_with_its_header_is_found(places, tmp_path):
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:2, 3] = (SHAPE[0] - 1, SHAPE[1] - 1)
    write(tmp_path / "scans", {"lps": scan(0)[::-1, ::-1]}, turned)
    found = leaks([places / "learnt"], [tmp_path / "scans"])
    assert [(leak.seen, leak.same) for leak in found.leaks] == [("a0", "voxels")]


def test_a_place_is_searched_for_copies_within_itself(places, tmp_path):
    write(tmp_path / "scans", {"one": scan(7), "other": scan(8), "again": scan(7)})
    found = leaks([tmp_path / "scans"], [tmp_path / "scans"])
    assert [{leak.case, leak.seen} for leak in found.leaks] == [{"one", "again"}]
    assert leaks([places / "learnt"], [places / "learnt"]).clean


def test_cases_for_validation_and_test_are_not_learnt_from(places, tmp_path):
    folder = write(tmp_path / "scans", {f"s{n}": scan(n) for n in (1, 2, 3, 20, 21)})
    write(folder, {"s1_again": scan(1), "s2_again": scan(2)})
    splits = {"s1": "test", "s2": "validation", "s3": "train", "s20": "test"}
    lines = [f"{file.name},{splits.get(file.name[:-7], '')}" for file in sorted(folder.iterdir())]
    (folder / "list.csv").write_text("\n".join(["image,split", *lines]))
    store = stored(folder / "list.csv", tmp_path / "store", spacing_mm=1.0)
    within = leaks([store], [store])
    assert [(leak.case, leak.seen) for leak in within.leaks] == [("s1", "s1_again")]
    assert (within.seen, within.tested) == (4, 2)
    elsewhere = leaks([places / "learnt"], [store])
    assert [(leak.case, leak.seen) for leak in elsewhere.leaks] == [("s1", "a1")]
    back = leaks([store], [places / "learnt"])
    assert {leak.seen for leak in back.leaks} == {"s1_again", "s2_again", "s3"}


def test_a_label_does_not_hide_the_files(places, tmp_path):
    images, labels = tmp_path / "set" / "imagesTr", tmp_path / "set" / "labelsTr"
    write(images, {"a1": scan(1)})
    write(labels, {"a1": (scan(1) > 100).astype(np.uint8)})
    stored(tmp_path / "set", tmp_path / "labelled", spacing_mm=2.0)
    assert Store(tmp_path / "labelled").cases["a1"].has_label
    found = leaks([places / "learnt"], [tmp_path / "labelled"])
    assert [(leak.seen, leak.same) for leak in found.leaks] == [("a1", "files")]


def test_what_cannot_be_read_is_told_and_is_not_clean(places, tmp_path):
    write(tmp_path / "scans", {"new": scan(55)})
    (tmp_path / "scans" / "empty.nii.gz").write_bytes(b"")
    found = leaks([places / "learnt"], [tmp_path / "scans"])
    assert not found.leaks
    assert not found.clean
    assert "empty.nii.gz" in str(found)


def test_wrong_words_are_refused(places, tmp_path):
    learnt, tested = [places / "learnt"], [places / "tested"]
    with pytest.raises(UsageError, match="--against"):
        leaks(learnt, [])
    with pytest.raises(UsageError, match=r"likeness 0\.2"):
        leaks(learnt, tested, likeness=0.2)
    with pytest.raises(DataError, match="neither a store nor a run"):
        leaks(learnt, [tmp_path])
    (tmp_path / "leaks.csv").write_text("")
    with pytest.raises(UsageError, match="--overwrite"):
        leaks(learnt, tested, tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UsageError, match="not finished"):
        leaks([tmp_path], tested)


def test_a_higher_likeness_leaves_out_what_is_less_alike(places):
    found = leaks([places / "learnt"], [places / "tested"], likeness=1.0)
    assert found.cases == ("copy_of_a1",)


def test_the_exit_status_tells_whether_there_are_leaks(places, tmp_path, capsys):
    store = str(places / "learnt")
    assert main(["leaks", store, "--against", str(places / "tested")]) == INCOMPLETE
    assert "2 of 4 tested cases are among 5 seen ones" in capsys.readouterr().out
    write(tmp_path / "scans", {"new": scan(60)})
    words = ["leaks", store, "--against", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    assert main(words) == DONE
    assert rows(tmp_path / "out" / "leaks.csv") == []
    assert main(["leaks", store]) == USAGE
    assert main([*words[:1], *words[2:]]) == USAGE


# --- stores ---------------------------------------------------------------------------------------


def test_a_store_without_fingerprints_gets_them_when_its_sources_are_prepared_again(
    places, tmp_path
):
    store = Store(stored(places / "old", tmp_path / "store", spacing_mm=1.0))
    marks = {name: case.fingerprint for name, case in store.cases.items()}
    older = [case.model_copy(update={"fingerprint": ""}) for case in store.cases.values()]
    (store.path / "cases.jsonl").unlink()
    store.add(older)
    assert leaks([places / "learnt"], [store.path]).cases == tuple(marks)  # from the voxels
    done = prepare(places / "old", store.path, workers=1, modality="CT", spacing_mm=1.0)
    assert (done.taken, done.skipped) == (0, 5)
    again = Store(store.path).cases
    assert all(case.fingerprint for case in again.values())
    assert leaks([places / "learnt"], [store.path]).cases == tuple(marks)


def test_damaged_voxels_without_a_fingerprint_are_an_error_that_names_the_way_out(places, tmp_path):
    store = Store(stored(places / "old", tmp_path / "store"))
    store.add([store.cases["a0"].model_copy(update={"fingerprint": "", "revision": 1})])
    store.image_file("a0").write_bytes(b"")
    with pytest.raises(StoreError, match="--repair"):
        leaks([store.path], [places / "tested"])


# --- trainings ------------------------------------------------------------------------------------


CONFIG = {"steps": 1, "batch_size": 1, "checkpoint_every": 1, "windows": {"workers": 0}}


@pytest.fixture(scope="module")
def pretrained(places):
    """A run that has learnt from blobs 0 to 3."""
    store = blobs.blob_store(places / "blobs-learnt", 4)
    return pretrain(pretraining.recipe(**CONFIG), [store], places / "pretrained")


@pytest.fixture(scope="module")
def labelled(places):
    """Blobs 2 to 7."""
    return blobs.blob_store(places / "blobs-labelled", 6, first=2)


def test_excluded_cases_are_left_out_and_told(places, pretrained, labelled, capsys):
    out = places / "excluded"
    config = pretraining.recipe(**CONFIG)
    pretrain(config, [places / "blobs-learnt"], out, exclude=[labelled])
    assert "2 of 4 cases are copies of excluded ones and left out (blob2, blob3)" in (
        capsys.readouterr().err
    )
    assert [(row["case"], row["copy_of"]) for row in rows(out / "left_out.csv")] == [
        ("blob2", "blob2"),
        ("blob3", "blob3"),
    ]
    handover = read_handover(out)
    assert [part.cases for part in handover.data] == [2]
    assert handover.left_out == 2
    assert [(part.digest, part.cases) for part in handover.guarded] == [(Store(labelled).digest, 6)]
    assert leaks([out], [labelled]).clean
    assert not leaks([pretrained], [labelled]).clean
    assert "2 cases for the sake of 6 excluded cases" in report(out).read_text()


def test_a_run_is_not_resumed_with_other_exclusions(places, pretrained):
    config = pretraining.recipe(**CONFIG)
    with pytest.raises(ConfigError, match="exclude"):
        pretrain(
            config, [places / "blobs-learnt"], pretrained, resume=True, exclude=[places / "tested"]
        )


def test_the_other_cases_of_a_patient_are_left_out_too(labelled, tmp_path):
    store = Store(blobs.blob_store(tmp_path / "store", 4))
    patient = {"group": "patient", "revision": 1}
    store.add([store.cases[name].model_copy(update=patient) for name in ("blob0", "blob2")])
    out = pretrain(pretraining.recipe(**CONFIG), [store.path], tmp_path / "run", exclude=[labelled])
    assert [(row["case"], row["same"]) for row in rows(out / "left_out.csv")] == [
        ("blob0", "group"),
        ("blob2", "voxels"),
        ("blob3", "voxels"),
    ]
    assert [part.cases for part in read_handover(out).data] == [1]


def test_nothing_left_to_train_on_says_why(labelled, tmp_path):
    with pytest.raises(StoreError, match="so are 6 copies of cases to be tested on"):
        pretrain(pretraining.recipe(**CONFIG), [labelled], tmp_path / "run", exclude=[labelled])


def test_the_handover_knows_the_scans_but_no_names(pretrained):
    (seen,) = read_handover(pretrained).seen
    assert (seen.stage, len(seen.fingerprints)) == ("pretraining", 4)
    assert list(seen.fingerprints) == sorted(seen.fingerprints)
    text = (pretrained / "handover.json").read_text()
    assert "blob" not in text


def test_the_next_training_knows_what_was_learnt_before(places, pretrained, tmp_path):
    store = blobs.blob_store(tmp_path / "more", 2, first=20)
    run = pretrain(pretraining.recipe(**CONFIG), [store], tmp_path / "run", weights=pretrained)
    assert [len(part.fingerprints) for part in read_handover(run).seen] == [4, 2]
    assert leaks([run], [places / "blobs-learnt"]).cases == ("blob0", "blob1", "blob2", "blob3")


def without_seen(run):
    """Make a hand-over one of before there were fingerprints."""
    content = json.loads((run / "handover.json").read_text())
    for key in ("seen", "guarded", "left_out"):
        del content[key]
    (run / "handover.json").write_text(json.dumps(content))
    return run


def test_an_older_handover_is_read_and_known_to_tell_nothing(places, labelled, tmp_path):
    store = places / "blobs-learnt"
    old = without_seen(pretrain(pretraining.recipe(**CONFIG), [store], tmp_path / "old"))
    assert read_handover(old).seen is None
    with pytest.raises(WeightsError, match="Name the stores"):
        leaks([old], [labelled])
    new = pretrain(pretraining.recipe(**CONFIG), [store], tmp_path / "new", weights=old)
    found = leaks([new], [labelled])
    assert found.cases == ("blob2", "blob3")
    assert "do not tell" in str(found)


@pytest.fixture(scope="module")
def tuned(places, pretrained, labelled):
    """Fine-tuned on some of the blobs 2 to 7; validated on the others."""
    config = blobs.recipe(steps=1, validation=4, backbone=pretraining.FAST["backbone"])
    return finetune(config, [labelled], pretrained, places / "tuned")


def test_a_fine_tuning_warns_of_validation_cases_that_were_seen(tuned):
    notes = json.loads((tuned / "weights.json").read_text())
    held_out = json.loads((tuned / "cases.json").read_text())["validation"]
    seen = {case: "pretraining" for case in held_out if case in {"blob2", "blob3"}}
    assert seen
    assert notes["leaks"] == {"tested": 4, "certain": True, "seen": seen, "copies": {}}
    warning = f"have learnt from {len(seen)} of the 4 held-out cases in pretraining"
    assert any(warning in text for text in notes["warnings"])
    assert warning in report(tuned).read_text()


def test_a_fine_tuning_from_scratch_has_nothing_to_warn_of(labelled, tmp_path):
    config = blobs.recipe(steps=1, validation=4, backbone=pretraining.FAST["backbone"])
    run = finetune(config, [labelled], None, tmp_path / "run")
    notes = json.loads((run / "weights.json").read_text())
    assert notes["leaks"] == {"tested": 4, "certain": True, "seen": {}, "copies": {}}
    assert notes["warnings"] == []


def test_a_validation_case_that_is_learnt_from_under_another_name_is_told(tmp_path):
    store = Store(blobs.blob_store(tmp_path / "store", 3))
    twin = store.cases["blob0"].model_copy(update={"id": "twin", "source": "twin"})
    store.add([store.write(twin, store.read("blob0"), store.read_label("blob0"))])
    store.add([store.cases[n].model_copy(update={"split": "validation"}) for n in ("twin",)])
    config = blobs.recipe(steps=1, backbone=pretraining.FAST["backbone"])
    run = finetune(config, [store.path], None, tmp_path / "run")
    notes = json.loads((run / "weights.json").read_text())
    assert notes["leaks"]["copies"] == {"twin": "blob0"}
    assert any("twin is blob0" in text for text in notes["warnings"])


def test_predictions_and_their_figures_tell_which_scans_were_learnt_from(tuned, tmp_path):
    grid = Grid((24, 24, 24), EYE)
    for number in (2, 30):
        image, label = blobs.blob(number)
        for folder, array in (("scans", image), ("labels", label[None])):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_image(Volume(array, grid), tmp_path / folder / f"case{number}.nii.gz")
    done = predict(tuned, [tmp_path / "scans"], tmp_path / "masks", modality="MR")
    assert done.seen == {"case2": "pretraining"}
    assert "1 of them were learnt from (case2" in str(done)
    table = rows(tmp_path / "masks" / "seen.csv")
    assert {row["case"]: row["stage"] for row in table} == {"case2": "pretraining", "case30": ""}
    measured = evaluate(tmp_path / "masks", tmp_path / "labels", tmp_path / "figures")
    assert measured.summary["seen"] == {"case2": "pretraining"}
    assert "1 of these cases were learnt from (case2)" in str(measured)
    page = report(tmp_path / "figures").read_text()
    assert "has learnt from 1 of these cases (case2)" in page


def test_a_later_prediction_adds_to_the_table_of_seen_scans(tuned, tmp_path):
    grid = Grid((24, 24, 24), EYE)
    for number in (2, 30):
        (tmp_path / "scans").mkdir(exist_ok=True)
        file = tmp_path / "scans" / f"case{number}.nii.gz"
        write_image(Volume(blobs.blob(number)[0], grid), file)
        predict(tuned, [file], tmp_path / "masks", modality="MR")
    assert [row["case"] for row in rows(tmp_path / "masks" / "seen.csv")] == ["case2", "case30"]
