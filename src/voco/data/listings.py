"""Cases that something states: a ``dataset.json`` or a list.

**dataset.json** of the Medical Segmentation Decathlon (and of MONAI's lists): ``training``,
``validation`` and ``test`` hold entries with ``image`` (a path, or a list of paths: channels) and
``label`` (a path, or a number: the target), relative to the file; ``labels`` names the classes,
``modality`` the channels. A file with a fourth axis as long as ``modality`` is read as channels.

**dataset.json** of nnU-Net (version 2, known by ``channel_names``): ``imagesTr/ID_0000.nii.gz``,
``ID_0001...`` are the channels of case ``ID``, ``labelsTr/ID.nii.gz`` its label; ``imagesTs`` is
the split ``test``.

**Lists**: a ``.csv`` or ``.tsv`` with a header that has ``image`` and may have ``id``, ``label``,
``split`` (train, validation or test), ``group``, ``target`` and ``modality``; other columns are
not used. Without a header the first column is the image, a second one its label. A ``.txt`` with
one image per line (a word that begins with ``#`` starts a comment; a first line ``image`` is passed
over). Paths are relative to the list; several channels are separated by ``;``.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from voco.data.imageio import suffix_of
from voco.data.source import Found, Refused, Source
from voco.errors import DataError

SPLITS = {
    "": None,
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Words for a split in a list."""

MODALITIES = {
    "CT": "CT",
    "MR": "MR",
    "MRI": "MR",
    "T1": "MR",
    "T1W": "MR",
    "T1GD": "MR",
    "T2": "MR",
    "T2W": "MR",
    "FLAIR": "MR",
    "ADC": "MR",
    "PET": "PT",
    "PT": "PT",
}
"""Names of channels that tell the modality, in capitals."""

COLUMNS = ("image", "id", "label", "split", "group", "target", "modality")
"""Columns of a list."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a ``dataset.json`` of a kind that is read."""
    file = folder / "dataset.json"
    if not file.is_file():
        return False
    try:
        return _kind(read_json(file)) is not None
    except DataError:
        return False


def find_dataset(file: Path) -> Found:
    """The cases of a ``dataset.json``.

    Raises:
        DataError: If it is no JSON, or of no known kind.
    """
    head = read_json(file)
    kind = _kind(head)
    if kind is None:
        raise DataError(
            f"{file}: neither 'training' (Medical Segmentation Decathlon) nor 'channel_names' "
            "(nnU-Net) is in it."
        )
    return kind(file, head)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: If it cannot be read, or holds something else.
    """
    try:
        head = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}).") from None
    if not isinstance(head, dict):
        raise DataError(f"{file}: holds {type(head).__name__}; expected an object with keys.")
    return head


def find_list(file: Path) -> Found:
    """The cases of a text or CSV list.

    Raises:
        DataError: If the list is not as described, naming the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}).") from None
    if file.suffix.lower() == ".txt":
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
        named = [(number, {"image": line}) for number, line in enumerate(lines, 1) if line]
        rows = named[1:] if named and named[0][1]["image"] == "image" else named
    else:
        rows = list(_rows(file, text))
    if not rows:
        raise DataError(f"{file}: an empty list; expected one image per line.")
    sources, refused = [], []
    for number, row in rows:
        place = f"{file}, line {number}"
        try:
            sources.append(_from_row(row, file.parent, place))
        except FileNotFoundError as error:
            refused.append(Refused(Path(error.filename), f"no such file ({place})"))
    return sources, refused


def stem(path: Path) -> str:
    """The name of a file without its ending (``.nii.gz`` is one ending)."""
    return path.name[: len(path.name) - len(suffix_of(path) or path.suffix)]


def _kind(head: Mapping[str, Any]) -> Callable[[Path, dict[str, Any]], Found] | None:
    if any(isinstance(head.get(key), list) for key in ("training", "validation", "test")):
        return _decathlon
    return _nnunet if "channel_names" in head else None


def _decathlon(file: Path, head: dict[str, Any]) -> Found:
    channels = _names(head.get("modality") or head.get("channel_names"))
    classes = _classes(head.get("labels"))
    sources, refused = [], []
    for key in ("training", "validation", "test"):
        for number, entry in enumerate(head.get(key) or []):
            place = f"{file}, {key}[{number}]"
            row = {"image": entry} if isinstance(entry, (str, list)) else entry
            if not isinstance(row, dict) or "image" not in row:
                raise DataError(f"{place}: expected a path or an object with 'image'.")
            try:
                sources.append(_from_entry(row, file.parent, SPLITS[key], channels, classes))
            except FileNotFoundError as error:
                refused.append(Refused(Path(error.filename), f"no such file ({place})"))
    return sources, refused


def _from_entry(
    entry: Mapping[str, Any],
    folder: Path,
    split: str | None,
    channels: tuple[str, ...],
    classes: dict[int, str],
) -> Source:
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    label, target = entry.get("label"), entry.get("target")
    if isinstance(label, (int, float)):
        label, target = None, int(label)
    files = _parts(folder, images[0]) if len(images) == 1 else None
    found = files or tuple(_existing(folder, image) for image in images)
    return Source(
        id=stem(Path(images[0])),
        images=found,
        label=_existing(folder, label) if label else None,
        split=split,
        group=entry.get("group"),
        classes=classes if label else {},
        modality=_modality(channels),
        target=target,
        channels=channels,
    )


