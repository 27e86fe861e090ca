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
exists only once its line is in ``cases.jsonl``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
from jaxtyping import Integer, Shaped
from pydantic import Field

from voco.config import Config, parse
from voco.errors import StoreError
from voco.geometry import Grid
from voco.shapes import Shape3, Spacing

FORMAT = 1
"""Version of the layout; a store of another version is refused with a way out."""

_CHUNK, _BLOCK = 96, 32


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
    """Path of the file or folder that it was made from."""
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
            return store
        for folder in (path, path / "images", path / "labels"):
            folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "preprocessing": preprocessing.model_dump(mode="json")}
        write_atomically(path / "store.json", json.dumps(head, indent=2).encode())
        return cls(path)

    @cached_property
    def cases(self) -> Mapping[str, Case]:
        """Cases by id, in the order in which they were added; the last line of an id counts."""
        file = self.path / "cases.jsonl"
        if not file.exists():
            return {}
        cases: dict[str, Case] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                case = parse(Case, json.loads(line), f"{file}, line {number}")
            except json.JSONDecodeError:
                # A process killed in the middle of a line: the case was never finished.
                continue
            cases[case.id] = case
        return cases

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
        return self._part(self.path / "images" / f"{case}.b2nd", box, leading=1)

    def read_label(
        self, case: str, box: tuple[Shape3, Shape3] | None = None
    ) -> Integer[np.ndarray, "_ _ _"]:
        """Stored label values of a box (start, stop), or of the whole volume.

        Raises:
            StoreError: If the case has no label, or the file is damaged.
        """
        return self._part(self.path / "labels" / f"{case}.b2nd", box, leading=0)

    def write(
        self,
        case: Case,
        image: Integer[np.ndarray, "c x y z"],
        label: Integer[np.ndarray, "x y z"] | None = None,
    ) -> None:
        """Write the arrays of a case, whole or not at all. :meth:`add` then makes it exist."""
        write_array(self.path / "images" / f"{case.id}.b2nd", image)
        if label is not None:
            write_array(self.path / "labels" / f"{case.id}.b2nd", label)

    def add(self, cases: Iterable[Case]) -> None:
        """Make written cases exist. One process at a time may call this on a store."""
        lines = "".join(case.model_dump_json() + "\n" for case in cases)
        file = self.path / "cases.jsonl"
        old = file.read_bytes() if file.exists() else b""
        if old and not old.endswith(b"\n"):
            old = old[: old.rfind(b"\n") + 1]  # the torn last line of a killed process
        write_atomically(file, old + lines.encode())
        self.__dict__.pop("cases", None)
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

    def _part(self, file: Path, box: tuple[Shape3, Shape3] | None, leading: int) -> np.ndarray:
        try:
            array = blosc2.open(str(file), mode="r", dparams={"nthreads": 1})
        except (RuntimeError, FileNotFoundError, OSError) as error:
            state = "damaged" if file.exists() else "missing"
            raise StoreError(
                f"{file}: {state} ({error}). 'voco verify {self.path} --repair' makes it anew "
                "from its source."
            ) from None
        if not isinstance(array, blosc2.NDArray):
            raise StoreError(f"{file}: holds {type(array).__name__}, not an array.")
        if box is None:
            return np.asarray(array[:])
        start, stop = box
        spatial = array.shape[leading:]
        if any(a < 0 or b > n or a >= b for a, b, n in zip(start, stop, spatial, strict=True)):
            raise StoreError(f"{file}: box {start} to {stop} is not inside its {spatial} voxels.")
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.asarray(array[(slice(None),) * leading + cut])  # pyright: ignore[reportArgumentType]


def write_array(file: Path, array: Shaped[np.ndarray, "..."]) -> None:
    """Write an array chunked and compressed; whole or not at all."""
    leading = (1,) * (array.ndim - 3)
    chunks = leading + tuple(min(_CHUNK, side) for side in array.shape[-3:])
    blocks = leading + tuple(min(_BLOCK, side) for side in array.shape[-3:])
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    blosc2.asarray(
        np.ascontiguousarray(array),  # pyright: ignore[reportArgumentType]
        urlpath=str(temporary),
        mode="w",
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
    )
    temporary.replace(file)


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
