"""The recipe of a comparison: what differs between its rows, and what is the same for all.

As written, a recipe may name other recipes and give changes to them::

    pretraining: {steps: 600, batch_size: 4}         # for all methods, over their own recipes
    methods:
      voco: hippocampus-pretrain                     # a shipped recipe, or a YAML file
      mae: {recipe: mae3d, method: {crop: [32, 48, 32]}}
    finetuning: hippocampus-finetune

:func:`read_comparison` puts the parts together, the later over the earlier: a method's recipe,
``pretraining``, the method's own changes. What comes out names no other file and is written into
the comparison's folder: enough to run it again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from voco.backbones import BackboneSettings
from voco.config import Config, parse, read_yaml
from voco.errors import ConfigError
from voco.evaluation.standing import SCRATCH
from voco.recipes import FinetuneConfig, PretrainConfig

_LARGEST_SHARE = 1.0


def _several(value: Any) -> Any:  # noqa: ANN401 (whatever YAML knows)
    """One value stands for a list of one."""
    return value if isinstance(value, list | tuple) or value is None else [value]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]+([._-]?[A-Za-z0-9]+)*$")]
"""A name that may be part of the name of a folder."""

Labels = PositiveInt | Annotated[float, Field(gt=0, lt=_LARGEST_SHARE)] | Literal["all"]
"""How many labelled cases: a count, a share, or all."""

Places = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]
Handover = Literal["encoder", "full"]


class UnseenScans(Config):
    """Scans that nothing has seen, and what is true of them."""

    images: Places
    """Files, folders or lists of scans, as ``voco predict`` takes them."""
    references: str
    """A folder of masks named like the scans, or a CSV of targets."""
    modality: str | None = None
    """What the scans are, for formats that do not say."""


class ComparisonConfig(Config):
    """A recipe for ``voco compare``."""

    methods: dict[Name, PretrainConfig] = Field(min_length=1)
    """The rows, by a name of your choice: a pre-training recipe each. Its ``seed`` and
    ``backbone`` are replaced by those of the comparison."""
    backbones: dict[Name, BackboneSettings] = Field(min_length=1)
    """Networks, by a name of your choice. Every method is run on each that it fits."""
    pretrain_data: Places
    """Stores to pre-train on. Cases of the split ``test`` are never used."""
    data: Places
    """Stores with labelled cases to fine-tune on."""
    test: UnseenScans | None = None
    """What is predicted and measured; by default the cases of the split ``test`` in ``data``, from
    the files that they were prepared from, on their original grids."""
    finetuning: FinetuneConfig
    """The one fine-tuning for all rows. Its ``backbone``, ``labels``, ``seed`` and ``transfer``
    are replaced by those of the comparison."""
    seconds: PositiveFloat | None = None
    """Budget of a pre-training in seconds of training, instead of ``steps``: how many steps fit
    in is measured once for each method and backbone (without looks at held-out cases and without
    checkpoints), written down, and that many are run."""
    labels: Annotated[tuple[Labels, ...], BeforeValidator(_several), Field(min_length=1)] = ("all",)
    """How many labelled cases to fine-tune on: counts, shares below 1, or ``all``."""
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_several), Field(min_length=1)] = (
        0,
        1,
        2,
    )
    """Seeds of fine-tuning; each also chooses which cases are labelled, for all rows alike."""
    pretraining_seed: NonNegativeInt | Literal["each"] = 0
    """Seed of the one pre-training that all fine-tunings of a row begin with; ``each``: a
    pre-training for every fine-tuning, with the same seed, so that the figures hold for other
    pre-trainings as well."""
    handover: Annotated[tuple[Handover, ...], BeforeValidator(_several), Field(min_length=1)] = (
        "encoder",
        "full",
    )
    """What fine-tuning takes over, in rows of their own: the ``encoder`` alone, or, from methods
    that train a decoder as well, both (``full``)."""
    against: Name | None = None
    """A row that the others are tested against, beside scratch."""
    leaks: Literal["refuse", "exclude", "report"] = "refuse"
    """What to do if a scan that is measured on is also learnt from, under whatever name: end with
    an error; leave its copies out of pre-training; or go on, and say so with every value."""
    tolerance_mm: NonNegativeFloat = 2.0
    """Distance within which two surfaces agree (NSD)."""
    keep: Literal["tables", "weights", "all"] = "weights"
    """What stays of finished jobs: ``all``; all but the training states (``weights``); of
    fine-tuning the tables alone, without weights and predictions (``tables``)."""

    @model_validator(mode="after")
    def _names_are_clear(self) -> "ComparisonConfig":
        if SCRATCH in self.methods:
            raise ValueError(f"methods: '{SCRATCH}' is the name of the rows without pre-training")
        if self.against is not None and self.against not in self.methods:
            raise ValueError(
                f"against: '{self.against}' is no row; the methods are {', '.join(self.methods)}"
            )
        for name in ("labels", "seeds", "handover"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value is given twice: {values}")
        return self

    @model_validator(mode="after")
    def _conditions_are_the_same(self) -> "ComparisonConfig":
        for key in ("holdout",) if self.seconds else ("steps", "holdout"):
            values = {name: getattr(method, key) for name, method in self.methods.items()}
            if len(set(values.values())) > 1:
                raise ValueError(
                    f"{key} differs between the methods ({values}), so they would not be compared "
                    f"on equal terms. Set pretraining.{key}"
                )
        return self


RAW_KEYS = ("methods", "pretraining", *list(ComparisonConfig.model_fields)[1:])
"""Keys of a recipe as written."""


def read_comparison(
    values: Mapping[str, Any], find: Callable[[str], Path], source: str
) -> ComparisonConfig:
    """The complete recipe, from one as written.

    Args:
        values: As read from YAML.
        find: The file of a recipe that is named in it.
        source: Where the values came from; named in errors.

    Raises:
        ConfigError: Naming every wrong key or value.
    """
    values = dict(values)
    common = _mapping(values.pop("pretraining", None) or {}, "pretraining", source)
    for key in {"method", "backbone", "seed"} & common.keys():
        way_out = {"method": "methods", "backbone": "backbones", "seed": "pretraining_seed"}[key]
        raise ConfigError(f"{source}: pretraining.{key}: set '{way_out}' instead.")
    backbones = _mapping(values.get("backbones") or {}, "backbones", source)
    methods = _mapping(values.get("methods") or {}, "methods", source)
    placeholder = {"backbone": next(iter(backbones.values()), {})}
    values["methods"] = {
        name: _assembled(entry, common, find, f"{source}: methods.{name}") | placeholder
        for name, entry in methods.items()
    }
    if "finetuning" in values:
        tuning = _assembled(values["finetuning"], {}, find, f"{source}: finetuning")
        values["finetuning"] = tuning | placeholder
    return parse(ComparisonConfig, values, source)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with changes; what changes its ``name`` leaves its old settings behind."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return new.get("name", old.get("name")) == old.get("name")


def _assembled(
    entry: Any,  # noqa: ANN401 (whatever YAML knows)
    common: Mapping[str, Any],
    find: Callable[[str], Path],
    place: str,
) -> dict[str, Any]:
    own = {"recipe": entry} if isinstance(entry, str) else dict(_mapping(entry, "", place))
    name = own.pop("recipe", None)
    base = read_yaml(find(name)) if name is not None else {}
    return merged(merged(base, common), own)


def _mapping(value: Any, key: str, place: str) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        name = f": {key}" if key else ""
        raise ConfigError(f"{place}{name}: expected keys and values, found {value!r}.")
    return value
