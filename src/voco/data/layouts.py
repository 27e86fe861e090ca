"""The cases of a described data set on disk: which files they are, and whether all are there.

Nothing is guessed. A folder has one of the described layouts, or it is refused with what was
expected and what was found; see :class:`voco.data.datasets.Part` for how patterns are written.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco.data.datasets import FIELD, Dataset, Layout, Part
from voco.data.folders import walk
from voco.data.imageio import READERS, suffix_of
from voco.data.listings import stem
from voco.data.source import Refused, Source
from voco.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg")
"""Endings of slices that are pictures."""

_NIFTI = re.compile(r"\.nii(\.gz)?$")
_SHOWN = 3


@dataclass(frozen=True)
class Tree:
    """What lies below a folder, by paths relative to it.

    Attributes:
        root: The folder.
        files: Image files.
        pictures: Folders and the pictures in them, in the order of the numbers in their names.
        dicom: Folders that hold files that end in ``.dcm``.
    """

    root: Path
    files: tuple[str, ...]
    pictures: Mapping[str, tuple[Path, ...]]
    dicom: tuple[str, ...]

    def places(self, part: Part) -> tuple[str, ...]:
        """What the patterns of a part may lead to."""
        by_kind = {"file": self.files, "pictures": tuple(self.pictures), "dicom": self.dicom}
        return by_kind[part.kind]


@dataclass(frozen=True)
class Count:
    """How many cases of a part there are."""

    pattern: str
    expected: int | None
    found: int
    optional: bool = False

    @property
    def right(self) -> bool:
        """Whether that is what the owners distribute."""
        return self.expected in {None, self.found} or (self.optional and not self.found)


@dataclass(frozen=True)
class Laid:
    """The cases of a data set in a folder.

    Attributes:
        layout: Which layout the folder has.
        sources: Its cases, in the order of their paths.
        refused: Images and labels that are no whole case, and why.
        counts: How many images of each part there are.
        unused: Image files, and folders of slices, that are no part of the data set.
    """

    layout: Layout
    sources: list[Source]
    refused: list[Refused]
    counts: list[Count]
    unused: list[str]

    @property
    def found(self) -> tuple[list[Source], list[Refused]]:
        """Cases and refusals, as any place gives them."""
        return self.sources, self.refused


def lay_out(dataset: Dataset, name: str, root: Path) -> Laid:
    """Find the cases of a data set in a folder; reads no image.

    Args:
        dataset: Its description.
        name: What the user called it; kept with every case.
        root: The folder.

    Raises:
        DataError: If the folder has none of the described layouts, or two cases have one id.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    tree = _walk(root)
    layout = _fitting(dataset, tree)
    if layout is None:
        raise DataError(_misfit(dataset, name, tree))
    sources: list[Source] = []
    refused: list[Refused] = []
    counts: list[Count] = []
    used: set[str] = set()
    ids: set[str] = set()
    for part in layout.parts:
        matches = list(_matches(part, tree))
        first = next(iter(part.images.values()))
        counts.append(Count(first, part.count, len(matches), part.optional))
        for place, found in matches:
            made = _source(dataset, name, part, tree, place, found, used)
            if isinstance(made, Refused):
                refused.append(made)
                continue
            if made.id in ids:
                raise DataError(f"{root}: two images would both become the case '{made.id}'.")
            sources.append(made)
            ids.add(made.id)
        refused += _lone_labels(part, tree, used)
    places = dict.fromkeys([*tree.files, *(p for part in layout.parts for p in tree.places(part))])
    unused = [place for place in places if place not in used]
    return Laid(layout, sources, refused, counts, unused)


def check_counts(dataset: Dataset, name: str, root: Path, laid: Laid) -> None:
    """Refuse a data set that is not whole.

    Raises:
        DataError: Naming what was expected and found of each part.
    """
    wrong = [count for count in laid.counts if not count.right]
    if wrong:
        parts = [
            f"{count.pattern}: {count.expected} expected, {count.found} found" for count in wrong
        ]
        raise DataError(
            f"{root}: not all of {name} ({dataset.title}), or more than it. {'; '.join(parts)}. "
            "Complete it, or take what is there with --partial."
        )


def _walk(root: Path) -> Tree:
    files: list[str] = []
    pictures: dict[str, tuple[Path, ...]] = {}
    dicom: list[str] = []
    for folder, shown in walk(root):
        inside = folder.relative_to(root).as_posix()
        images = [file for file in shown if suffix_of(file) in READERS]
        files += [file.relative_to(root).as_posix() for file in images]
        if slices := [file for file in shown if file.suffix.lower() in PICTURES]:
            pictures[inside] = tuple(sorted(slices, key=_order))
        if any(file.suffix.lower() == ".dcm" for file in shown):
            dicom.append(inside)
    return Tree(root, tuple(sorted(files)), dict(sorted(pictures.items())), tuple(sorted(dicom)))


def _order(file: Path) -> tuple[list[int], str]:
    """Slices by the numbers in their names: 2 before 10."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression with a group for each name."""
    text, done, known = "", 0, set[str]()
    body = _NIFTI.sub("", pattern)
    for field in FIELD.finditer(body):
        text += re.escape(body[done : field.start()])
        done = field.end()
        if field[3]:
            text += "[^/]*"
        elif field[1] in known:
            text += f"(?P={field[1]})"
        else:
            text += f"(?P<{field[1]}>{r'[0-9]+' if field[2] else '[^/]+?'})"
            known.add(field[1])
    return re.compile(
        text + re.escape(body[done:]) + (r"\.nii(?:\.gz)?" if body != pattern else "")
    )


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    return FIELD.sub(lambda field: fields[field[1]], pattern)


