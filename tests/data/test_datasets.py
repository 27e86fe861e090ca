"""Descriptions of data sets, and the folders that they describe; no image is read here."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import official
import pytest

from voco.config import parse, read_yaml
from voco.data.datasets import Dataset, catalogue, read_dataset
from voco.data.layouts import check_counts, lay_out
from voco.data.splits import with_splits
from voco.errors import ConfigError, DataError, UsageError
from voco.recipes import FinetuneConfig, PretrainConfig
from voco.shipped import shipped
from voco.tasks.classification import ClassificationConfig
from voco.tasks.segmentation import SegmentationConfig

ROOT = Path(__file__).parents[2]
NAMES = tuple(shipped("data set"))
THREE = (("Normal", 1, 10), ("CP", 2, 20), ("NCP", 3, 30))


def whole(root: Path, name: str) -> Path:
    """Empty files under the names of all labelled cases of a data set."""
    if name == "cc-ccii":
        scans = [(("Normal", "CP", "NCP")[n % 3], n // 2, n) for n in range(4178)]
        files = [f"{kind}/{patient}/{scan}/0.png" for kind, patient, scan in scans]
    elif name == "luna16":
        files = [f"subset{n % 10}/1.3.6.{n}.{end}" for n in range(888) for end in ("mhd", "raw")]
        files += [f"seg-lungs-LUNA16/1.3.6.{n}.mhd" for n in range(888)]
    elif name == "tcia-covid-19":
        files = [f"volume-covid19-A-{n:04d}.nii.gz" for n in range(770)]
        files += ["volume-covid19-A-0769_1.nii.gz"]
    else:
        ids = {
            "btcv": [f"{n:04d}" for n in (*range(1, 11), *range(21, 41))],
            "mm-whs": range(1001, 1021),
            "lits": range(131),
            "brats-2021": [f"{n:05d}" for n in range(1251)],
            "msd-hippocampus": [f"{n:03d}" for n in range(1, 261)],
            "msd-brain-tumour": [f"{n:03d}" for n in range(1, 485)],
        }.get(name) or [case.split("_")[1] for case in shipped_split(name)]
        patterns = [
            part.replace("#", s) for part in official.FILES[name] for s in official.SEQUENCES
        ]
        files = [pattern.format(case) for pattern in dict.fromkeys(patterns) for case in ids]
    for folder in {(root / file).parent for file in files}:
        folder.mkdir(parents=True)
    for file in files:
        (root / file).touch()
    return root


def shipped_split(name: str) -> dict[str, str]:
    with (ROOT / "datasets" / "splits" / str(read_dataset(name).split)).open() as stream:
        return {row["case"]: row["split"] for row in csv.DictReader(stream)}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_data_set_has_the_expected_cases_and_its_split_names_each(name, tmp_path):
    dataset, root = read_dataset(name), whole(tmp_path / "set", name)
    laid = lay_out(dataset, name, root)
    check_counts(dataset, name, root, laid)
    assert laid.refused == []
    assert laid.layout == dataset.layouts[0]
    sources = with_splits(dataset, name, laid)
    assert len(sources) == laid.counts[0].expected
    assert {source.split for source in sources} == (
        {"train", "validation"} if dataset.split else {None}
    )
    assert {len(source.images) for source in sources} == {4 if name == "brats-2021" else 1}


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("btcv", 24, 6),
        ("lits", 108, 23),
        ("mm-whs", 16, 4),
        ("msd-brain-tumour", 387, 97),
        ("msd-spleen", 32, 9),
    ],
)
def test_splits_that_come_along_have_the_published_sizes(name, train, validation):
    splits = list(shipped_split(name).values())
    assert (splits.count("train"), splits.count("validation")) == (train, validation)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_a_data_set_fits_it(name):
    dataset = read_dataset(name)
    assert dataset.recipes
    for recipe in dataset.recipes:
        values = read_yaml(ROOT / "recipes" / f"{recipe}.yaml")
        if "method" in values:
            parse(PretrainConfig, values, recipe)
            continue
        config = parse(FinetuneConfig, values, recipe)
        first = dataset.layouts[0].parts[0]
        channels = len(dataset.channels) or len(first.images)
        assert config.backbone.in_channels == channels
        if isinstance(config.task, SegmentationConfig):
            assert dataset.use == "segmentation"
            assert config.task.regions in ({}, dataset.regions)
        else:
            assert isinstance(config.task, ClassificationConfig)
            assert dataset.targets


def test_the_two_sets_of_brain_tumours_are_told_apart():
    ours, theirs = read_dataset("brats-2021"), read_dataset("msd-brain-tumour")
    assert ours.regions == {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)}
    assert theirs.regions == {"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)}
    assert (ours.labels[1], theirs.labels[1]) == ("necrotic tumor core", "edema")
    assert ours.layouts[0].parts[0].count == 1251
    assert theirs.layouts[0].parts[0].count == 484


def test_the_heart_has_its_true_names():
    assert read_dataset("mm-whs").labels == {
        0: "background",
        205: "left ventricular myocardium",
        420: "left atrium",
        500: "left ventricle",
        550: "right atrium",
        600: "right ventricle",
        820: "ascending aorta",
        850: "pulmonary artery",
    }


def test_the_catalogue_has_a_line_for_each():
    lines = catalogue().splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert "484 cases" in lines[NAMES.index("msd-brain-tumour")]


def test_an_unknown_data_set_is_told_the_nearest():
    with pytest.raises(UsageError, match=r"'mmwhs'.*Did you mean 'mm-whs'\?.*brats-2021, btcv"):
        read_dataset("mmwhs")


def test_a_description_of_ones_own_is_a_path_and_its_mistakes_are_named(tmp_path):
    file = tmp_path / "mine.yaml"
    layouts = "layouts: [{name: n, parts: [{image: i}]}]"
    head = f"title: t\nurl: u\nlicence: l\nuse: segmentation\n{layouts}\n"
    file.write_text(head)
    assert read_dataset(str(file)).title == "t"
    file.write_text(f"{head}regions: {{TC: [9]}}\nlabels: {{0: background}}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*region TC is made of \[9\]"):
        read_dataset(str(file))
    file.write_text(f'{head}patient: "{{who}}"\n')
    with pytest.raises(ConfigError, match=r"patient uses \['who'\], which not all patterns give"):
        read_dataset(str(file))
    file.write_text(head.replace("image: i", 'image: "{n}.nii", label: "{m}.nii"'))
    with pytest.raises(ConfigError, match=r"'\{m\}.nii' uses m, which .*; it gives n, stem"):
        read_dataset(str(file))
    file.write_text(f"{head}lables: {{0: background}}\n")
    with pytest.raises(ConfigError, match="unknown key 'lables'; did you mean 'labels'"):
        read_dataset(str(file))


# --- folders that are not as described ------------------------------------------------------------


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def laid(name, root):
    return lay_out(read_dataset(name), name, root)


def test_another_layout_is_refused_with_what_was_expected_and_what_was_found(tmp_path):
    touch(tmp_path, "scans/heart1.nii.gz", "scans/heart2.nii.gz", "masks/heart1.nii.gz")
    with pytest.raises(DataError) as error:
        laid("mm-whs", tmp_path)
    said = str(error.value)
    assert "none of the layouts of mm-whs" in said
    assert "20 ct_train/{name}_image.nii.gz and ct_train/{name}_label.nii.gz" in said
    assert "Found: 3 image files, such as masks/heart1.nii.gz, scans/heart1.nii.gz" in said
    assert "name that folder" not in said


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="Found: no image file"):
        laid("lits", tmp_path)


def test_the_right_folder_inside_is_pointed_out(tmp_path):
    touch(tmp_path, "MM-WHS 2017/data/ct_train/ct_train_1001_image.nii.gz")
    with pytest.raises(DataError, match=r"It lies in .*MM-WHS 2017/data: name that folder"):
        laid("mm-whs", tmp_path)


def test_a_wrong_count_is_refused_with_both_numbers(tmp_path):
    dataset = read_dataset("btcv")
    root = touch(
        tmp_path, "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz"
    )
    with pytest.raises(DataError, match=r"img\{n:d\}.nii.gz: 30 expected, 1 found.*--partial"):
        check_counts(dataset, "btcv", root, laid("btcv", root))


def test_test_cases_may_be_left_out_but_not_some_of_them(tmp_path):
    root = whole(tmp_path, "btcv")
    check_counts(read_dataset("btcv"), "btcv", root, laid("btcv", root))
    touch(root, "RawData/Testing/img/img0061.nii.gz")
    found = laid("btcv", root)
    assert [s.split for s in found.sources if s.id == "img0061"] == ["test"]
    with pytest.raises(DataError, match="20 expected, 1 found"):
        check_counts(read_dataset("btcv"), "btcv", root, found)


def test_what_is_no_whole_case_is_refused_by_name_and_the_rest_is_taken(tmp_path):
    names = ["flair", "t1ce", "t1", "t2", "seg"]
    files = [f"BraTS2021_0000{n}/BraTS2021_0000{n}_{s}.nii.gz" for n in range(3) for s in names]
    files.remove("BraTS2021_00001/BraTS2021_00001_t1.nii.gz")
    files.remove("BraTS2021_00002/BraTS2021_00002_seg.nii.gz")
    found = laid("brats-2021", touch(tmp_path, *files))
    assert [source.id for source in found.sources] == ["BraTS2021_00000"]
    assert found.sources[0].channels == ("FLAIR", "T1ce", "T1", "T2")
    reasons = [item.reason for item in found.refused]
    assert any(reason.startswith("no channel T1: BraTS2021_00001/") for reason in reasons)
    assert any(reason.startswith("no label: BraTS2021_00002/") for reason in reasons)
    assert "a label without an image" in reasons  # of the case without a channel


def test_nifti_files_may_be_packed_or_not(tmp_path):
    touch(tmp_path, "Training Batch 1/volume-0.nii.gz", "Training Batch 1/segmentation-0.nii")
    assert [source.id for source in laid("lits", tmp_path).sources] == ["liver-0"]


def test_the_same_scans_in_the_decathlon_have_the_same_names(tmp_path):
    touch(
        tmp_path, "imagesTr/liver_7.nii.gz", "labelsTr/liver_7.nii.gz", "imagesTr/._liver_7.nii.gz"
    )
    found = laid("lits", tmp_path)
    assert [source.id for source in found.sources] == ["liver-7"]
    assert found.layout.name.startswith("as Task03_Liver")


def test_masks_of_lungs_are_no_scans(tmp_path):
    touch(tmp_path, "subset0/1.2.3.mhd", "subset0/1.2.3.raw", "seg-lungs-LUNA16/1.2.3.mhd")
    found = laid("luna16", tmp_path)
    assert [source.id for source in found.sources] == ["1.2.3"]
    assert found.unused == ["seg-lungs-LUNA16/1.2.3.mhd"]


def test_slices_are_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, *(f"CP/5/50/{n}.png" for n in (10, 2, 1)))
    (source,) = laid("cc-ccii", tmp_path).sources
    assert [file.name for file in source.slices] == ["1.png", "2.png", "10.png"]
    assert (source.id, source.group, source.target) == ("p5-s50", "5", "CP")


def test_a_class_that_is_not_known_is_refused(tmp_path):
    touch(tmp_path, "CP/5/50/1.png", "Flu/6/60/1.png")
    found = laid("cc-ccii", tmp_path)
    assert [item.reason for item in found.refused] == ["class 'Flu'; known are Normal, CP, NCP"]


# --- splits ---------------------------------------------------------------------------------------


def scans(tmp_path, *more):
    root = tmp_path / "set"
    for kind, patient, scan in (*THREE, *more):
        touch(root, f"{kind}/{patient}/{scan}/1.png")
    return laid("cc-ccii", root)


def fold(tmp_path, name, *rows):
    lines = [f"CP-1.zip,1,{kind},{patient},{scan}" for kind, patient, scan in rows]
    file = tmp_path / name
    file.write_text("\n".join(["zip_file,target,label,patient_id,scan_id", *lines]))
    return file


def split(found, *words, **options):
    return with_splits(read_dataset("cc-ccii"), "cc-ccii", found, words, **options)


def test_public_folds_are_taken_as_they_are(tmp_path):
    train, valid = fold(tmp_path, "t.csv", *THREE[:2]), fold(tmp_path, "v.csv", THREE[2])
    sources = split(scans(tmp_path), f"train={train}", f"validation={valid}")
    assert {s.id: s.split for s in sources} == {
        "p1-s10": "train",
        "p2-s20": "train",
        "p3-s30": "validation",
    }


def test_a_patient_in_two_splits_is_refused(tmp_path):
    found = scans(tmp_path, ("Normal", 1, 11))
    train = fold(tmp_path, "t.csv", *THREE)
    valid = fold(tmp_path, "v.csv", ("Normal", 1, 11))
    with pytest.raises(DataError, match="patient 1 is in two splits: case 'p1-s10' in 'train'"):
        split(found, f"train={train}", f"validation={valid}")


def test_a_case_in_two_splits_is_refused(tmp_path):
    train, valid = fold(tmp_path, "t.csv", *THREE), fold(tmp_path, "v.csv", THREE[0])
    with pytest.raises(DataError, match=r"'p1-s10' is of the split 'train' in .*t\.csv and 'valid"):
        split(scans(tmp_path), f"train={train}", f"validation={valid}")


def test_folds_that_are_no_partition_leave_cases_over_which_is_refused(tmp_path):
    train = fold(tmp_path, "t.csv", *THREE[:2])
    with pytest.raises(DataError, match=r"nothing about 1 cases that are there, such as p3-s30"):
        split(scans(tmp_path), f"train={train}")


def test_cases_that_are_not_there_are_named_unless_the_set_is_partial(tmp_path):
    train = fold(tmp_path, "t.csv", *THREE, ("CP", 9, 90))
    found = scans(tmp_path)
    with pytest.raises(DataError, match="names 1 cases that are not there, such as p9-s90"):
        split(found, f"train={train}")
    assert len(split(found, f"train={train}", partial=True)) == 3


def test_a_file_of_ones_own_can_leave_cases_out(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("case,split\np1-s10,train\np2-s20,val\np3-s30,unused\n")
    sources = split(scans(tmp_path), str(file))
    assert [(s.id, s.split) for s in sources] == [("p2-s20", "validation"), ("p1-s10", "train")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "name,split\na,train\n",
            "its columns are name, split; needed is 'case' or label, patient",
        ),
        ("case\np1-s10\n", "no column 'split'"),
        ("case,split\np1-s10,both\n", "line 2: split 'both'; allowed are train, validation"),
    ],
)
def test_a_malformed_file_of_splits_is_refused(tmp_path, text, reason):
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=reason):
        split(scans(tmp_path), str(file))


def test_a_word_that_is_no_split_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="'fold0' is no split"):
        split(scans(tmp_path), "fold0=x.csv")


def test_a_data_set_is_closed_to_unknown_keys():
    assert Dataset.model_config["extra"] == "forbid"


def gliomas(tmp_path, *folds):
    """A part of BraTS 2021, and a list of its folds as it is public."""
    root, entries = tmp_path / "set", []
    for number, fold in enumerate(folds):
        case = f"BraTS2021_{number:05d}"
        files = [f"{case}/{case}_{name}.nii.gz" for name in ("flair", "t1ce", "t1", "t2", "seg")]
        for file in files:
            touch(root, file)
        images = [f"TrainingData/{file}" for file in files[:4]]
        entries.append({"fold": fold, "image": images, "label": f"TrainingData/{files[4]}"})
    listed = tmp_path / "folds.json"
    listed.write_text(json.dumps({"training": entries}))
    return listed, laid("brats-2021", root)


def held_out(found, word):
    sources = with_splits(read_dataset("brats-2021"), "brats-2021", found, [word])
    return [int(source.id.split("_")[1]) for source in sources if source.split == "validation"]


@pytest.mark.parametrize(("fold", "cases"), [(0, [0, 3]), (1, [1]), (4, [])])
def test_a_fold_of_a_json_list_is_held_out(fold, cases, tmp_path):
    listed, found = gliomas(tmp_path, 0, 1, 2, 0)
    assert held_out(found, f"{fold}={listed}") == cases


def test_a_json_list_of_folds_does_not_choose_one(tmp_path):
    listed, found = gliomas(tmp_path, 0, 1)
    with pytest.raises(DataError, match=r"training\[0\]: is of fold 0.*--split_files 0=FILE"):
        held_out(found, str(listed))


def test_a_json_list_without_folds_has_its_splits_by_name(tmp_path):
    listed, found = gliomas(tmp_path, 0, 1)
    first, second = json.loads(listed.read_text())["training"]
    del first["fold"], second["fold"]
    listed.write_text(json.dumps({"training": [first], "validation": [second]}))
    assert held_out(found, str(listed)) == [1]
    with pytest.raises(DataError, match=r"training\[0\]: has no 'fold', so fold 0"):
        held_out(found, f"0={listed}")


def test_a_json_list_that_names_other_cases_is_refused(tmp_path):
    listed, found = gliomas(tmp_path, 0, 1)
    listed.write_text(listed.read_text().replace("BraTS2021_00001", "BraTS2021_00777"))
    with pytest.raises(DataError, match="1 cases that are not there, such as BraTS2021_00777"):
        held_out(found, f"0={listed}")


def test_a_json_list_cannot_name_cases_whose_images_share_their_names(tmp_path):
    found = scans(tmp_path)
    alike = [replace(each, images=(Path(each.id, "0.nii.gz"),)) for each in found.sources]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": ["p1-s10/0.nii.gz"]}))
    with pytest.raises(DataError, match=r"both have an image 0\.nii\.gz. Use a CSV"):
        split(replace(found, sources=alike), str(listed))
