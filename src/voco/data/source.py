"""What a case is made from, before anything is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from voco.data.stacking import Stack


@dataclass(frozen=True)
class Source:
    """The files of one case and what is stated about it.

    Attributes:
        id: Made from the path below what the user named; usable as a file name, unique within
            one call of :func:`voco.data.sources.discover`.
        images: Image files; several are channels. For DICOM the folder (or multi-frame file).
        label: Label file.
        split: ``train``, ``validation``, ``test``, or ``None``.
        group: Patient or study.
        classes: Label values and their names.
        modality: As stated by a list or a dataset; ``None`` for nothing.
        target: Class of the whole volume.
        channels: Names of the channels; empty for nothing stated.
        stack: Which slices, for DICOM.
        member: Which volume of an ``.npz``, such as ``train/12``.
        guessed: Nobody states that it is an image, so one that looks like a mask is refused.
        slices: Pictures that are stacked into one volume, in order; ``images`` is their folder.
        dataset: The described data set that it is of (see :mod:`voco.data.datasets`). Then a
            label that holds a value other than ``classes`` is refused.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    split: str | None = None
    group: str | None = None
    classes: dict[int, str] = field(default_factory=dict)
    modality: str | None = None
    target: int | str | None = None
    channels: tuple[str, ...] = ()
    stack: Stack | None = None
    member: str | None = None
    guessed: bool = False
    slices: tuple[Path, ...] = ()
    dataset: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is read from, for checksums."""
        images = self.slices or (self.images if self.stack is None else self.stack.files)
        return (*images, *([self.label] if self.label else []))


class Refused(NamedTuple):
    """Something that cannot be taken, and why."""

    path: Path
    reason: str
    passed_over: bool = False
    """Whether nothing is wrong with it: its layout says that it is no case."""


Found = tuple[list[Source], list[Refused]]
"""What a place holds: cases, and what cannot be taken."""