def _parts(folder: Path, image: str) -> tuple[Path, ...] | None:
    """The channels of an image of nnU-Net's version 1, whose files have a number in addition."""
    path = folder / image
    if path.exists():
        return None
    parts = tuple(sorted(path.parent.glob(f"{stem(path)}_[0-9][0-9][0-9][0-9]{suffix_of(path)}")))
    return parts or None


def _nnunet(file: Path, head: dict[str, Any]) -> Found:
    channels, classes = _names(head["channel_names"]), _classes(head.get("labels"))
    ending = str(head.get("file_ending") or ".nii.gz")
    sources, refused = [], []
    for tail, split in (("Tr", "train"), ("Ts", "test")):
        cases: dict[str, dict[str, Path]] = {}
        for image in sorted((file.parent / f"images{tail}").glob(f"*{ending}")):
            if match := re.fullmatch(r"(.+)_(\d{4})", image.name.removesuffix(ending)):
                cases.setdefault(match[1], {})[match[2]] = image
            else:
                refused.append(Refused(image, f"its name does not end in _0000{ending}"))
        for case, parts in cases.items():
            if len(parts) != len(channels):
                reason = f"{len(parts)} channels, dataset.json names {len(channels)}: {channels}"
                refused.append(Refused(next(iter(parts.values())), reason))
                continue
            label = file.parent / f"labels{tail}" / f"{case}{ending}"
            has_label = label.exists()
            sources.append(
                Source(
                    case,
                    tuple(parts[key] for key in sorted(parts)),
                    label if has_label else None,
                    split,
                    classes=classes if has_label else {},
                    modality=_modality(channels),
                    channels=channels,
                )
            )
        labels = sorted((file.parent / f"labels{tail}").glob(f"*{ending}"))
        alone = [path for path in labels if path.name.removesuffix(ending) not in cases]
        refused += [Refused(path, "a label without an image") for path in alone]
    return sources, refused


def _rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a table with their numbers, and their cells by column."""
    reader = csv.reader(text.splitlines(), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    names: list[str] = []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not names:
            names, is_header = _header(cells, file)
            if is_header:
                continue
        if len(cells) > len(names):
            raise DataError(
                f"{file}, line {reader.line_num}: {len(cells)} cells, but {len(names)} columns "
                f"({', '.join(names)}). A path with a separator in it must stand in quotes."
            )
        known = {key: cell for key, cell in zip(names, cells, strict=False) if key in COLUMNS}
        if not known.get("image"):
            raise DataError(f"{file}, line {reader.line_num}: no image.")
        yield reader.line_num, known


def _header(cells: list[str], file: Path) -> tuple[list[str], bool]:
    """Names of the columns, and whether the first line gives them: else it is a scan."""
    if "image" in cells:
        return cells, True
    first = Path(file.parent, cells[0].partition(";")[0].strip())
    if len(cells) <= 2 and (first.exists() or suffix_of(first)):
        return ["image", "label"][: len(cells)], False
    raise DataError(
        f"{file}: no column 'image' in its first line ({', '.join(cells)}); the columns that are "
        f"used are {', '.join(COLUMNS)}. Without a header, a line is an image, or an image and its "
        "label."
    )


def _from_row(row: Mapping[str, str], folder: Path, place: str) -> Source:
    split = row.get("split", "").lower()
    if split not in SPLITS:
        raise DataError(f"{place}: split {split!r}; allowed are train, validation and test.")
    images = tuple(_existing(folder, part.strip()) for part in row["image"].split(";"))
    target = row.get("target") or None
    return Source(
        id=row.get("id") or stem(images[0]),
        images=images,
        label=_existing(folder, row["label"]) if row.get("label") else None,
        split=SPLITS[split],
        group=row.get("group") or None,
        modality=_modality((row.get("modality", ""),)) or row.get("modality") or None,
        target=int(target) if target and re.fullmatch(r"-?\d+", target) else target,
    )


def _existing(folder: Path, name: str) -> Path:
    path = Path(folder, name)
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    return path


def _names(channels: Any) -> tuple[str, ...]:  # noqa: ANN401  # as JSON has it
    if isinstance(channels, str):
        return (channels,)
    if isinstance(channels, dict):
        return tuple(str(channels[key]) for key in sorted(channels, key=int))
    return tuple(map(str, channels or ()))


def _classes(labels: Any) -> dict[int, str]:  # noqa: ANN401  # as JSON has it
    """Class numbers and names from either direction; nnU-Net's regions are no classes."""
    classes: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if str(key).isdigit():
            classes[int(key)] = str(value)
        elif isinstance(value, int) or str(value).isdigit():
            classes[int(value)] = str(key)
    return dict(sorted(classes.items()))


def _modality(channels: Iterable[str]) -> str | None:
    """The modality that all channels tell, if they do."""
    found = {MODALITIES.get(name.strip().upper()) for name in channels}
    return found.pop() if len(found) == 1 else None