def _existing(pattern: str, fields: Mapping[str, str], tree: Tree) -> str | None:
    """The file that a pattern with all its names filled in leads to."""
    path = _filled(pattern, fields)
    bare = _NIFTI.sub("", path)
    tries = [path] if bare == path else [path, f"{bare}.nii.gz", f"{bare}.nii"]
    return next((file for file in tries if (tree.root / file).is_file()), None)


def _matches(part: Part, tree: Tree) -> Iterator[tuple[str, dict[str, str]]]:
    """Places that the first pattern of a part leads to, and what its names stand for."""
    pattern = _compiled(next(iter(part.images.values())))
    for place in tree.places(part):
        if match := pattern.fullmatch(place):
            yield place, {"stem": stem(Path(place)), **match.groupdict()}


def _fitting(dataset: Dataset, tree: Tree) -> Layout | None:
    """The layout of which most is there; the earlier one where two are equal."""
    sizes = [
        sum(len(list(_matches(part, tree))) for part in layout.parts if not part.optional)
        for layout in dataset.layouts
    ]
    best = max(sizes)
    return dataset.layouts[sizes.index(best)] if best else None


def _source(
    dataset: Dataset,
    name: str,
    part: Part,
    tree: Tree,
    place: str,
    fields: Mapping[str, str],
    used: set[str],
) -> Source | Refused:
    """A case, or why it is none; marks its files as used."""
    root = tree.root
    used.add(place)
    images = [place]
    for channel, pattern in list(part.images.items())[1:]:
        file = _existing(pattern, fields, tree)
        if file is None:
            return Refused(root / place, f"no channel {channel}: {_filled(pattern, fields)}")
        images.append(file)
    used.update(images)
    label = None
    if part.label is not None:
        label = _existing(part.label, fields, tree)
        if label is None:
            return Refused(root / place, f"no label: {_filled(part.label, fields)}")
        used.add(label)
    target = None if dataset.target is None else dataset.target.format_map(fields)
    if target is not None and target not in dataset.targets:
        return Refused(root / place, f"class '{target}'; known are {', '.join(dataset.targets)}")
    several = tuple(part.images) if isinstance(part.image, dict) else ()
    return Source(
        id=part.case.format_map(fields),
        images=tuple(root / image for image in images),
        label=None if label is None else root / label,
        split=part.split,
        group=None if dataset.patient is None else dataset.patient.format_map(fields),
        classes=dict(dataset.labels) if label is not None else {},
        modality=dataset.modality,
        target=target,
        channels=several or dataset.channels,
        slices=tree.pictures[place] if part.kind == "pictures" else (),
        dataset=name,
    )


def _lone_labels(part: Part, tree: Tree, used: set[str]) -> list[Refused]:
    if part.label is None:
        return []
    pattern = _compiled(part.label)
    lone = [file for file in tree.files if file not in used and pattern.fullmatch(file)]
    used.update(lone)
    return [Refused(tree.root / file, "a label without an image") for file in lone]


def _expected(layout: Layout) -> str:
    """A layout in one line."""
    return "; ".join(_described(part) for part in layout.parts)


def _described(part: Part) -> str:
    first, *others = part.images.values()
    count = "" if part.count is None else f"{part.count} "
    kind = {"file": "", "pictures": " (folders of PNG or JPEG)", "dicom": " (folders of DICOM)"}
    more = f" with {', '.join(others)}" if others else ""
    label = f" and {part.label}" if part.label else ""
    return f"{count}{first}{kind[part.kind]}{more}{label}{', if any' if part.optional else ''}"


def _misfit(dataset: Dataset, name: str, tree: Tree) -> str:
    lines = [f"{tree.root}: none of the layouts of {name} ({dataset.title}). Expected:"]
    lines += [f"  {layout.name}: {_expected(layout)}" for layout in dataset.layouts]
    lines.append(f"Found: {_summary(tree)}.")
    if inner := _inner(dataset, tree):
        lines.append(f"It lies in {tree.root / inner}: name that folder.")
    return "\n".join(lines)


def _summary(tree: Tree) -> str:
    said = []
    for count, what, names in (
        (len(tree.files), "image files", tree.files),
        (len(tree.pictures), "folders of pictures", tuple(tree.pictures)),
        (len(tree.dicom), "folders of DICOM", tree.dicom),
    ):
        if count:
            said.append(f"{count} {what}, such as {', '.join(_spread(names))}")
    return "; ".join(said) or "no image file"


def _spread(names: Sequence[str]) -> list[str]:
    """A few names, of as many folders as possible."""
    firsts = {str(Path(name).parent): name for name in reversed(names)}
    return list(dict.fromkeys([*reversed(firsts.values()), *names]))[:_SHOWN]


def _inner(dataset: Dataset, tree: Tree) -> str | None:
    """The folder below, if any, that has a layout of the data set."""
    patterns = [
        (part, _compiled(next(iter(part.images.values()))))
        for layout in dataset.layouts
        for part in layout.parts
        if not part.optional
    ]
    hits: Counter[str] = Counter()
    for part, pattern in patterns:
        for place in tree.places(part):
            steps = place.split("/")
            for depth in range(1, min(len(steps), 4)):
                if pattern.fullmatch("/".join(steps[depth:])):
                    hits["/".join(steps[:depth])] += 1
    return hits.most_common(1)[0][0] if hits else None
