"""Cases of a BIDS data set (Brain Imaging Data Structure, also its proposal for CT).

**Images** are those in ``sub-*/[ses-*/]anat``, ``ct`` and ``pet`` whose name is of BIDS:
``sub-01[_key-value...]_suffix``. The folder tells the modality (MR, CT, PT), the suffix is the name
of the channel; the id is the file's name, which holds all entities, and the subject is the group.

**Labels** are ``*_dseg`` files, beside the images or in ``derivatives/PIPELINE/`` in the same
folders. A label belongs to the image of the same subject and session in which every other entity
that it states is the same; of several, to the one without further entities. Entities that describe
labels only (``desc``, ``label``, ``seg``, ...) do not count. ``space-T1w`` means the image with
the suffix T1w; ``orig``, ``individual`` and ``scanner`` the image's own space; a label in any other
space is passed over. Names of classes come from ``dseg.tsv`` files by the inheritance of BIDS.

**Split**: a column ``split`` of ``participants.tsv``, if there is one.

Masks, images of other kinds and files that are no images are passed over, and told.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco.data.imageio import READERS, suffix_of
from voco.data.listings import SPLITS, stem
from voco.data.source import Found, Refused, Source
from voco.errors import DataError

DATATYPES = {"anat": "MR", "ct": "CT", "pet": "PT"}
"""Folders whose images are taken, and the modality that each tells."""

_LABEL = "dseg"
_MASKS = {"mask", "probseg", "defacemask", "roi", "lesion"}
"""Suffixes of files that are neither images nor label maps."""

_OF_LABELS = {"desc", "label", "seg", "atlas", "res", "den", "hemi", "space"}
"""Entities that an image need not have for a label to be its."""

_OWN_SPACE = {"orig", "individual", "scanner"}


@dataclass(frozen=True)
class _File:
    """An image file and what its name says."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    datatype: str


def is_bids(folder: Path) -> bool:
    """Whether a folder is the root of a BIDS data set."""
    return (folder / "dataset_description.json").is_file() and any(folder.glob("sub-*"))


def find_bids(folder: Path) -> Found:
    """The cases of a BIDS data set, and what of it is no case.

    Raises:
        DataError: If ``participants.tsv`` or a ``dseg.tsv`` is not as it must be; with the line.
    """
    files, refused = _files(folder)
    images = [file for file in files if file.suffix not in {_LABEL, *_MASKS}]
    refused += [
        Refused(file.path, f"a {file.suffix}, not an image", passed_over=True)
        for file in files
        if file.suffix in _MASKS
    ]
    labels = [(folder, file) for file in files if file.suffix == _LABEL]
    for pipeline in _pipelines(folder):
        found = [file for file in _files(pipeline)[0] if file.suffix == _LABEL]
        labels += [(pipeline, file) for file in found]
        if not found:
            reason = f"derivatives are read for their labels (*_{_LABEL}) only"
            refused.append(Refused(pipeline, reason, passed_over=True))
    matches, more = _match(images, labels)
    splits = _splits(folder / "participants.tsv")
    sources = [_source(image, matches.get(image.path), splits) for image in images]
    return sources, [*refused, *more, *_others(folder)]


def _files(root: Path) -> tuple[list[_File], list[Refused]]:
    """Images in the folders that are read, and what of other images is to be said."""
    files: list[_File] = []
    refused: list[Refused] = []
    for place in _places(root):
        images = [file for file in sorted(place.iterdir()) if suffix_of(file) in READERS]
        if place.name not in DATATYPES:
            reason = f"BIDS '{place.name}' images are not taken, only {', '.join(DATATYPES)}"
            refused += [Refused(place, reason, passed_over=True)] if images else []
            continue
        for image in images:
            parsed = _parsed(image)
            if parsed is None:
                reason = "its name is not of BIDS: sub-LABEL[_key-value...]_suffix"
                refused.append(Refused(image, reason))
            else:
                files.append(parsed)
    return files, refused


def _places(root: Path) -> Iterator[Path]:
    """Folders of one kind of image each, in order."""
    for subject in sorted(root.glob("sub-*")):
        for place in sorted({*subject.glob("*/"), *subject.glob("ses-*/*/")}):
            if place.is_dir() and not place.name.startswith(("ses-", ".")):
                yield place


def _pipelines(root: Path) -> Iterator[Path]:
    """Folders below ``derivatives`` that hold subjects."""
    for place in (root / "derivatives", *sorted((root / "derivatives").glob("*/"))):
        if not place.name.startswith("sub-") and any(place.glob("sub-*/")):
            yield place


def _parsed(file: Path) -> _File | None:
    *parts, suffix = stem(file).split("_")
    pairs = [part.partition("-") for part in parts]
    sound = all(key and dash and value for key, dash, value in pairs)
    if not sound or not pairs or pairs[0][0] != "sub" or "-" in suffix or not suffix:
        return None
    return _File(file, {key: value for key, _, value in pairs}, suffix, file.parent.name)


