"""From what a user names to cases, and from a case to arrays.

A place is a file (image, multi-frame DICOM, ``.npz``), a ``dataset.json``, a list, or a folder.
A folder with a ``dataset.json`` (:mod:`voco.data.listings`) or of the BIDS layout
(:mod:`voco.data.bids`) is what it says; any other folder is walked, with such folders inside it,
its DICOM series (:mod:`voco.data.dicom`), its ``.npz`` files (:mod:`voco.data.medmnist`) and its
image files, which are paired with labels by name (:mod:`voco.data.pairing`).

Nothing is lost: each file that could be an image becomes part of a case, or is refused (or passed
over, where a layout says that it is no case) with a reason. Hidden files and files of other kinds
(text, tables, ...) are left out.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from voco.data import bids, dicom, listings, medmnist, pairing
from voco.data.datasets import read_dataset
from voco.data.folders import walk
from voco.data.imageio import READERS, UNREAD, read_label, read_scan, suffix_of
from voco.data.layouts import lay_out
from voco.data.pictures import read_pictures
from voco.data.scan import Scan, grid_difference
from voco.data.source import Found, Refused, Source
from voco.errors import DataError
from voco.volume import Volume

__all__ = ["Found", "Refused", "Source", "discover", "read_source"]

_TEXTS = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".pdf",
    ".log", ".py", ".sh", ".bval", ".bvec", ".doc", ".docx", ".xls", ".xlsx", ".mat", ".pkl",
}  # fmt: skip

_MASK_VALUES, _MASK_VOXELS = 16, 1000


def discover(source: Path, dataset: str = "") -> Found:
    """Find the cases in a place; reads headers and lists, no voxels.

    Args:
        source: The place.
        dataset: The described data set that it holds; whether all of it is there is not asked.

    Returns:
        Cases in the order of their paths, and what was refused, with reasons.

    Raises:
        DataError: If there is no such place, or a list or ``dataset.json`` is not as it must be.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if dataset:
        sources, refused = lay_out(read_dataset(dataset), dataset, source).found
    else:
        sources, refused = _folder(source) if source.is_dir() else _file(source)
    return completed(sources, refused)


def completed(sources: list[Source], refused: list[Refused]) -> Found:
    """Cases with the slices of DICOM folders, and ids that can be file names."""
    sources, more = _expand(sources)
    return _unique(sources), sorted({*refused, *more})


def read_source(source: Source, *, modality: str | None = None) -> tuple[Scan, Volume | None]:
    """Read the image and the label of a case.

    Args:
        source: From :func:`discover`.
        modality: What the user says all scans are; overrides everything.

    Returns:
        The scan (all channels) and the label ``(1, x, y, z)`` on the same grid.

    Raises:
        DataError: With the reason why it cannot be taken.
    """
    scan = _read_image(source, modality or source.modality)
    if source.guessed:
        _refuse_mask(scan, source)
    if source.label is None:
        return scan, None
    label = read_label(source.label)
    if difference := grid_difference(scan.volume.grid, label.grid):
        raise DataError(f"{source.label}: not on the grid of its image: {difference}.")
    return replace(scan, warnings=(*scan.warnings, *_remarks(label, source))), label


def _file(path: Path) -> Found:
    if path.suffix.lower() == ".json":
        return listings.find_dataset(path)
    if path.suffix.lower() in {".csv", ".tsv", ".txt"}:
        return listings.find_list(path)
    return _images([path], path.parent)


def _folder(root: Path) -> Found:
    sources: list[Source] = []
    refused: list[Refused] = []
    loose: list[Path] = []
    for folder, files in walk(root, closed=lambda place: _layout(place) is not None):
        find = _layout(folder)
        if find is None:
            loose += files
            continue
        found, reasons = find(folder)
        inside = folder.relative_to(root).parts
        sources += [replace(item, id="__".join((*inside, item.id))) for item in found]
        refused += reasons
    found, reasons = _images(loose, root)
    return sources + found, refused + reasons


def _layout(folder: Path) -> Callable[[Path], Found] | None:
    if listings.is_dataset(folder):
        return lambda place: listings.find_dataset(place / "dataset.json")
    return bids.find_bids if bids.is_bids(folder) else None


def _images(files: list[Path], root: Path) -> Found:
    """Cases and refusals among files about which nothing is stated."""
    sources: list[Source] = []
    refused: list[Refused] = []
    volumes: list[Path] = []
    slices: dict[Path, list[Path]] = defaultdict(list)
    known = set(files) if len(files) > 1 else set()
    for file in files:
        suffix = suffix_of(file)
        if suffix in UNREAD:
            refused.append(Refused(file, UNREAD[suffix]))
        elif suffix in READERS:
            header = {".img": ".hdr", ".brik": ".HEAD"}.get(suffix)
            # Header and voxels in two files are one image, named by its header.
            volumes += [] if header and file.with_suffix(header) in known else [file]
        elif file.suffix.lower() == ".npz":
            found, reasons = medmnist.find_volumes(file)
            sources, refused = sources + found, refused + reasons
        elif file.suffix.lower() in _TEXTS or file.name == "DICOMDIR":
            continue
        elif file.exists() and dicom.is_dicom(file):
            slices[file.parent].append(file)
        elif reason := _disguised(file, files):
            refused.append(Refused(file, reason))
    for folder, parts in slices.items():
        found, reasons = _series(folder, parts, root)
        sources, refused = sources + found, refused + reasons
    found, reasons = pairing.pair(volumes, root)
    return sources + found, refused + reasons


