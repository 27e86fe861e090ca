"""The store: prepared volumes on disk, in source units, so small that a crop is read in no time.

A store is a folder::

    store.json       format version, preprocessing, counts
    cases.jsonl      one line per case (:class:`Case`)
    images/ID.b2nd   int16 (c, x, y, z), chunked and compressed
    labels/ID.b2nd   uint8 or int16 (x, y, z), where a case has a label

Voxels are RAS, at the store's spacing. ``value = stored * scale + offset`` per channel gives the
source's own units: HU for CT (scale 1, offset 0), a documented 16-bit scale for everything else.
No intensity window is applied: it belongs to the recipe, so one store serves every method.

Files appear whole or not at all: each is written under a temporary name and renamed, and a case
exists only once its line is in ``cases.jsonl``. Several processes may prepare parts of one store
at a time; each then writes its own ``cases-PART.jsonl``, which readers see as well.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer
from pydantic import Field

from voco.config import Config, parse
from voco.data.arrays import read_array, write_array
from voco.errors import ConfigError, StoreError
from voco.geometry import Grid
from voco.shapes import Shape3, Spacing

FORMAT = 1
"""Version of the layout; a store of another version is refused with a way out."""


class Preprocessing(Config):
    """How scans were brought onto the store's grid. Travels with the weights."""

    spacing_mm: Spacing | None = None
    """Millimetres per voxel along x, y, z; ``None`` keeps each scan's own."""
    orientation: Literal["RAS"] = "RAS"
    """Directions towards which the axes point."""
    foreground: bool = False
    """Whether volumes are cut to the box that holds the body."""

    def digest(self) -> str:
        """Short hash: equal for equal preprocessing."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class ChannelStatistics(Config):
    """Intensities of one channel, in source units."""

    minimum: float
    maximum: float
    mean: float
    """Mean of the foreground."""
    std: float
    """Standard deviation of the foreground."""
    percentiles: dict[str, float]
    """Of the foreground: keys ``"0.5"``, ``"1"``, ``"5"``, ``"50"``, ``"95"``, ``"99"``,
    ``"99.5"``."""


class Case(Config):
    """One prepared scan."""

    id: str
    """Unique in the store; also the name of its files."""
    source: str
    """Path of the file or folder that it was made from; with ``#NAME`` where that holds several.
    Tells cases apart: preparing the same source again gives the same case."""
    place: str = ""
    """What the user named, and the source was found in; to make the case anew from."""
    dataset: str = ""
    """The described data set that ``place`` was said to hold; empty for none."""
    source_sha256: str
    """Of the source's content (and of its label's), so that a change is noticed."""
    shape: Shape3
    """Voxels in the store."""
    spacing_mm: Spacing
    """Of the stored voxels."""
    affine: tuple[tuple[float, float, float, float], ...]
    """4x4, stored voxels to world millimetres, RAS+."""
    source_shape: Shape3
    """Voxels of the source, in its own orientation."""
    source_affine: tuple[tuple[float, float, float, float], ...]
    """4x4 of the source."""
    source_orientation: str
    """Such as ``LPS``."""
    modality: str = "unknown"
    """``CT``, ``MR``, ``PT``, ..., or ``unknown``."""
    channels: tuple[str, ...] = ("image",)
    """Names of the channels."""
    scale: tuple[float, ...] = (1.0,)
    """Per channel: source units per stored unit."""
    offset: tuple[float, ...] = (0.0,)
    """Per channel: source units at stored 0."""
    statistics: tuple[ChannelStatistics, ...] = ()
    """Per channel."""
    foreground: tuple[Shape3, Shape3] | None = None
    """Start and stop voxel of the box that holds the body, in stored voxels."""
    classes: dict[int, str] = Field(default_factory=dict)
    """Label values and their names; empty where the case has no label."""
    class_voxels: dict[int, int] = Field(default_factory=dict)
    """Stored voxels of each label value, background included."""
    target: int | str | None = None
    """Class of the whole volume, for classification."""
    split: str | None = None
    """``train``, ``validation``, ``test``, or ``None``."""
    group: str | None = None
    """Patient or study; cases of one group are never split up."""
    warnings: tuple[str, ...] = ()
    """What a reader should know about how the case was taken."""
    stated_modality: str | None = None
    """What the user or the data set said; ``modality`` may come from the file instead."""
    image_sha256: str = ""
    """Of the image's file in the store."""
    label_sha256: str = ""
    """Of the label's file in the store; empty where the case has no label."""
    fingerprint: str = ""
    """By which its scan is recognised elsewhere (:mod:`voco.data.fingerprint`); empty in a store
    that was made before there were any, until its sources are prepared once more."""
    revision: int = 0
    """How often it was made anew because its source changed; the highest counts."""
    gone: bool = False
    """Whether its source changed into something that cannot be taken; it is no case any more."""

    @property
    def grid(self) -> Grid:
        """Where the stored voxels are."""
        return Grid(self.shape, np.asarray(self.affine, float))

    @property
    def source_grid(self) -> Grid:
        """Where the source's voxels are."""
        return Grid(self.source_shape, np.asarray(self.source_affine, float))

    @property
    def has_label(self) -> bool:
        """Whether a label array is stored."""
        return bool(self.class_voxels)


