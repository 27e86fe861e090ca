"""Tiny data sets on disk, laid out exactly as their owners distribute them."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from voco.data.datasets import read_dataset
from voco.data.imageio import write_image
from voco.geometry import Grid
from voco.volume import Volume

SHAPE = (20, 20, 20)

CASES = {
    "btcv": ("0033", "0034", "0035", "0036"),
    "mm-whs": ("1003", "1004", "1005", "1006"),
    "lits": ("102", "104", "100", "101"),
    "msd-spleen": ("12", "16", "10", "13"),
    "brats-2021": ("00000", "00002", "00003", "00005"),
    "msd-brain-tumour": ("001", "002", "010", "011"),
    "msd-hippocampus": ("001", "003", "004", "006"),
}
"""Two cases to learn from and two to look at, where the split comes along."""

FILES = {
    "btcv": ("RawData/Training/img/img{}.nii.gz", "RawData/Training/label/label{}.nii.gz"),
    "mm-whs": ("ct_train/ct_train_{}_image.nii.gz", "ct_train/ct_train_{}_label.nii.gz"),
    "lits": ("Training Batch 2/volume-{}.nii", "Training Batch 2/segmentation-{}.nii"),
    "msd-spleen": ("imagesTr/spleen_{}.nii.gz", "labelsTr/spleen_{}.nii.gz"),
    "brats-2021": (
        "BraTS2021_{0}/BraTS2021_{0}_#.nii.gz",
        "BraTS2021_{0}/BraTS2021_{0}_seg.nii.gz",
    ),
    "msd-brain-tumour": ("imagesTr/BRATS_{}.nii.gz", "labelsTr/BRATS_{}.nii.gz"),
    "msd-hippocampus": ("imagesTr/hippocampus_{}.nii.gz", "labelsTr/hippocampus_{}.nii.gz"),
}
"""Image and label of a case; ``#`` is one of the four sequences."""

SEQUENCES = ("flair", "t1ce", "t1", "t2")


def write(root: Path, name: str, cases: tuple[str, ...] | None = None) -> Path:
    """A data set with some of its cases."""
    if name == "cc-ccii":
        return write_pictures(root)
    if name == "luna16":
        return write_luna(root)
    if name == "tcia-covid-19":
        for file in ("0001", "0001_1", "0702_day008"):
            save(root / f"volume-covid19-A-{file}.nii.gz", ct(int(file[:4])))
        return root
    for number, case in enumerate(cases or CASES[name]):
        image, label = (pattern.format(case) for pattern in FILES[name])
        values = sorted(read_dataset(name).labels)
        save(root / label, structures(values)[None])
        if name == "brats-2021":
            for place, sequence in enumerate(SEQUENCES):
                save(root / image.replace("#", sequence), mr(number + place, values))
        elif name == "msd-brain-tumour":
            save(root / image, np.concatenate([mr(number + n, values) for n in range(4)]))
        else:
            is_mr = name == "msd-hippocampus"
            save(root / image, mr(number, values) if is_mr else ct(number, values))
    return root


def write_pictures(root: Path) -> Path:
    """Six patients of three classes; the first has two scans."""
    rng = np.random.default_rng(0)
    scans = [("Normal", 7, 70), ("Normal", 7, 71), ("Normal", 8, 80), ("CP", 9, 90)]
    scans += [("CP", 10, 100), ("NCP", 11, 110), ("NCP", 12, 120)]
    for place, (kind, patient, scan) in enumerate(scans):
        folder = root / kind / str(patient) / str(scan)
        folder.mkdir(parents=True)
        for number in range(11):
            pixels = rng.integers(0, 200, (16, 20)).astype(np.uint8)
            pixels[0, 0] = number
            ending = "jpg" if place == 1 else "png"
            sitk.WriteImage(sitk.GetImageFromArray(pixels), str(folder / f"{number}.{ending}"))
    return root


def write_luna(root: Path) -> Path:
    for subset in (0, 9):
        folder = root / f"subset{subset}"
        folder.mkdir(parents=True)
        image = sitk.GetImageFromArray(ct(subset)[0])
        image.SetSpacing((1.5, 1.5, 1.5))
        for place in (folder, root / "seg-lungs-LUNA16"):
            place.mkdir(exist_ok=True)
            sitk.WriteImage(image, str(place / f"1.3.6.1.4.1.14519.{subset}.mhd"))
    return root


def structures(values: list[int]) -> np.ndarray:
    """A label map of slabs, one for each value."""
    label = np.zeros(SHAPE, np.int16)
    side = 12
    order = np.arange(side**3) * len(values) // side**3
    label[4:16, 4:16, 4:16] = np.asarray(values)[order].reshape(side, side, side)
    return label


def ct(seed: int, values: list[int] | None = None) -> np.ndarray:
    """Air round a body of soft tissue; each structure a little brighter than the one before."""
    image = np.full(SHAPE, -1000, np.int16)
    noise = np.random.default_rng(seed).integers(-60, 60, (16, 16, 16))
    image[2:18, 2:18, 2:18] = noise
    if values:
        image[2:18, 2:18, 2:18] += np.searchsorted(
            values, structures(values)[2:18, 2:18, 2:18]
        ).astype(np.int16)
    return image[None]


def mr(seed: int, values: list[int]) -> np.ndarray:
    """Zero round a head."""
    image = np.zeros(SHAPE, np.int16)
    image[2:18, 2:18, 2:18] = np.random.default_rng(seed).integers(50, 400, (16, 16, 16))
    return (image + 40 * np.searchsorted(values, structures(values)).astype(np.int16))[None]


def save(file: Path, array: np.ndarray, side_mm: float = 1.5) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-side_mm, -side_mm, side_mm, 1.0])
    shape = (array.shape[1], array.shape[2], array.shape[3])
    write_image(Volume(array, Grid(shape, affine)), file)