def _disguised(file: Path, files: list[Path]) -> str | None:
    """Why a file of no known kind is worth a word; ``None`` for files that are no images."""
    if not file.exists():
        return "a link to a file that is not there"
    with file.open("rb") as stream:
        start = stream.read(352)
    if start[344:347] in {b"n+1", b"ni1"} or start[4:7] in {b"n+2", b"ni2"}:
        return "begins like NIfTI, but its name does not end in .nii or .nii.gz; rename it"
    if files == [file]:
        return f"not a kind of image file that is read ({', '.join(READERS)}, DICOM)"
    return None


def _series(folder: Path, files: list[Path], root: Path) -> Found:
    stacks, rest = dicom.find_stacks(files)
    inside = "__".join(folder.relative_to(root).parts) or folder.name
    sources = []
    for stack in stacks:
        name = inside if len(stacks) == 1 else f"{inside}__{stack.name}"
        image = stack.files[0] if len(stack.files) == 1 else folder
        sources.append(Source(name, (image,), group=stack.group, stack=stack))
    refused = []
    for item in rest:
        alone = len(item.files) == 1
        also = f" (series of {item.files[0].name})" if not alone and len(stacks + rest) > 1 else ""
        refused.append(Refused(item.files[0] if alone else folder, item.reason + also))
    return sources, refused


def _expand(sources: list[Source]) -> Found:
    """Turn DICOM folders and archives that a list names into what they hold."""
    result: list[Source] = []
    refused: list[Refused] = []
    for source in sources:
        path = source.images[0]
        stated = source.stack is None and source.member is None and not source.slices
        stated = stated and len(source.images) == 1
        if not stated or not (path.is_dir() or (path.is_file() and dicom.is_dicom(path))):
            result.append(source)
            continue
        files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
        stacks, rest = dicom.find_stacks(f for f in files if dicom.is_dicom(f))
        if len(stacks) == 1:
            group = source.group or stacks[0].group
            result.append(replace(source, stack=stacks[0], group=group, guessed=False))
        elif stacks:
            names = ", ".join(stack.name for stack in stacks)
            refused.append(Refused(path, f"holds {len(stacks)} volumes ({names}); expected one"))
        else:
            reasons = dict.fromkeys(item.reason for item in rest)
            refused.append(Refused(path, "; ".join(reasons) or "a folder without DICOM files"))
    return result, refused


def _unique(sources: list[Source]) -> list[Source]:
    """Ids that are file names, each once: a repeated one gets a number."""
    seen: Counter[str] = Counter()
    result = []
    for source in sources:
        name = re.sub(r"[^A-Za-z0-9._+-]+", "_", source.id).strip("._") or "case"
        seen[name] += 1
        count = seen[name]
        result.append(replace(source, id=name if count == 1 else f"{name}-{count}"))
    return result


def _read_image(source: Source, modality: str | None) -> Scan:
    if source.stack is not None:
        return dicom.read_stack(source.stack, modality=modality)
    if source.slices:
        scan = read_pictures(source.slices)
        return replace(scan, modality=modality or scan.modality)
    if source.member is not None:
        scan = medmnist.read_volume(source.images[0], source.member)
        return replace(scan, modality=modality or scan.modality)
    if len(source.images) == 1:
        names = source.channels or None
        return read_scan(source.images[0], modality=modality, channels=names)
    scans = [read_scan(path, modality=modality) for path in source.images]
    first = scans[0]
    for path, scan in zip(source.images, scans, strict=True):
        if difference := grid_difference(first.volume.grid, scan.volume.grid):
            raise DataError(f"{path}: not on the grid of {source.images[0].name}: {difference}.")
    array = np.concatenate([scan.volume.array for scan in scans])
    names = source.channels or tuple(listings.stem(path) for path in source.images)
    if len(names) != len(array):
        raise DataError(f"{source.id}: {len(array)} channels, but {len(names)} names {names}.")
    kinds = {scan.modality for scan in scans}
    warnings = tuple(
        f"{path.name}: {text}"
        for path, scan in zip(source.images, scans, strict=True)
        for text in scan.warnings
    )
    kind = kinds.pop() if len(kinds) == 1 else "unknown"
    return Scan(Volume(array, first.volume.grid), kind, names, warnings)


def _refuse_mask(scan: Scan, source: Source) -> None:
    """Refuse what holds a few whole numbers only, when nobody says that it is an image."""
    array = scan.volume.array
    if array.size < _MASK_VOXELS:
        return
    # A few thousand voxels tell most images from masks at once.
    step = max(1, round((array.size / 10000) ** (1 / 3)))
    if len(np.unique(array[:, ::step, ::step, ::step])) > _MASK_VALUES:
        return
    values = np.unique(array)
    if len(values) > _MASK_VALUES or not np.array_equal(values, np.rint(values)):
        return
    raise DataError(
        f"{source.images[0]}: holds only the {len(values)} whole numbers {values[0]:g} to "
        f"{values[-1]:g}, so it is a mask rather than an image. If it is an image, say so in a "
        "list."
    )


def _remarks(label: Volume, source: Source) -> Iterator[str]:
    values = [int(value) for value in np.unique(label.array)]
    if values == [0]:
        yield "its label is empty: no voxel is of any class"
    unnamed = [value for value in values if source.classes and value not in source.classes]
    if unnamed and source.dataset:
        known = ", ".join(f"{value} ({name})" for value, name in source.classes.items())
        raise DataError(
            f"{source.label}: the label of case '{source.id}' holds {unnamed}, which "
            f"{source.dataset} does not have; allowed are {known}. Correct the file."
        )
    if unnamed:
        yield f"its label holds {unnamed}, which the data set does not name"
