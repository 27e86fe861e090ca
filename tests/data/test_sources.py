import csv
import json

import nibabel as nib
import numpy as np
import pytest
from dicom_files import slice_dataset, write_series

from voco.data.imageio import write_image
from voco.data.sources import discover, read_source
from voco.errors import DataError
from voco.geometry import Grid
from voco.volume import Volume

STORED = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


def image(path, shape=(12, 11, 10), seed=0, kind="image", origin=0.0):
    """Write an image of noise, or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 900 if kind == "image" else 2, shape).astype(np.int16)
    affine = np.eye(4)
    affine[0, 3] = origin
    write_image(Volume(array[None], Grid(shape, affine)), path)
    return path


def label(path, **settings):
    return image(path, kind="label", **settings)


def found(place):
    """Id to (names of images, name of label), and names of what was refused."""
    sources, refused = discover(place)
    pairs = {
        source.id: (
            [path.name for path in source.images],
            source.label.name if source.label else None,
        )
        for source in sources
    }
    return pairs, sorted(item.path.name for item in refused)


def reasons(place):
    return " | ".join(item.reason for item in discover(place)[1])


def test_no_such_place_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        discover(tmp_path / "absent")


def test_a_single_file_is_a_case(tmp_path):
    path = image(tmp_path / "a scan.nii.gz")
    assert found(path) == ({"a_scan": (["a scan.nii.gz"], None)}, [])


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("case_ct.nii.gz", "case_label.nii.gz"),
        ("case.nii.gz", "case_seg.nii.gz"),
        ("case.nii.gz", "case_seg-manual.nii.gz"),
        ("case.nii.gz", "case-gmseg.nii.gz"),
        ("case_image.nii", "case_mask.nii.gz"),
        ("case_t1.nii.gz", "case_GT.nii.gz"),
        ("ct.nii.gz", "segmentation.nii.gz"),
        ("images/case.nii.gz", "labels/case.nii.gz"),
        ("imagesTr/case.nii.gz", "labelsTr/case.nii.gz"),
        ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz"),
        ("images/case.nii.gz", "masks/case_mask.nii.gz"),
        ("case.nii.gz", "labels/case.nii.gz"),
        ("anything/case_ct.nii.gz", "Segmentations/case.nii.gz"),
    ],
)
def test_an_image_finds_its_label_by_the_usual_names(tmp_path, scan, mask):
    image(tmp_path / scan)
    label(tmp_path / mask)
    sources, refused = discover(tmp_path)
    assert [(s.images, s.label) for s in sources] == [((tmp_path / scan,), tmp_path / mask)]
    assert not refused


def test_labels_of_the_test_set_do_not_meet_images_of_the_training_set(tmp_path):
    image(tmp_path / "imagesTr" / "case.nii.gz")
    label(tmp_path / "labelsTs" / "case.nii.gz")
    pairs, refused = found(tmp_path)
    assert pairs == {"case": (["case.nii.gz"], None)}
    assert refused == ["case.nii.gz"]


def test_a_label_without_an_image_is_refused_and_an_image_without_a_label_taken(tmp_path):
    image(tmp_path / "a.nii.gz")
    label(tmp_path / "b_label.nii.gz")
    pairs, refused = found(tmp_path)
    assert pairs == {"a": (["a.nii.gz"], None)}
    assert refused == ["b_label.nii.gz"]
    assert "without an image" in reasons(tmp_path)


def test_a_label_that_fits_two_images_is_refused(tmp_path):
    image(tmp_path / "case_ct.nii.gz")
    image(tmp_path / "case_pet.nii.gz")
    label(tmp_path / "case_label.nii.gz")
    pairs, refused = found(tmp_path)
    assert pairs == {
        "case_ct": (["case_ct.nii.gz"], None),
        "case_pet": (["case_pet.nii.gz"], None),
    }
    assert refused == ["case_label.nii.gz"]
    assert "several images (case_ct.nii.gz, case_pet.nii.gz)" in reasons(tmp_path)


def test_two_labels_of_one_image_are_refused(tmp_path):
    image(tmp_path / "case.nii.gz")
    label(tmp_path / "case_seg.nii.gz")
    label(tmp_path / "case_mask.nii.gz")
    pairs, refused = found(tmp_path)
    assert pairs == {"case": (["case.nii.gz"], None)}
    assert refused == ["case_mask.nii.gz", "case_seg.nii.gz"]


def test_an_exact_name_goes_before_a_similar_one(tmp_path):
    image(tmp_path / "images" / "case.nii.gz")
    image(tmp_path / "images" / "case_ct.nii.gz")
    label(tmp_path / "labels" / "case.nii.gz")
    pairs, refused = found(tmp_path)
    assert pairs["case"] == (["case.nii.gz"], "case.nii.gz")
    assert pairs["case_ct"] == (["case_ct.nii.gz"], None)
    assert not refused


def test_a_mask_with_an_innocent_name_is_refused_when_it_is_read(tmp_path):
    path = label(tmp_path / "region.nii.gz")
    (source,), _ = discover(path)
    with pytest.raises(DataError, match="2 whole numbers 0 to 1, so it is a mask"):
        read_source(source)
    (tmp_path / "list.txt").write_text("region.nii.gz\n")
    (stated,), _ = discover(tmp_path / "list.txt")
    assert read_source(stated)[0].volume.array.max() == 1


def test_ids_come_from_the_path_and_are_unique(tmp_path):
    for name in ("p1/ct.nii.gz", "p2/ct.nii.gz", "p2/c t.nii.gz", "p2/c_t.nii.gz"):
        image(tmp_path / name)
    assert sorted(found(tmp_path)[0]) == ["p1__ct", "p2__c_t", "p2__c_t-2", "p2__ct"]


def test_what_is_no_image_is_passed_over_and_what_could_be_one_is_refused(tmp_path):
    image(tmp_path / "a.nii.gz")
    for name in ("README.md", "notes.txt", "cases.csv", "a.json", "LICENSE", ".hidden.nii.gz"):
        (tmp_path / name).write_text("text")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "b.nii.gz").write_text("text")
    for name in ("picture.png", "series.zip"):
        (tmp_path / name).write_bytes(b"something")
    nib.save(nib.Nifti1Image(STORED.astype(np.int16), np.eye(4)), tmp_path / "c.nii")
    (tmp_path / "c.nii").rename(tmp_path / "nameless")
    pairs, refused = found(tmp_path)
    assert list(pairs) == ["a"]
    assert refused == ["nameless", "picture.png", "series.zip"]
    assert "unpack it" in reasons(tmp_path)
    assert "does not end in .nii" in reasons(tmp_path)


def test_one_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "scan.xyz").write_text("something")
    assert "not a kind of image file" in reasons(tmp_path / "scan.xyz")


def test_links_are_followed_once_and_broken_ones_told(tmp_path):
    image(tmp_path / "real" / "a.nii.gz")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "real" / "gone").symlink_to(tmp_path / "nowhere")
    pairs, refused = found(tmp_path)
    assert list(pairs) == ["real__a"]
    assert refused == ["gone"]


def test_two_files_of_one_image_are_one_case(tmp_path):
    pair = nib.Nifti1Pair(STORED.astype(np.int16), np.eye(4))
    nib.save(pair, tmp_path / "pair.hdr")
    assert found(tmp_path) == ({"pair": (["pair.hdr"], None)}, [])
    assert list(found(tmp_path / "pair.img")[0]) == ["pair"]


def test_dicom_series_are_cases_and_what_lies_beside_them_is_told(tmp_path):
    write_series(tmp_path / "p1", STORED)
    structure = slice_dataset(STORED[0], (0, 0, 0), Modality="RTSTRUCT")
    structure.save_as(tmp_path / "p1" / "rt.dcm", enforce_file_format=True)
    write_series(tmp_path / "p2", STORED[:2])
    (source,), refused = discover(tmp_path)
    assert source.id == "p1"
    assert source.group is not None
    assert len(source.files) == 4
    assert {item.path.name: item.reason.split(":")[0].split(";")[0] for item in refused} == {
        "p2": "2 slices",
        "rt.dcm": "an RT structure set",
    }
    scan, _ = read_source(source)
    assert scan.modality == "CT"
    np.testing.assert_array_equal(scan.volume.array[0], STORED.T.astype(int) - 1024)


def test_a_list_states_everything(tmp_path):
    image(tmp_path / "a.nii.gz")
    label(tmp_path / "b.nii.gz")
    write_series(tmp_path / "series", STORED)
    rows = [
        ["image", "label", "split", "group", "target", "modality", "age"],
        ["a.nii.gz", "b.nii.gz", "val", "p1", "2", "MRI", "50"],
        ["series", "", "train", "p2", "sick", "", "60"],
        ["absent.nii.gz", "", "", "", "", "", ""],
    ]
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (first, second), refused = discover(tmp_path / "list.csv")
    assert (first.id, first.split, first.group) == ("a", "validation", "p1")
    assert (first.target, first.modality) == (2, "MR")
    assert first.label == tmp_path / "b.nii.gz"
    assert (second.id, second.target, second.split) == ("series", "sick", "train")
    assert read_source(second)[0].modality == "CT"
    assert [item.path.name for item in refused] == ["absent.nii.gz"]
    assert "line 4" in refused[0].reason


def test_channels_of_a_list_are_put_together(tmp_path):
    for seed, name in enumerate(("a.nii.gz", "b.nii.gz")):
        image(tmp_path / name, seed=seed)
    (tmp_path / "list.txt").write_text("# two channels\n a.nii.gz;b.nii.gz\n")
    (source,), _ = discover(tmp_path / "list.txt")
    scan, _ = read_source(source)
    assert scan.volume.array.shape == (2, 12, 11, 10)
    assert scan.channels == ("a", "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\na,b\n", "no column 'image'"),
        ("image,split\na.nii.gz,later\n", "line 2: split 'later'"),
        ("image,split\n,train\n", "line 2: no image"),
        ("image,label\n\na.nii.gz,b,c\n", "line 3: 3 cells, but 2 columns"),
        ("a.nii.gz,a.nii.gz,train\n", "no column 'image'"),
        ("\n\n", "an empty list"),
        ("image,label\n", "an empty list"),
    ],
)
def test_a_wrong_list_is_an_error(tmp_path, text, reason):
    image(tmp_path / "a.nii.gz")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        discover(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt"])
@pytest.mark.parametrize("header", ["", "image\n"])
def test_a_plain_list_of_paths_needs_no_header(tmp_path, name, header):
    image(tmp_path / "sub" / "a.nii.gz")
    other = image(tmp_path / "elsewhere" / "b.nii.gz")
    place = tmp_path / "sub" / name
    place.write_text(f"{header}a.nii.gz\n{other}\ngone.nii.gz\n")
    sources, refused = discover(place)
    assert [source.images for source in sources] == [(place.parent / "a.nii.gz",), (other,)]
    assert [item.reason for item in refused] == [f"no such file ({place}, line {3 + bool(header)})"]


def test_a_second_column_without_a_header_is_the_label(tmp_path):
    image(tmp_path / "a, b.nii.gz")
    label(tmp_path / "mask.nii.gz")
    (tmp_path / "list.csv").write_text('"a, b.nii.gz",mask.nii.gz\n')
    (source,), _ = discover(tmp_path / "list.csv")
    assert source.images == (tmp_path / "a, b.nii.gz",)
    assert source.label == tmp_path / "mask.nii.gz"


def test_a_list_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"image\n\xff\xfe.nii.gz\n")
    with pytest.raises(DataError, match=r"list\.csv: not a text file in UTF-8"):
        discover(tmp_path / "list.csv")


def test_a_number_sign_inside_a_path_is_part_of_it(tmp_path):
    image(tmp_path / "case#1.nii.gz")
    (tmp_path / "list.txt").write_text("# all\ncase#1.nii.gz # the only one\n")
    (source,), refused = discover(tmp_path / "list.txt")
    assert source.images == (tmp_path / "case#1.nii.gz",)
    assert not refused


def test_a_decathlon_folder_is_what_its_list_says(tmp_path):
    tmp_path = tmp_path / "task"
    for name in ("imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTs/c.nii.gz"):
        image(tmp_path / name)
    label(tmp_path / "labelsTr/a.nii.gz")
    head = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [
            {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
            {"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"},
        ],
        "validation": [{"image": "./imagesTr/b.nii.gz", "label": 1}],
        "test": ["./imagesTs/c.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    for place in (tmp_path, tmp_path / "dataset.json"):
        sources, refused = discover(place)
        assert [(s.id, s.split) for s in sources] == [
            ("a", "train"),
            ("b", "validation"),
            ("c", "test"),
        ]
        assert sources[0].classes == {0: "background", 1: "liver"}
        assert {source.modality for source in sources} == {"CT"}
        assert sources[1].target == 1
        assert [item.path.name for item in refused] == ["gone.nii.gz"]
    nested, _ = discover(tmp_path.parent)
    assert [source.id for source in nested] == ["task__a", "task__b", "task__c"]


def test_a_fourth_axis_is_channels_when_the_list_names_as_many(tmp_path):
    array = np.random.default_rng(0).integers(0, 900, (8, 8, 8, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    head = {"modality": {"0": "FLAIR", "1": "T1w"}, "training": [{"image": "a.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    (source,), _ = discover(tmp_path)
    scan, _ = read_source(source)
    np.testing.assert_array_equal(scan.volume.array, np.moveaxis(array, 3, 0))
    assert scan.channels == ("FLAIR", "T1w")
    assert scan.modality == "MR"


def test_an_nnunet_folder_is_read_with_its_channels(tmp_path):
    for channel in (0, 1):
        image(tmp_path / f"imagesTr/a_000{channel}.nii.gz", seed=channel)
        image(tmp_path / f"imagesTs/c_000{channel}.nii.gz", seed=channel)
    image(tmp_path / "imagesTr/b_0000.nii.gz")
    label(tmp_path / "labelsTr/a.nii.gz")
    label(tmp_path / "labelsTr/z.nii.gz")
    head = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "core": 1},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    (first, second), refused = discover(tmp_path)
    assert (first.id, first.split, len(first.images)) == ("a", "train", 2)
    assert first.classes == {0: "background", 1: "core"}
    assert (second.id, second.split, second.label) == ("c", "test", None)
    assert [item.path.name for item in refused] == ["b_0000.nii.gz", "z.nii.gz"]
    scan, mask = read_source(first)
    assert scan.channels == ("T1", "T2")
    assert mask is not None


def test_the_first_nnunet_layout_finds_its_numbered_files(tmp_path):
    image(tmp_path / "imagesTr/a_0000.nii.gz")
    label(tmp_path / "labelsTr/a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    head = {"modality": {"0": "CT"}, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    (source,), _ = discover(tmp_path)
    assert (source.id, source.images[0].name) == ("a", "a_0000.nii.gz")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"training": [5]}'])
def test_a_wrong_dataset_file_is_an_error(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        discover(tmp_path / "dataset.json")


def test_arrays_of_a_medmnist_file_are_cases_with_targets(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (5, 6, 7, 8)).astype(np.uint8),
        "train_labels": np.array([[0], [1], [1], [0], [2]], np.uint8),
        "val_images": rng.integers(0, 256, (2, 6, 7, 8)).astype(np.uint8),
        "val_labels": np.array([[1], [0]], np.uint8),
    }
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    sources, refused = discover(tmp_path)
    assert not refused
    assert [source.target for source in sources] == [0, 1, 1, 0, 2, 1, 0]
    assert [source.split for source in sources] == ["train"] * 5 + ["validation"] * 2
    assert sources[0].id == "mnist-train-00000"
    for index in (3, 1, 4):  # in any order
        scan, _ = read_source(sources[index])
        np.testing.assert_array_equal(scan.volume.array[0], arrays["train_images"][index])
    assert scan.modality == "unknown"
    assert "no spacing" in scan.warnings[0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"numbers": np.zeros(3)},
        {"train_images": np.zeros((5, 8, 8))},
        {"train_images": np.zeros((5, 8, 8, 8)), "train_labels": np.zeros((4, 1))},
    ],
    ids=["no images", "pictures", "targets missing"],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    sources, refused = discover(tmp_path)
    assert not sources
    assert [item.path.name for item in refused] == ["mnist.npz"]
    (tmp_path / "mnist.npz").write_bytes(b"no archive")
    assert "damaged" in reasons(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shape": (12, 11, 9)}, "12 x 11 x 9 voxels against 12 x 11 x 10"),
        ({"origin": 3.0}, "3 mm apart"),
    ],
)
def test_a_label_or_channel_on_another_grid_is_refused(tmp_path, settings, reason):
    image(tmp_path / "a.nii.gz")
    label(tmp_path / "a_label.nii.gz", **settings)
    (source,), _ = discover(tmp_path)
    with pytest.raises(DataError, match=reason):
        read_source(source)
    (tmp_path / "list.txt").write_text("a.nii.gz;a_label.nii.gz")
    (source,), _ = discover(tmp_path / "list.txt")
    with pytest.raises(DataError, match=reason):
        read_source(source)


def test_an_empty_label_and_unnamed_classes_are_told(tmp_path):
    for name, value in (("a", 0), ("b", 5)):
        image(tmp_path / f"{name}.nii.gz")
        mask = np.zeros((1, 12, 11, 10), np.uint8)
        mask[0, 0, 0, 0] = value
        write_image(Volume(mask, Grid((12, 11, 10), np.eye(4))), tmp_path / f"{name}_label.nii.gz")
    entries = [{"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in ("a", "b")]
    head = {"labels": {"0": "background", "1": "liver"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    (empty, unnamed), _ = discover(tmp_path)
    assert "its label is empty" in read_source(empty)[0].warnings[-1]
    assert "[5], which the data set does not name" in read_source(unnamed)[0].warnings[-1]


def test_what_the_user_says_about_the_modality_goes_first(tmp_path):
    (source,), _ = discover(image(tmp_path / "a.nii.gz"))
    assert read_source(source)[0].modality == "unknown"
    assert read_source(source, modality="MR")[0].modality == "MR"
