"""Images and labels in a folder about which nothing is stated: which files belong together.

A file is a **label** if it lies in a folder named ``labels``, ``masks``, ``segmentations``,
``segs``, ``annotations`` or ``gt`` (also with ``Tr``, ``Ts`` or ``Val`` at the end), or if a word
of its name ends in ``label``, ``labels``, ``mask``, ``masks``, ``seg``, ``segmentation`` or
``gt``; words are separated by ``_``, ``-``, ``.`` or a blank. Every other file is an **image**.

A label **belongs to** an image in the same folder, in the folder above, or in a folder beside
its own, if their names are equal up to

- the label's word and everything after it (``case_seg-manual`` -> ``case``),
- a last word of the image's name that says what kind of image it is (``case_ct`` -> ``case``),
  or a channel's number (``case_0000``).

``imagesTr`` goes with ``labelsTr`` only, ``imagesTs`` with ``labelsTs``. If a label fits several
images, or several labels fit one image, these labels are refused: a list states which is meant.
A label without an image is refused; an image without a label is taken without one. Files
``case_0000``, ``case_0001``, ... in a folder named ``images...`` are the channels of one case.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from voco.data.listings import stem
from voco.data.source import Found, Refused, Source

_LABEL_FOLDER = re.compile(r"(labels?|masks?|segmentations?|segs?|annotations?|gt)(tr|ts|val)?")
_IMAGE_FOLDER = re.compile(r"(images?|imgs?)(tr|ts|val)?")
_TAIL = re.compile(r"(tr|ts|val)$")
_LABEL_WORD = re.compile(
    r"(?:^|[_\-. ])[a-z0-9]*(?:labels?|masks?|seg|segmentations?|gt)(?=$|[_\-. ]).*$"
)
_IMAGE_WORD = re.compile(
    r"(?:^|[_\-. ])(?:ct|cta|cect|mr|mri|pet|pt|t1|t1w|t1c|t1gd|t2|t2w|flair|image|img|volume|vol"
    r"|scan|orig|\d{4})$"
)
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def pair(files: Iterable[Path], root: Path) -> Found:
    """Sort image files into cases.

    Args:
        files: Image files anywhere below ``root``.
        root: What the user named; ids are made from the path below it.
    """
    files = sorted(files)
    labels = [file for file in files if is_label(file, root)]
    images = _channels([file for file in files if file not in set(labels)])
    matches, refused = _match(images, labels)
    sources = []
    for parts in images:
        fitting = matches.get(parts[0], [])
        if len(fitting) > 1:
            reason = f"one of {len(fitting)} labels that fit {parts[0].name}; state which in a list"
            refused += [Refused(label, reason) for label in fitting]
        label = fitting[0] if len(fitting) == 1 else None
        sources.append(Source(_id(parts, root), parts, label, guessed=True))
    return sources, refused


def is_label(file: Path, root: Path) -> bool:
    """Whether a file is a label by its name or its folder (``root`` itself counts as a folder)."""
    inside = file.parent == root or root in file.parent.parents
    in_folder = inside and _LABEL_FOLDER.fullmatch(file.parent.name.lower()) is not None
    return in_folder or _LABEL_WORD.search(stem(file).lower()) is not None


def _match(
    images: Sequence[tuple[Path, ...]], labels: Sequence[Path]
) -> tuple[dict[Path, list[Path]], list[Refused]]:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for parts in images:
        by_folder[parts[0].parent].append(parts[0])
    beside: dict[Path, list[Path]] = defaultdict(list)
    for folder in by_folder:
        beside[folder.parent].append(folder)
    matches: dict[Path, list[Path]] = defaultdict(list)
    refused = []
    for label in labels:
        found = _partners(label, by_folder, beside)
        if len(found) == 1:
            matches[found[0]].append(label)
        elif found:
            names = ", ".join(image.name for image in found)
            refused.append(
                Refused(label, f"a label that fits several images ({names}); use a list")
            )
        else:
            reason = "a label without an image (an image after all? then state it in a list)"
            refused.append(Refused(label, reason))
    return matches, refused


def _partners(
    label: Path, by_folder: dict[Path, list[Path]], beside: dict[Path, list[Path]]
) -> list[Path]:
    """The images that a label fits, from the nearest folder that has one."""
    name = stem(label).lower()
    keys = {name, _LABEL_WORD.sub("", name)} - ({name} if _LABEL_WORD.search(name) else set())
    keys |= {_IMAGE_WORD.sub("", key) for key in keys}
    folders = [label.parent]
    if _LABEL_FOLDER.fullmatch(label.parent.name.lower()):
        tail = _tail(label.parent)
        siblings = [f for f in beside[label.parent.parent] if f != label.parent]
        folders += [folder for folder in siblings if _tail(folder) == tail]
        folders.append(label.parent.parent)
    near = [image for folder in folders for image in by_folder.get(folder, [])]
    exact = [image for image in near if stem(image).lower() in keys]
    return exact or [image for image in near if _IMAGE_WORD.sub("", stem(image).lower()) in keys]


def _tail(folder: Path) -> str:
    name = folder.name.lower()
    known = _LABEL_FOLDER.fullmatch(name) or _IMAGE_FOLDER.fullmatch(name)
    return (known[2] or "") if known else ""


def _channels(images: Sequence[Path]) -> list[tuple[Path, ...]]:
    cases: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for image in images:
        match = _CHANNEL.fullmatch(stem(image))
        numbered = match and _IMAGE_FOLDER.fullmatch(image.parent.name.lower())
        cases[image.parent, match[1] if match and numbered else image.name].append(image)
    return [tuple(parts) for parts in cases.values()]


def _id(parts: tuple[Path, ...], root: Path) -> str:
    first = parts[0]
    name = stem(first) if len(parts) == 1 else stem(first)[:-5]
    folder = first.parent
    if _IMAGE_FOLDER.fullmatch(folder.name.lower()) and folder != root:
        folder = folder.parent
    inside = folder.relative_to(root).parts if root in (folder, *folder.parents) else ()
    return "__".join((*inside, name))