class Store:
    """A folder of prepared volumes.

    Args:
        path: The folder.

    Raises:
        StoreError: If it is not a store, or one of another version, or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        head = self._head()
        self.preprocessing = parse(Preprocessing, head["preprocessing"], str(self.path))

    @classmethod
    def create(cls, path: Path | str, preprocessing: Preprocessing) -> "Store":
        """A new, empty store, or the existing one if it has the same preprocessing.

        Raises:
            StoreError: If a store of another preprocessing lies there.
        """
        path = Path(path)
        if (path / "store.json").exists():
            store = cls(path)
            if store.preprocessing != preprocessing:
                raise StoreError(
                    f"{path}: was made with {store.preprocessing!r}, asked for is "
                    f"{preprocessing!r}. Use another folder, or --overwrite to make it anew."
                )
        else:
            path.mkdir(parents=True, exist_ok=True)
            head = {"format": FORMAT, "preprocessing": preprocessing.model_dump(mode="json")}
            write_atomically(path / "store.json", json.dumps(head, indent=2).encode())
            store = cls(path)
        for folder in (path / "images", path / "labels"):
            folder.mkdir(exist_ok=True)
        return store

    @property
    def cases(self) -> Mapping[str, Case]:
        """Cases by id, in the order of their ids: not in that in which workers finished them.

        Raises:
            StoreError: If a line is damaged.
        """
        return self._cases[0]

    @property
    def gone(self) -> Mapping[str, Case]:
        """Cases whose source changed into something that cannot be taken."""
        return self._cases[1]

    @cached_property
    def _cases(self) -> tuple[Mapping[str, Case], Mapping[str, Case]]:
        cases: dict[str, Case] = {}
        for file in [self.path / "cases.jsonl", *self._parts()]:
            for case in _read_cases(file):
                if case.id not in cases or case.revision >= cases[case.id].revision:
                    cases[case.id] = case
        ordered = dict(sorted(cases.items()))
        here = {name: case for name, case in ordered.items() if not case.gone}
        return here, {name: case for name, case in ordered.items() if case.gone}

    @cached_property
    def digest(self) -> str:
        """Hash over preprocessing and the content of all cases, independent of their order."""
        parts = sorted(f"{case.id} {case.source_sha256}" for case in self.cases.values())
        text = "\n".join([self.preprocessing.digest(), *parts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(
        self, case: str, box: tuple[Shape3, Shape3] | None = None
    ) -> Integer[np.ndarray, "c _ _ _"]:
        """Stored int16 voxels of a box (start, stop), or of the whole volume.

        Touches only the chunks under the box.

        Raises:
            StoreError: If the file is missing or damaged, or the box leaves the volume.
        """
        return self._read(self.image_file(case), box)

    def read_label(
        self, case: str, box: tuple[Shape3, Shape3] | None = None
    ) -> Integer[np.ndarray, "_ _ _"]:
        """Stored label values of a box (start, stop), or of the whole volume.

        Raises:
            StoreError: If the case has no label, or the file is damaged.
        """
        return self._read(self.label_file(case), box)

    def write(
        self,
        case: Case,
        image: Integer[np.ndarray, "c x y z"],
        label: Integer[np.ndarray, "x y z"] | None = None,
    ) -> Case:
        """Write the arrays of a case, whole or not at all. :meth:`add` then makes it exist.

        Returns:
            The case with the checksums of its files.
        """
        image_sha256 = write_array(self.image_file(case.id), image)
        label_sha256 = "" if label is None else write_array(self.label_file(case.id), label)
        checksums = {"image_sha256": image_sha256, "label_sha256": label_sha256}
        return case.model_copy(update=checksums)

    def add(self, cases: Iterable[Case], part: str | None = None) -> None:
        """Make written cases exist, at once and for good.

        Args:
            cases: Written by :meth:`write`.
            part: Which part of the store, where several processes fill it: one process at a time
                may add to a part.
        """
        name = "cases.jsonl" if part is None else f"cases-{part}.jsonl"
        lines = "".join(case.model_dump_json() + "\n" for case in cases)
        append_lines(self.path / name, lines)
        self._forget()

    def merge(self) -> None:
        """Bring all parts into ``cases.jsonl``; while no other process adds to the store."""
        parts = self._parts()
        if parts:
            cases = [*self.cases.values(), *self.gone.values()]
            lines = "".join(case.model_dump_json() + "\n" for case in cases)
            write_atomically(self.path / "cases.jsonl", lines.encode())
            for file in parts:
                file.unlink()
            self._forget()

    def write_counts(self) -> None:
        """Bring the counts in ``store.json`` up to date: cases, labels, voxels, bytes."""
        cases = self.cases.values()
        files = [self.image_file(case.id) for case in cases]
        files += [self.label_file(case.id) for case in cases if case.has_label]
        counts = {
            "cases": len(cases),
            "labelled": sum(case.has_label for case in cases),
            "voxels": sum(math.prod(case.shape) * len(case.channels) for case in cases),
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
        }
        head = self._head() | {"counts": counts}
        write_atomically(self.path / "store.json", json.dumps(head, indent=2).encode())

    def image_file(self, case: str) -> Path:
        """Where the image of a case is."""
        return self.path / "images" / f"{case}.b2nd"

    def label_file(self, case: str) -> Path:
        """Where the label of a case is."""
        return self.path / "labels" / f"{case}.b2nd"

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("cases-*.jsonl"))

    def _forget(self) -> None:
        self.__dict__.pop("_cases", None)
        self.__dict__.pop("digest", None)

    def _head(self) -> dict[str, Any]:
        file = self.path / "store.json"
        if not file.is_file():
            raise StoreError(
                f"{self.path}: not a store (it has no store.json). "
                f"Make one with: voco prepare SOURCE --out {self.path}"
            )
        try:
            head = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise StoreError(f"{file}: damaged ({error}). Prepare the store anew.") from None
        if head.get("format") != FORMAT:
            raise StoreError(
                f"{file}: format {head.get('format')!r}, this version reads {FORMAT}. "
                "Prepare the store anew, or use the version of voco that made it."
            )
        return head

    def _read(self, file: Path, box: tuple[Shape3, Shape3] | None) -> np.ndarray:
        try:
            return read_array(file, box)
        except (RuntimeError, OSError) as error:
            state = "damaged" if file.exists() else "missing"
            raise StoreError(
                f"{file}: {state} ({error}). 'voco verify {self.path} --repair' makes it anew "
                "from its source."
            ) from None


def append_lines(file: Path, lines: str) -> None:
    """Append whole lines and flush them to the disk.

    A torn last line, left by a process that was killed in the middle of it, goes.
    """
    with file.open("a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        if stream.read(1) not in {b"", b"\n"}:
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def open_alike(paths: Sequence[Path | str]) -> tuple[Store, ...]:
    """Stores that one network can be shown: all prepared in the same way.

    Raises:
        StoreError: If one cannot be opened, or two were prepared differently.
    """
    stores = tuple(Store(path) for path in paths)
    for store in stores[1:]:
        if store.preprocessing != stores[0].preprocessing:
            raise StoreError(
                f"{stores[0].path} was prepared with {stores[0].preprocessing!r}, {store.path} "
                f"with {store.preprocessing!r}. Prepare both alike."
            )
    return stores


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _read_cases(file: Path) -> Iterator[Case]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    # What follows the last line end was being written when its process was killed.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            yield parse(Case, json.loads(line), f"{file}, line {number}")
        except (json.JSONDecodeError, ConfigError) as error:
            raise StoreError(
                f"{file}, line {number}: damaged ({error}). Delete the line; preparing the same "
                "sources again makes its case anew."
            ) from None
