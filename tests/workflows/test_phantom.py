"""The folder of phantoms: complete, in decathlon layout, the same however it is made."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from voco.data.imageio import read_image, read_label
from voco.data.phantom import CLASSES, Organ, torso
from voco.errors import UsageError
from voco.workflows.phantom import phantom

SPACING_MM = 12.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return phantom(tmp_path_factory.mktemp("made") / "scans", 3, spacing_mm=SPACING_MM, workers=1)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_description_is_that_of_a_decathlon_task(folder):
    described = json.loads((folder / "dataset.json").read_text())
    assert described["modality"] == {"0": "CT"}
    assert described["labels"] == {str(value): name for value, name in CLASSES.items()}
    assert described["numTraining"] == len(described["training"]) == 3
    assert described["test"] == []
    for entry in described["training"]:
        assert (folder / entry["image"]).is_file()
        assert (folder / entry["label"]).is_file()


def test_nothing_else_is_left_in_the_folder(folder):
    described = json.loads((folder / "dataset.json").read_text())
    named = {str(Path(path)) for entry in described["training"] for path in entry.values()}
    assert set(digests(folder)) == named | {"dataset.json"}


def test_files_hold_the_generated_voxels_on_one_grid(folder):
    made = torso(0, 0, SPACING_MM)
    image = read_image(folder / "imagesTr/torso_000.nii.gz")
    label = read_label(folder / "labelsTr/torso_000.nii.gz")
    assert_array_equal(image.array, made.image.array)
    assert_array_equal(label.array, made.label.array)
    np.testing.assert_allclose(image.grid.affine, label.grid.affine)
    np.testing.assert_allclose(image.grid.affine, made.image.grid.affine, atol=1e-3)


def test_every_third_case_is_stored_in_lps_and_keeps_right_on_the_right(folder):
    image = read_image(folder / "imagesTr/torso_002.nii.gz")
    label = read_label(folder / "labelsTr/torso_002.nii.gz")
    assert read_image(folder / "imagesTr/torso_001.nii.gz").grid.orientation == "RAS"
    assert image.grid.orientation == label.grid.orientation == "LPS"
    places = {
        organ: label.grid.affine @ [*np.argwhere(label.array[0] == organ).mean(axis=0), 1]
        for organ in (Organ.LIVER, Organ.SPLEEN, Organ.VERTEBRAE)
    }
    assert places[Organ.LIVER][0] > places[Organ.SPLEEN][0]
    assert places[Organ.LIVER][1] > places[Organ.VERTEBRAE][1]
    assert abs(places[Organ.VERTEBRAE][0]) < 30


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    parallel = phantom(tmp_path / "scans", 3, spacing_mm=SPACING_MM, workers=2)
    assert digests(parallel) == digests(folder)


def test_a_folder_that_holds_something_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*--overwrite"):
        phantom(tmp_path, 1, spacing_mm=SPACING_MM)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_replaces_phantoms_and_leaves_the_rest(tmp_path):
    phantom(tmp_path, 1, spacing_mm=SPACING_MM, workers=1)
    old = digests(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    phantom(tmp_path, 1, seed=1, spacing_mm=SPACING_MM, workers=1, overwrite=True)
    new = digests(tmp_path)
    assert new["imagesTr/torso_000.nii.gz"] != old["imagesTr/torso_000.nii.gz"]
    assert sorted(new) == [
        "dataset.json",
        "imagesTr/torso_000.nii.gz",
        "labelsTr/torso_000.nii.gz",
        "notes.txt",
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cases": 0}, "cases = 0"),
        ({"spacing_mm": 0.1}, r"spacing_mm = 0\.1"),
        ({"spacing_mm": float("nan")}, "spacing_mm = nan"),
        ({"workers": 0}, "workers = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(UsageError, match=named):
        phantom(tmp_path / "scans", **options)
    assert not (tmp_path / "scans").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "scans").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        phantom(tmp_path / "scans", 1, overwrite=True)
