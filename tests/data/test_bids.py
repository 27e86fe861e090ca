import json
from pathlib import Path

import numpy as np
import pytest

from voco.cli import DONE, main
from voco.data.imageio import write_image
from voco.data.sources import discover, read_source
from voco.data.store import Store
from voco.errors import DataError
from voco.geometry import Grid
from voco.volume import Volume


def image(path: Path, kind="image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    array = rng.integers(0, 900 if kind == "image" else 3, (12, 11, 10)).astype(np.int16)
    write_image(Volume(array[None], Grid(array.shape, np.eye(4))), path)
    return path


def label(path: Path) -> Path:
    return image(path, "label")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "small", "BIDSVersion": "1.9.0"}')
    return tmp_path


def labels(root):
    """Id of each case and the name of its label."""
    return {s.id: s.label.name if s.label else None for s in discover(root)[0]}


def told(root, *, passed_over):
    return [item.reason for item in discover(root)[1] if item.passed_over is passed_over]


def test_modality_group_and_id_come_from_folder_subject_and_name(root):
    image(root / "sub-01/anat/sub-01_T1w.nii.gz")
    image(root / "sub-02/ses-1/anat/sub-02_ses-1_acq-hi_run-2_FLAIR.nii.gz")
    image(root / "sub-02/ses-2/pet/sub-02_ses-2_trc-FDG_pet.nii.gz")
    image(root / "sub-03/ct/sub-03_ct.nii.gz")
    sources, refused = discover(root)
    assert [(s.id, s.group, s.modality) for s in sources] == [
        ("sub-01_T1w", "sub-01", "MR"),
        ("sub-02_ses-1_acq-hi_run-2_FLAIR", "sub-02", "MR"),
        ("sub-02_ses-2_trc-FDG_pet", "sub-02", "PT"),
        ("sub-03_ct", "sub-03", "CT"),
    ]
    assert not refused


def test_labels_of_derivatives_are_matched_by_their_entities(root):
    for ses in ("1", "2"):
        image(root / f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
        label(root / f"derivatives/manual/sub-01/ses-{ses}/anat/sub-01_ses-{ses}_dseg.nii.gz")
    image(root / "sub-02/anat/sub-02_run-1_T1w.nii.gz")
    image(root / "sub-02/anat/sub-02_run-2_T1w.nii.gz")
    label(root / "derivatives/manual/sub-02/anat/sub-02_run-2_desc-tumour_dseg.nii.gz")
    image(root / "sub-03/anat/sub-03_T1w.nii.gz")
    image(root / "sub-03/anat/sub-03_T2w.nii.gz")
    label(root / "derivatives/manual/sub-03/anat/sub-03_space-T2w_dseg.nii.gz")
    image(root / "sub-04/anat/sub-04_T1w.nii.gz")
    label(root / "sub-04/anat/sub-04_dseg.nii.gz")
    assert labels(root) == {
        "sub-01_ses-1_T1w": "sub-01_ses-1_dseg.nii.gz",
        "sub-01_ses-2_T1w": "sub-01_ses-2_dseg.nii.gz",
        "sub-02_run-1_T1w": None,
        "sub-02_run-2_T1w": "sub-02_run-2_desc-tumour_dseg.nii.gz",
        "sub-03_T1w": None,
        "sub-03_T2w": "sub-03_space-T2w_dseg.nii.gz",
        "sub-04_T1w": "sub-04_dseg.nii.gz",
    }
    assert not discover(root)[1]


def test_an_image_without_further_entities_is_the_labels_own(root):
    image(root / "sub-01/anat/sub-01_T1w.nii.gz")
    image(root / "sub-01/anat/sub-01_acq-fast_T1w.nii.gz")
    label(root / "derivatives/m/sub-01/anat/sub-01_dseg.nii.gz")
    assert labels(root) == {"sub-01_T1w": "sub-01_dseg.nii.gz", "sub-01_acq-fast_T1w": None}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["sub-01_T1w", "sub-01_T2w", "sub-01_dseg"], "fits several images"),
        (["sub-01_T1w", "sub-01_desc-a_dseg", "sub-01_desc-b_dseg"], "one of 2 labels"),
        (["sub-01_T1w", "sub-01_run-3_dseg"], "a label without an image"),
    ],
)
def test_a_label_that_is_not_clearly_one_images_is_refused(root, files, reason):
    for name in files:
        folder = "derivatives/m/sub-01/anat" if name.endswith("dseg") else "sub-01/anat"
        image(root / folder / f"{name}.nii.gz")
    assert set(labels(root).values()) == {None}
    reasons = told(root, passed_over=False)
    assert reasons
    assert all(reason in text for text in reasons)


