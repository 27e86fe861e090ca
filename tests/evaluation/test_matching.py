import json

import numpy as np
import pytest

from voco.errors import DataError, UsageError
from voco.evaluation.matching import class_names, described, find_masks, matched, same_place
from voco.geometry import Grid


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_names_match_up_to_the_ending_and_the_words_that_labels_carry(tmp_path):
    ours = find_masks(touch(tmp_path / "a", "x.nii.gz", "y_0000.nii.gz", "z_pred.nrrd", "odd.nii"))
    theirs = find_masks(touch(tmp_path / "b", "x.nrrd", "y.nii.gz", "z_label.nii.gz", "w.nii"))
    found = {case: file.name for case, file in matched(ours, theirs).items()}
    assert found == {"x": "x.nii.gz", "y": "y_0000.nii.gz", "z_label": "z_pred.nrrd"}


def test_an_equal_name_is_preferred_and_a_second_fitting_file_refused(tmp_path):
    theirs = find_masks(touch(tmp_path / "b", "x.nii.gz"))
    ours = find_masks(touch(tmp_path / "a", "x.nii.gz", "x_pred.nii.gz"))
    with pytest.raises(UsageError, match="both fit"):
        matched(ours, theirs)


def test_a_decathlon_folder_means_its_labels(tmp_path):
    touch(tmp_path / "imagesTr", "a.nii.gz")
    touch(tmp_path / "labelsTr", "b.nii.gz", "._b.nii.gz", "notes.txt")
    assert list(find_masks(tmp_path)) == ["b"]


def test_two_files_of_one_name_and_a_folder_without_masks_are_refused(tmp_path):
    touch(tmp_path / "a", "x.nii.gz", "x.nrrd")
    with pytest.raises(UsageError, match=r"x\.nii\.gz and x\.nrrd are both case x"):
        find_masks(tmp_path / "a")
    with pytest.raises(UsageError, match="holds no mask"):
        find_masks(touch(tmp_path / "b", "readme.txt"))
    with pytest.raises(UsageError, match="no such folder"):
        find_masks(tmp_path / "c")


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "liver"}, {"background": 0, "liver": 1, "both": [1, 2]}]
)
def test_names_come_from_either_form_of_dataset_json(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    folder = touch(tmp_path / "labelsTr", "a.nii.gz")
    assert class_names(tmp_path / "masks", folder) == {1: "liver"}
    assert class_names(tmp_path / "masks", tmp_path) == {1: "liver"}


def test_contradicting_names_are_refused_and_mere_numbers_give_way(tmp_path):
    ours, theirs = touch(tmp_path / "ours"), touch(tmp_path / "theirs")
    (theirs / "dataset.json").write_text(json.dumps({"labels": {"1": "Left Lobe", "2": "cyst"}}))
    (ours / "labels.json").write_text(json.dumps({"1": "left_lobe", "2": "class 2"}))
    assert class_names(ours, theirs) == {1: "Left Lobe", 2: "cyst"}
    (ours / "labels.json").write_text(json.dumps({"1": "spleen"}))
    with pytest.raises(DataError, match="class 1 is 'spleen'"):
        class_names(ours, theirs)


def test_grids_are_the_same_up_to_rounding_only():
    grid = Grid((40, 30, 20), np.diag([1.0, 1.0, 2.0, 1.0]))
    moved = grid.affine.copy()
    moved[0, 3] += 1e-4
    assert same_place(grid, Grid(grid.shape, moved))
    moved[0, 3] += 0.5
    assert not same_place(grid, Grid(grid.shape, moved))
    assert not same_place(grid, Grid((40, 30, 21), grid.affine))
    assert described(grid) == "40 x 30 x 20 voxels of 1 x 1 x 2 mm, RAS, origin (0.0, 0.0, 0.0)"
