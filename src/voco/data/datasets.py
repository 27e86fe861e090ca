"""Descriptions of known data sets: one YAML file each, read into :class:`Dataset`.

A description says how the owners of a data set lay it out on disk, how many cases it has, what its
labels mean and which convention the published figures follow. It holds no code: the files are
found by :mod:`voco.data.layouts`, and read like any other scan. Settings of training are not in
it but in the recipes that it names.
"""

import re
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from voco.config import Config, parse, read_yaml
from voco.shapes import Spacing
from voco.shipped import shipped, shipped_or_own

Patterns = dict[str, str]
"""Channel names and the pattern of each channel's files."""

WHOLE = "image"
"""Name of the only channel of an image whose description names no channels."""


FIELD = re.compile(r"\{([A-Za-z]\w*)(:d)?\}|(\*)")
"""What stands for text in a pattern: a name, a name of digits, or anything."""


class Part(Config):
    """Cases of one kind: files that are found and paired in the same way.

    In patterns, ``{name}`` stands for one or more characters and ``{name:d}`` for digits; neither
    goes beyond a ``/``, and a name that comes twice stands for the same text. ``*`` is anything
    up to the next ``/``. Paths are relative to the folder of the data set. An ending ``.nii`` or
    ``.nii.gz`` fits both.
    """

    image: str | Patterns
    """Pattern of the images; or one for each channel, the first of which tells the cases."""
    label: str | None = None
    """Pattern of the label; may use names from the image's pattern only."""
    kind: Literal["file", "pictures", "dicom"] = "file"
    """What a pattern of images leads to: a file, a folder of PNG or JPEG slices of one scan, or
    a folder of DICOM slices of one scan."""
    case: str = "{stem}"
    """Id of a case, made from the names; ``{stem}`` is the image's file name without ending."""
    count: PositiveInt | None = None
    """How many cases the owners distribute; ``None`` where that is not known."""
    optional: bool = False
    """Whether there may be none of them at all (the unlabelled cases of a challenge)."""
    split: Literal["train", "validation", "test"] | None = None
    """Split of all of them, whatever a file of splits says."""

    @property
    def images(self) -> Patterns:
        """Channels and patterns."""
        return {WHOLE: self.image} if isinstance(self.image, str) else self.image

    @property
    def names(self) -> set[str]:
        """Names that the images' pattern gives."""
        return {"stem", *_names(next(iter(self.images.values())))}

    @model_validator(mode="after")
    def _uses_known_names(self) -> "Part":
        if not self.images:
            raise ValueError("image names no channel")
        others = list(self.images.values())[1:]
        for pattern in (*others, *([self.label] if self.label else []), self.case):
            unknown = {*_names(pattern), *re.findall(r"\*", pattern)} - self.names
            if unknown:
                raise ValueError(
                    f"'{pattern}' uses {', '.join(sorted(unknown))}, which the pattern of the "
                    f"images does not give; it gives {', '.join(sorted(self.names))}"
                )
        return self


class Layout(Config):
    """One way in which a data set lies on disk."""

    name: str
    """Whose arrangement it is."""
    parts: tuple[Part, ...] = Field(min_length=1)
    """Its kinds of cases."""


class Reported(Config):
    """How published figures were measured."""

    figures: str
    """Which figures."""
    grid: Literal["native", "resampled"] | None = None
    """Grid on which masks were compared: the scan's own, or that of the network's input; ``None``
    where no masks were."""
    background: bool | None = None
    """Whether the background counts as a structure in means."""
    note: str = ""
    """What else is particular to them."""


class Dataset(Config):
    """A data set as its owners distribute it, and what one needs to know to use it."""

    title: str
    """Its name in full."""
    url: str
    """Where its owners offer it."""
    licence: str
    """Terms, as far as they are known."""
    use: Literal["pre-training", "segmentation", "classification"]
    """What the paper uses it for."""
    modality: str | None = None
    """``CT``, ``MR``; ``None`` where the numbers are not in the units of a modality."""
    channels: tuple[str, ...] = ()
    """Names of the entries of a fourth axis, where a file holds several channels."""
    layouts: tuple[Layout, ...] = Field(min_length=1)
    """How it may lie on disk; the owners' own arrangement comes first."""
    patient: str | None = None
    """Patient of a case, made from the names in the patterns; ``None`` where nothing tells."""
    target: str | None = None
    """Class of a whole scan, made from the names in the patterns."""
    targets: dict[str, str] = Field(default_factory=dict)
    """Classes of whole scans and what they mean; no other is taken."""
    labels: dict[int, str] = Field(default_factory=dict)
    """Label values, as the files hold them, and what they are; no other value is taken."""
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Unions of label values that are evaluated instead of single labels."""
    spacing_mm: Spacing | None = None
    """Millimetres per voxel that the recipes expect a store to have; ``None``: the scan's own."""
    foreground: bool = False
    """Whether the recipes expect volumes that are cut to the body."""
    split: str | None = None
    """File of splits that comes along, in ``splits/``; ``None``: none is published or known, so
    fine-tuning holds cases out by the recipe's rule."""
    split_columns: dict[str, str] = Field(default_factory=dict)
    """Names in the patterns and the columns that hold them, in public files of splits."""
    recipes: tuple[str, ...] = ()
    """Recipes that come along and are meant for it."""
    reported: tuple[Reported, ...] = ()
    """How published figures were measured."""
    traps: tuple[str, ...] = ()
    """What has led people astray."""
    unconfirmed: tuple[str, ...] = ()
    """What of all this could not be checked against the owners' own word."""

    @field_validator("labels")
    @classmethod
    def _has_a_background(cls, labels: dict[int, str]) -> dict[int, str]:
        if labels and labels.get(0) != "background":
            raise ValueError("label 0 must be there and be called background")
        return dict(sorted(labels.items()))

    @model_validator(mode="after")
    def _uses_known_names(self) -> "Dataset":
        parts = [part for layout in self.layouts for part in layout.parts]
        for key, text in (("patient", self.patient), ("target", self.target)):
            unknown = {name for part in parts for name in _names(text or "") - part.names}
            if unknown:
                raise ValueError(f"{key} uses {sorted(unknown)}, which not all patterns give")
        return self

    @model_validator(mode="after")
    def _regions_are_of_labels(self) -> "Dataset":
        for name, values in self.regions.items():
            if unknown := sorted(set(values) - set(self.labels)):
                raise ValueError(f"region {name} is made of {unknown}, which are no labels")
        return self


def _names(pattern: str) -> set[str]:
    return {field[1] for field in FIELD.finditer(pattern) if field[1]}


def read_dataset(name: str) -> Dataset:
    """The description of a data set.

    Args:
        name: Of one that comes along, or the path of a YAML file.

    Raises:
        UsageError: If there is no such description; names the nearest.
        ConfigError: If the file is not a valid description.
    """
    file = shipped_or_own("data set", name)
    return parse(Dataset, read_yaml(file), str(file))


def catalogue() -> str:
    """Known data sets, one line each: name, cases, recipes, title."""
    rows = []
    for name in shipped("data set"):
        dataset = read_dataset(name)
        counts = [part.count for part in dataset.layouts[0].parts if not part.optional]
        cases = "?" if None in counts else str(sum(filter(None, counts)))
        rows.append((name, f"{cases} cases", ", ".join(dataset.recipes), dataset.title))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )
