import csv
import json
import sys
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import torch
from blobs import VALUES, blob, blob_store, raised, recipe
from dicom_files import write_series
from pydicom.uid import generate_uid

from voco.data.imageio import read_image, read_label, write_image
from voco.errors import DataError, UsageError, WeightsError
from voco.evaluation.overlap import dice
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows.finetune import finetune
from voco.workflows.predict import predict

SPACING = (1.3, 0.7, 1.0)
SHAPE = (20, 36, 26)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("blobs") / "store")


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    changes = {"steps": 50, "validation": 0}
    return finetune(recipe(**changes), [store], None, tmp_path_factory.mktemp("run") / "run")


def lps(array):
    """An array on the blobs' RAS grid as a volume whose axes point to L, P and S."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (40, -25, 7)
    return Volume(np.ascontiguousarray(array[:, ::-1, ::-1]), Grid(array.shape[1:], affine))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans of another spacing and orientation than the store's, and their labels."""
    folder = tmp_path_factory.mktemp("scans")
    for number in (100, 101):
        image, label = blob(number, SHAPE, spacing_mm=SPACING)
        write_image(lps(image), folder / f"scan{number}.nii.gz")
        (folder / "truth").mkdir(exist_ok=True)
        write_image(lps(label[None]), folder / "truth" / f"scan{number}.nii.gz")
    return folder


def files(scans):
    return sorted(scans.glob("*.nii.gz"))


def test_masks_are_good_and_lie_on_the_grid_of_their_scan(run, scans, tmp_path):
    done = predict(run, files(scans), tmp_path / "masks", modality="MR")
    assert done.complete
    assert [file.name for file in done.files] == ["scan100.nii.gz", "scan101.nii.gz"]
    for file in done.files:
        mask, scan = read_label(file), read_image(scans / file.name)
        assert mask.grid.shape == scan.grid.shape == SHAPE
        assert mask.grid.orientation == "LPS"
        assert np.allclose(mask.grid.affine, scan.grid.affine, atol=1e-5)
        truth = read_label(scans / "truth" / file.name)
        found = dice(mask.array[0], truth.array[0], (205, 420))
        assert min(found.values()) > 0.8
    assert json.loads((tmp_path / "masks" / "labels.json").read_text()) == {
        str(value): name for value, name in VALUES.items()
    }
    lines = (tmp_path / "masks" / "labels.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "205", "420"]
    header = nib.load(done.files[0]).header
    names = ElementTree.fromstring(header.extensions[0].content.rstrip(b"\0")).iter("Label")
    assert {int(e.get("Key")): e.text for e in names} == VALUES
    assert header.get_intent()[0] == "label"


def test_a_mask_is_the_same_whatever_the_scan_lies_beside(run, scans, tmp_path):
    both = predict(
        run, [scans / "scan100.nii.gz", scans / "scan101.nii.gz"], tmp_path / "a", modality="MR"
    )
    alone = predict(run, [scans / "scan101.nii.gz"], tmp_path / "b", modality="MR")
    assert both.files[1].read_bytes() == alone.files[0].read_bytes()


def test_one_bad_scan_is_reported_and_the_others_go_on(run, scans, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((scans / "scan100.nii.gz").read_bytes()[:2000])
    missing = tmp_path / "missing.nii.gz"
    done = predict(run, [bad, missing, files(scans)[1]], tmp_path / "masks", modality="MR")
    assert not done.complete
    assert done.scans == 1
    assert [failure[0] for failure in done.failures] == [str(missing), str(bad)]
    assert str(bad) in str(done)


def test_a_scan_of_another_modality_is_refused_with_a_way_out(run, scans, tmp_path):
    done = predict(run, files(scans)[:1], tmp_path / "masks")
    assert not done.files
    assert "modality is unknown, the network was trained on MR" in done.failures[0][1]
    assert "--modality MR" in done.failures[0][1]


def test_a_scan_with_other_channels_is_refused(run, tmp_path):
    image, _ = blob(7, channels=2)
    write_image(Volume(image, Grid(image.shape[1:], np.eye(4))), tmp_path / "two.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "T1", "1": "T2"}, "test": ["./two.nii.gz"], "labels": {}})
    )
    done = predict(run, [tmp_path], tmp_path / "masks", modality="MR")
    assert not done.files
    assert "has 2 channels, the network takes 1 (channel0)" in done.failures[0][1]


def test_results_are_not_replaced_unasked(run, scans, tmp_path):
    predict(run, files(scans)[:1], tmp_path / "masks", modality="MR")
    with pytest.raises(UsageError, match=r"scan100\.nii\.gz: exists"):
        predict(run, files(scans)[:1], tmp_path / "masks", modality="MR")
    assert predict(
        run, files(scans)[:1], tmp_path / "masks", modality="MR", overwrite=True
    ).complete


def test_two_scans_of_one_name_are_refused(run, scans, tmp_path):
    (tmp_path / "scan100.nii.gz").write_bytes(files(scans)[0].read_bytes())
    with pytest.raises(DataError, match="'scan100'"):
        predict(run, [files(scans)[0], tmp_path / "scan100.nii.gz"], tmp_path / "masks")


def test_probabilities_agree_with_the_mask(run, scans, tmp_path):
    done = predict(
        run, files(scans)[:1], tmp_path / "m", modality="MR", probabilities=True, flips=True
    )
    from voco.data.imageio import read_scan

    maps = read_scan(tmp_path / "m" / "probabilities" / "scan100.nii.gz", channels=("a", "b", "c"))
    shares = maps.volume.array
    assert np.allclose(shares.sum(0), 1, atol=1e-4)
    winners = np.array(list(VALUES))[shares.argmax(0)]
    assert (winners == read_label(done.files[0]).array[0]).mean() > 0.99


def test_a_pretrained_network_predicts_nothing(run, tmp_path):
    handover = json.loads((run / "handover.json").read_text())
    other = tmp_path / "pre"
    other.mkdir()
    (other / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    handover |= {"kind": "pretraining", "task": None}
    (other / "handover.json").write_text(json.dumps(handover))
    with pytest.raises(WeightsError, match="voco finetune"):
        predict(other, [tmp_path], tmp_path / "masks")


def test_a_classification_gives_a_table_of_scores(store, tmp_path):
    task = {"name": "classification", "size": [16, 16, 16], "shift_probability": 0}
    changes = {"steps": 30, "validation": 0, "task": task}
    run = finetune(recipe(**changes), [store], None, tmp_path / "run")
    for number in (200, 201):
        image = raised(blob(number)[0]) if number % 2 else blob(number)[0]
        write_image(Volume(image, Grid(image.shape[1:], np.eye(4))), tmp_path / f"s{number}.nii.gz")
    scans = [tmp_path / "s200.nii.gz", tmp_path / "s201.nii.gz"]
    done = predict(run, scans, tmp_path / "scores", modality="MR", flips=True)
    with done.files[0].open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["case"] for row in table] == ["s200", "s201"]
    assert [row["predicted"] for row in table] == ["plain", "raised"]
    for row in table:
        assert float(row["plain"]) + float(row["raised"]) == pytest.approx(1, abs=1e-4)


@pytest.fixture
def series(tmp_path):
    """A blob as a DICOM series, head first."""
    image, _ = blob(100, (26, 36, 20))
    folder = tmp_path / "series"
    write_series(
        folder,
        (image[0].transpose(2, 1, 0) + 200).astype(np.uint16),
        Modality="MR",
        RescaleIntercept=-200,
        PixelSpacing=[1, 1],
        positions=[(0, 0, -index) for index in range(20)],
        FrameOfReferenceUID=generate_uid(),
    )
    return folder


def test_a_dicom_series_gets_a_segmentation_that_refers_to_it(run, series, tmp_path):
    hd = pytest.importorskip("highdicom")
    done = predict(run, [series], tmp_path / "masks", mask_format="both")
    assert [file.name for file in done.files] == ["series.nii.gz", "series.seg.dcm"]
    segmentation = hd.seg.segread(done.files[1])
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["dark", "bright"]
    volume = segmentation.get_volume(combine_segments=True)
    mask = read_label(done.files[0])
    assert set(np.unique(mask.array)) == set(VALUES)
    lps = np.diag([-1.0, -1, 1, 1])
    for place in np.argwhere(mask.array[0] > 0)[::50]:
        world = lps @ mask.grid.affine @ [*place, 1]
        index = tuple(volume.map_reference_to_indices(world[None, :3])[0].round().astype(int))
        assert volume.array[index] == {205: 1, 420: 2}[mask.array[0][tuple(place)]]


def test_a_scan_that_is_not_dicom_gets_no_segmentation_and_the_others_do(
    run, series, scans, tmp_path
):
    pytest.importorskip("highdicom")
    places = [series, files(scans)[0]]
    done = predict(run, places, tmp_path / "m", modality="MR", mask_format="dicomseg")
    assert [file.name for file in done.files] == ["series.seg.dcm"]
    assert done.scans == 1
    assert "is not DICOM" in done.failures[0][1]
    assert "--format nifti" in done.failures[0][1]


def test_without_highdicom_its_extra_is_named(run, series, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match=r"pip install 'voco\[dicomseg\]'"):
        predict(run, [series], tmp_path / "m", mask_format="dicomseg")


def test_training_and_prediction_see_the_same_voxels(store, run, tmp_path):
    from voco.data.patches import scaling
    from voco.data.source import Source
    from voco.data.store import Store
    from voco.scans import prepare_scan, scaled
    from voco.workflows.predict import load_model

    image = raised(blob(3)[0])
    write_image(Volume(image, Grid(image.shape[1:], np.eye(4))), tmp_path / "a.nii.gz")
    model = load_model(run)
    ready = prepare_scan(Source("a", (tmp_path / "a.nii.gz",)), model.handover, "MR")
    stored = Store(store)
    assert np.array_equal(ready.image, stored.read("blob3"))
    ours = scaling(ready, model.handover.intensity)
    theirs = scaling(stored.cases["blob3"], model.handover.intensity)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    volume = scaled(ready.image, ready, model.handover, model.device)
    assert volume.shape == (1, *ready.grid.shape)