def test_what_is_no_case_by_the_layout_is_passed_over_and_told(root):
    image(root / "sub-01/anat/sub-01_T1w.nii.gz")
    image(root / "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz")
    (root / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    image(root / "sub-01/func/sub-01_task-rest_bold.nii.gz")
    (root / "sub-01/sub-01_scans.tsv").write_text("filename\n")
    image(root / "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    label(root / "derivatives/warped/sub-01/anat/sub-01_space-MNI152_dseg.nii.gz")
    assert labels(root) == {"sub-01_T1w": None}
    assert not told(root, passed_over=False)
    assert sorted(told(root, passed_over=True)) == [
        "BIDS 'func' images are not taken, only anat, ct, pet",
        "a defacemask, not an image",
        "a label in the space 'MNI152', not in that of its image",
        "derivatives are read for their labels (*_dseg) only",
        "files of subjects that are no images: 1 .json, 1 .tsv",
    ]


def test_an_image_whose_name_is_not_of_bids_is_refused(root):
    image(root / "sub-01/anat/sub-01_T1w.nii.gz")
    image(root / "sub-01/anat/sub-01_T2w_lesion-manual.nii.gz")
    image(root / "sub-01/anat/scan.nii.gz")
    assert labels(root) == {"sub-01_T1w": None}
    assert len(told(root, passed_over=False)) == 2


def test_names_of_classes_come_from_the_nearest_table(root):
    for number in (1, 2):
        image(root / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz")
        label(root / f"derivatives/m/sub-0{number}/anat/sub-0{number}_dseg.nii.gz")
    (root / "derivatives/m/dseg.tsv").write_text(
        "index\tname\tcolor\n1\tliver\t#f00\n2\tspleen\t\n"
    )
    own = root / "derivatives/m/sub-02/anat/sub-02_dseg.tsv"
    own.write_text("index\tname\n1\thead\n2\ttail\n")
    first, second = discover(root)[0]
    assert first.classes == {1: "liver", 2: "spleen"}
    assert second.classes == {1: "head", 2: "tail"}
    own.write_text("index\tname\none\thead\n")
    with pytest.raises(DataError, match=r"sub-02_dseg\.tsv, line 2: index 'one'"):
        discover(root)


def test_a_split_column_of_the_participants_is_used(root):
    for number in (1, 2, 3):
        image(root / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz")
    table = root / "participants.tsv"
    table.write_text(
        "participant_id\tage\tsplit\nsub-01\t9\ttrain\nsub-02\t8\ttest\nsub-03\t7\tn/a\n"
    )
    assert [s.split for s in discover(root)[0]] == ["train", "test", None]
    table.write_text("participant_id\tage\nsub-01\t9\n")
    assert [s.split for s in discover(root)[0]] == [None, None, None]
    table.write_text("participant_id\tsplit\nsub-01\tlater\n")
    with pytest.raises(DataError, match=r"participants\.tsv, line 2: split 'later'"):
        discover(root)


def test_a_data_set_is_prepared_without_complaint(root):
    for number in (1, 2):
        image(root / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz")
        image(root / f"sub-0{number}/func/sub-0{number}_bold.nii.gz")
        label(root / f"derivatives/m/sub-0{number}/anat/sub-0{number}_dseg.nii.gz")
    (root / "derivatives/m/dseg.tsv").write_text("index\tname\n1\tliver\n2\tspleen\n")
    out = root / "out" / "store"
    out.parent.mkdir()
    assert main(["prepare", str(root), "--out", str(out), "--workers", "1"]) == DONE
    case = Store(out).cases["sub-01_T1w"]
    assert (case.group, case.modality) == ("sub-01", "MR")
    assert case.classes == {0: "background", 1: "liver", 2: "spleen"}
    assert case.has_label
    lines = [json.loads(line) for line in (out / "quality.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines].count("passed over") == 2
    assert "Passed over" in (out / "quality.html").read_text()


def test_image_and_label_are_read_together(root):
    image(root / "sub-01/anat/sub-01_T1w.nii.gz")
    label(root / "sub-01/anat/sub-01_dseg.nii.gz")
    (source,), _ = discover(root)
    scan, mask = read_source(source)
    assert scan.volume.grid.shape == mask.grid.shape
