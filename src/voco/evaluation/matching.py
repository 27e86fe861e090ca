"""Which prediction belongs to which reference, and what the class numbers are called.

Files are matched by their names without the ending: ``masks/case_7.nii.gz`` is measured against
``labelsTr/case_7.nrrd``. Where no reference has a prediction's name, ``_0000`` (the channel in
nnU-Net's image names) or an ending that labels carry (``_label``, ``_seg``, ``_mask``, ``_gt``,
``_pred``) is taken off on either side. Nothing is matched by guessing beyond that.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voco.data.imageio import READERS, suffix_of
from voco.data.listings import read_json, stem
from voco.errors import DataError, UsageError
from voco.evaluation.tables import read_rows
from voco.geometry import Grid

Masks = dict[str, Path]
"""Case names and their files."""

_ENDING = re.compile(r"[_-](0000|labels?|seg(mentation)?|masks?|gt|pred(iction)?)$", re.IGNORECASE)

_NAMELESS = re.compile(r"(class|label)?[ _-]?\d+", re.IGNORECASE)


def find_masks(folder: Path) -> Masks:
    """The masks in a folder by case name; of a Decathlon folder those in ``labelsTr``.

    Instead of a folder, a CSV with the columns ``case`` and ``label`` says which they are.

    Raises:
        UsageError: If the folder is missing, holds no mask, or two of one name.
        DataError: If the CSV is not as described.
    """
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return _listed(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder.")
    if (folder / "labelsTr").is_dir():
        folder = folder / "labelsTr"
    found: Masks = {}
    for file in sorted(folder.iterdir()):
        if suffix_of(file) not in READERS or file.name.startswith(".") or file.suffix == ".img":
            continue
        name = stem(file)
        if name in found:
            raise UsageError(f"{folder}: {found[name].name} and {file.name} are both case {name}.")
        found[name] = file
    if not found:
        raise UsageError(f"{folder}: holds no mask. Files that are read: {', '.join(READERS)}.")
    return found


def matched(names: Mapping[str, Path], references: Mapping[str, Path]) -> Masks:
    """The files of the references' cases; those without a file are left out.

    Args:
        names: Files by their own names: predictions, or images.
        references: Files by case name.

    Raises:
        UsageError: If two files fit one case.
    """
    found: Masks = {case: names[case] for case in references if case in names}
    bare = {_bare(case): case for case in references}
    for name, file in names.items():
        case = bare.get(_bare(name))
        if name in references or case is None:
            continue
        if case in found and found[case] != file:
            raise UsageError(f"{file} and {found[case]} both fit the reference {references[case]}.")
        found[case] = file
    return found


def class_names(predictions: Path, references: Path) -> dict[int, str]:
    """Names of the class numbers, without background; empty if nothing tells them.

    Told by ``labels.json`` beside the predictions (``{"1": "liver"}``) and by ``dataset.json``
    beside the references or in the folder above.

    Raises:
        DataError: If both tell names and give one number to different structures.
    """
    ours = _names_in(predictions / "labels.json")
    theirs = _names_in(references / "dataset.json") or _names_in(references.parent / "dataset.json")
    for number in ours.keys() & theirs.keys():
        if _differ(ours[number], theirs[number]):
            raise DataError(
                f"class {number} is '{ours[number]}' in the predictions ({predictions}) and "
                f"'{theirs[number]}' in the references ({references}): these are labels of "
                "different structures. Remap one of them."
            )
    return {**ours, **{n: name for n, name in theirs.items() if not _NAMELESS.fullmatch(name)}}


def same_place(first: Grid, second: Grid) -> bool:
    """Whether two grids have the same voxels in the same places, up to 5 % of a voxel."""
    if first.shape != second.shape:
        return False
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.asarray(first.shape) - 1
    apart = np.abs(corners @ (first.affine - second.affine).T).max()
    return bool(apart <= 0.05 * min(first.spacing_mm))


def described(grid: Grid) -> str:
    """A grid in one line."""
    size = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{side:.4g}" for side in grid.spacing_mm)
    origin = ", ".join(f"{place:.1f}" for place in grid.affine[:3, 3])
    return f"{size} voxels of {spacing} mm, {grid.orientation}, origin ({origin})"


def regions_in(predictions: Path) -> dict[str, tuple[int, ...]]:
    """The unions of labels that ``labels.json`` beside predictions says to measure.

    Raises:
        DataError: If they are not names and lists of numbers.
    """
    file = predictions / "labels.json"
    found: Any = read_json(file).get("regions", {}) if file.is_file() else {}
    try:
        return {str(name): tuple(int(v) for v in values) for name, values in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{file}: regions {found!r}; expected names and label values.") from None


def _listed(file: Path) -> Masks:
    """Masks that a CSV names, by case; paths are relative to it."""
    found: Masks = {}
    for row in read_rows(file, required=("case", "label")):
        if row["case"] in found:
            raise DataError(f"{file}: more than one row for {row['case']}.")
        found[row["case"]] = file.parent / row["label"]
    if not found:
        raise DataError(f"{file}: names no case.")
    return found


def _bare(name: str) -> str:
    return _ENDING.sub("", name)


def _names_in(file: Path) -> dict[int, str]:
    """Class numbers and names of a JSON file, whichever of the two is the key."""
    if not file.is_file():
        return {}
    values: Any = read_json(file)
    for key in ("labels", "classes"):
        values = values.get(key, values) if isinstance(values, dict) else values
    names: dict[int, str] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        if str(key).isdigit():
            names[int(key)] = str(value)
        elif str(value).isdigit():
            names[int(value)] = str(key)
    return {number: name for number, name in sorted(names.items()) if number > 0}


def _differ(first: str, second: str) -> bool:
    if _NAMELESS.fullmatch(first) or _NAMELESS.fullmatch(second):
        return False
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in (first, second)]
    return plain[0] != plain[1]
