"""Files of splits: which cases are learnt from, and which only looked at.

A file is a CSV that names cases, by a column ``case`` or by the columns that the description of
the data set knows. The split is in a column ``split``, or is that of the whole file, said by
whoever names it (``train=FILE``).

Or it is a JSON list as MONAI's programs read it, whose entries below ``training``, ``validation``
and ``test`` name images. Where entries have a ``fold``, whoever names the file says which one is
held out (``0=FILE``).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from voco.data.datasets import Dataset
from voco.data.layouts import Laid
from voco.data.listings import SPLITS, read_json, stem
from voco.data.source import Source
from voco.errors import DataError, UsageError
from voco.shipped import shipped_or_own

_SHOWN = 3

UNUSED = "unused"
"""Word for a case that is to be left out."""


def with_splits(
    dataset: Dataset, name: str, laid: Laid, files: Sequence[str] = (), *, partial: bool = False
) -> list[Source]:
    """The cases with their splits.

    Args:
        dataset: The description.
        name: What the user called it.
        laid: Its cases.
        files: ``FILE``, ``SPLIT=FILE``, or ``FOLD=FILE`` of a JSON list with folds, of which this
            one is for validation; the file that comes along for none.
        partial: Whether cases that the files name may be missing.

    Raises:
        DataError: If a case is in two splits or (of those that are in none by themselves) in
            none, the files name cases that are not there, or a patient is in two splits.
        UsageError: If a word for a file is not as described.
    """
    if not files and dataset.split is None:
        return _disjoint(laid.sources)
    if files:
        named = [_named(word) for word in files]
    else:
        named = [(None, shipped_or_own("data set", name).parent / "splits" / str(dataset.split))]
    found: dict[str, tuple[str, Path]] = {}
    for split, file in named:
        for case, said in _read(file, split, dataset, laid).items():
            if case in found and found[case][0] != said:
                raise DataError(
                    f"case '{case}' is of the split '{found[case][0]}' in {found[case][1]} and "
                    f"'{said}' in {file}."
                )
            found[case] = (said, file)
    free = [source for source in laid.sources if source.split is None]
    where = ", ".join(str(file) for _, file in named)
    _check_named(found, {source.id for source in free}, where, partial=partial)
    chosen = {case: split for case, (split, _) in found.items()}
    kept = [source for source in laid.sources if chosen.get(source.id) != UNUSED]
    return _disjoint([replace(source, split=source.split or chosen[source.id]) for source in kept])


def _named(word: str) -> tuple[str | None, Path]:
    split, equals, file = word.partition("=")
    if not equals:
        return None, Path(word)
    if _is_list(Path(file)) and split.isdecimal():
        return split, Path(file)
    if not SPLITS.get(split):
        raise UsageError(
            f"--split_files {word}: '{split}' is no split; allowed are train, validation and test, "
            "and for a JSON list the number of a fold."
        )
    return SPLITS[split], Path(file)


def _is_list(file: Path) -> bool:
    return file.suffix.lower() == ".json"


def _read(file: Path, split: str | None, dataset: Dataset, laid: Laid) -> dict[str, str]:
    """Cases and their splits in one file."""
    if not file.is_file():
        raise DataError(f"{file}: no such file.")
    if _is_list(file):
        return _read_list(file, split, laid)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), list(reader.fieldnames or [])
    by_fields = dataset.split_columns and set(dataset.split_columns.values()) <= set(columns)
    if "case" not in columns and not by_fields:
        ways = " or ".join(filter(None, ["'case'", ", ".join(dataset.split_columns.values())]))
        raise DataError(f"{file}: its columns are {', '.join(columns)}; needed is {ways}.")
    if split is None and "split" not in columns:
        raise DataError(
            f"{file}: no column 'split'. Add one, or say which split the file is: train={file}."
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        case = row["case"] if "case" in columns else _case_of(row, dataset, laid)
        said = split or _split_of(row["split"], f"{file}, line {number}")
        if found.setdefault(case, said) != said:
            raise DataError(f"{file}, line {number}: case '{case}' is in two splits.")
    return found


def _read_list(file: Path, said: str | None, laid: Laid) -> dict[str, str]:
    """Cases and their splits in a JSON list; images are known by their names.

    Args:
        file: The list.
        said: A fold, as digits, or a split, or nothing.
        laid: The cases of the data set.

    Raises:
        DataError: If cases share names of images, so that the list cannot tell them apart, an entry
            names no image, or its split cannot be told.
    """
    head = read_json(file)
    cases: dict[str, str] = {}
    for source in laid.sources:
        for image in source.images:
            if cases.setdefault(image.name, source.id) != source.id:
                raise DataError(
                    f"{file}: cannot say which case is meant, since '{cases[image.name]}' and "
                    f"'{source.id}' both have an image {image.name}. Use a CSV with the columns "
                    "case and split."
                )
    found: dict[str, str] = {}
    for key in ("training", "validation", "test"):
        for number, entry in enumerate(head.get(key) or []):
            place = f"{file}, {key}[{number}]"
            image = entry.get("image") if isinstance(entry, dict) else entry
            first = image[0] if isinstance(image, list) and image else image
            if not isinstance(first, str):
                raise DataError(f"{place}: expected a path or an object with 'image'.")
            name = PurePosixPath(first)
            case = cases.get(name.name, stem(Path(name)))
            fold = entry.get("fold") if isinstance(entry, dict) else None
            split = _split_in_list(said, str(SPLITS[key]), fold, place)
            if found.setdefault(case, split) != split:
                raise DataError(f"{place}: case '{case}' is in two splits.")
    if not found:
        raise DataError(f"{file}: no entries below 'training', 'validation' or 'test'.")
    return found


def _split_in_list(said: str | None, listed: str, fold: Any, place: str) -> str:  # noqa: ANN401
    if said is not None and not said.isdecimal():
        return said
    if listed != "train" or (said is None and fold is None):
        return listed
    if said is None:
        raise DataError(
            f"{place}: is of fold {fold}. Say which fold is held out for validation: "
            "--split_files 0=FILE."
        )
    if fold is None:
        raise DataError(f"{place}: has no 'fold', so fold {said} cannot be held out.")
    return "validation" if str(fold) == said else "train"


def _case_of(row: Mapping[str, str], dataset: Dataset, laid: Laid) -> str:
    fields = {name: row[column] for name, column in dataset.split_columns.items()}
    return laid.layout.parts[0].case.format_map(fields)


def _split_of(word: str, place: str) -> str:
    if word == UNUSED:
        return UNUSED
    split = SPLITS.get(word.strip().lower())
    if split is None:
        raise DataError(
            f"{place}: split '{word}'; allowed are train, validation, test and {UNUSED}."
        )
    return split


def _check_named(
    found: Mapping[str, object], cases: set[str], where: str, *, partial: bool
) -> None:
    missing = [case for case in found if case not in cases]
    if missing and not partial:
        raise DataError(
            f"{where}: names {len(missing)} cases that are not there, such as "
            f"{', '.join(missing[:_SHOWN])}."
        )
    left = sorted(cases - found.keys())
    if left:
        raise DataError(
            f"{where}: says nothing about {len(left)} cases that are there, such as "
            f"{', '.join(left[:_SHOWN])}. Give each a split ('{UNUSED}' leaves it out)."
        )


def _disjoint(sources: list[Source]) -> list[Source]:
    """The same cases, if no patient is in two splits.

    Raises:
        DataError: Naming a patient who is.
    """
    splits: dict[str, Source] = {}
    for source in sources:
        if source.group is None:
            continue
        first = splits.setdefault(source.group, source)
        if first.split != source.split:
            raise DataError(
                f"patient {source.group} is in two splits: case '{first.id}' in "
                f"'{first.split}', case '{source.id}' in '{source.split}'. What is learnt would "
                "be tested on itself; put a patient into one split."
            )
    return sources