def _match(
    images: Sequence[_File], labels: Sequence[tuple[Path, _File]]
) -> tuple[dict[Path, tuple[Path, dict[int, str]]], list[Refused]]:
    """Labels by the image that each belongs to, with the names of their classes."""
    fitting: dict[Path, list[tuple[Path, _File]]] = defaultdict(list)
    refused: list[Refused] = []
    for pipeline, label in labels:
        space = label.entities.get("space")
        suffixes = {image.suffix for image in images}
        if space and space not in _OWN_SPACE | suffixes:
            reason = f"a label in the space '{space}', not in that of its image"
            refused.append(Refused(label.path, reason, passed_over=True))
            continue
        found = _partners(label, images)
        if len(found) == 1:
            fitting[found[0].path].append((pipeline, label))
        elif found:
            names = ", ".join(image.path.name for image in found)
            reason = f"a label that fits several images ({names}); state which in a list"
            refused.append(Refused(label.path, reason))
        else:
            refused.append(Refused(label.path, "a label without an image"))
    matches: dict[Path, tuple[Path, dict[int, str]]] = {}
    for image, several in fitting.items():
        if len(several) == 1:
            pipeline, label = several[0]
            matches[image] = (label.path, _classes(label, pipeline))
        else:
            reason = f"one of {len(several)} labels that fit {image.name}; state which in a list"
            refused += [Refused(label.path, reason) for _, label in several]
    return matches, refused


def _partners(label: _File, images: Sequence[_File]) -> list[_File]:
    stated = {key: value for key, value in label.entities.items() if key not in _OF_LABELS}
    space = label.entities.get("space")
    found = [
        image
        for image in images
        if image.datatype == label.datatype
        and image.entities.get("ses") == stated.get("ses")
        and all(image.entities.get(key) == value for key, value in stated.items())
        and (space is None or space in _OWN_SPACE or space == image.suffix)
    ]
    exact = [image for image in found if set(image.entities) == set(stated)]
    return exact or found


def _classes(label: _File, pipeline: Path) -> dict[int, str]:
    """Names of label values, from the nearest table whose entities are all the label's."""
    for place in (label.path.parent, *label.path.parent.parents):
        for table in sorted(place.glob(f"*{_LABEL}.tsv")):
            *parts, _ = stem(table).split("_")
            entities = [part.partition("-")[::2] for part in parts]
            if all(label.entities.get(key) == value for key, value in entities):
                return _read_classes(table)
        if place == pipeline:
            break
    return {}


def _read_classes(table: Path) -> dict[int, str]:
    classes: dict[int, str] = {}
    for number, row in _rows(table, ("index", "name")):
        if not row["index"].isdigit():
            raise DataError(f"{table}, line {number}: index {row['index']!r} is no whole number.")
        classes[int(row["index"])] = row["name"]
    return dict(sorted(classes.items()))


def _splits(participants: Path) -> dict[str, str | None]:
    """The split of each subject; empty without such a column."""
    splits: dict[str, str | None] = {}
    for number, row in _rows(participants, ("participant_id",)):
        word = row.get("split", "n/a").lower().replace("n/a", "")
        if word not in SPLITS:
            raise DataError(
                f"{participants}, line {number}: split {row['split']!r}; allowed are train, "
                "validation, test and n/a."
            )
        splits[row["participant_id"]] = SPLITS[word]
    return splits


def _rows(table: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a table with their numbers; none if it is not there."""
    if not table.is_file():
        return
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not a text file ({error}).") from None
    reader = csv.DictReader(lines, delimiter="\t")
    absent = [name for name in required if name not in (reader.fieldnames or ())]
    if absent:
        raise DataError(
            f"{table}: no column {' and '.join(map(repr, absent))} in its first line; columns are "
            "separated by tabs."
        )
    for row in reader:
        yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if key}


def _source(
    image: _File,
    match: tuple[Path, dict[int, str]] | None,
    splits: Mapping[str, str | None],
) -> Source:
    label, classes = match or (None, {})
    subject = f"sub-{image.entities['sub']}"
    return Source(
        stem(image.path),
        (image.path,),
        label=label,
        split=splits.get(subject),
        group=subject,
        classes=classes,
        modality=DATATYPES[image.datatype],
    )


def _others(root: Path) -> list[Refused]:
    """How many files of the subjects are no images; in one line."""
    count: Counter[str] = Counter()
    for subject in root.glob("sub-*/"):
        for file in subject.rglob("*"):
            if file.is_file() and suffix_of(file) not in READERS and file.name[0] != ".":
                count[file.suffix.lower() or "without ending"] += 1
    if not count:
        return []
    kinds = ", ".join(f"{number} {ending}" for ending, number in sorted(count.items()))
    return [Refused(root, f"files of subjects that are no images: {kinds}", passed_over=True)]
