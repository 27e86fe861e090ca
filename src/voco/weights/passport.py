"""What a weight file is, where it came from, and what of it fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from voco.backbone import BackboneConfig
from voco.backbones import BackboneSettings
from voco.errors import WeightsError
from voco.weights.fitting import assumed, fitted, outputs_in
from voco.weights.foreign import LeftOut, nearest
from voco.weights.handover import Handover, handover_file, read_handover
from voco.weights.loading import account
from voco.weights.reading import few, weights_digest
from voco.weights.sources import Source, read_source
from voco.weights.starting import check_settings, described, unloaded

_SETTINGS: TypeAdapter[Any] = TypeAdapter(BackboneSettings)

_OPEN = "not known: set backbone.merging to 'legacy' (MONAI up to 1.4) or 'fixed' (from 1.5 on)"


@dataclass(frozen=True)
class Fit:
    """How much of a backbone a file fills.

    Attributes:
        backbone: Its name.
        fits: Whether it can be loaded.
        said: The account, or what is against it.
        tensors: Of the encoder, or of its transformer alone: how many are filled, and how many
            there are.
        share: Of that part's parameters, from 0 to 1.
    """

    backbone: str
    fits: bool
    said: str
    tensors: tuple[int, int] = (0, 0)
    share: float = 0.0


@dataclass(frozen=True)
class Passport:
    """What is known of a weight file.

    Attributes:
        path: What was inspected.
        kind: ``run``, ``checkpoint``, ``ours`` (a file of ours without its ``handover.json``),
            ``published`` or ``unknown``.
        title: What it is, in words.
        layout: Name of the layout, if others made it.
        origin: Where such files come from, if others made it.
        doubt: What could not be confirmed about the layout.
        sha256: Of the file; of a checkpoint, of its ``state.json``.
        tensors: How many.
        parameters: How many numbers they hold, tables of indices left out.
        types: How many tensors of each type.
        key: Under which key of the file they lie; empty if at the top.
        stripped: Prefix that all names have.
        beside: Plain values that lie beside the tensors.
        unread: Classes of the objects beside them that were not made.
        backbone: Name of the backbone that they are of, if it is here.
        settings: Its settings, as far as they are told.
        assumed: Its settings that nothing tells, as they are common.
        outputs: Channels of the output layer; ``None`` if it is not in the file.
        merging: How a Swin UNETR merges patches, if known.
        changes: What is done to tensors beside renaming.
        left_out: What is not taken, and why.
        handover: What our own ``handover.json`` says, if there is one.
        fits: How much of which backbone it fills.
        nearest: What an unknown layout is most like.
    """

    path: str
    kind: str
    title: str
    layout: str
    origin: str
    doubt: str
    sha256: str | None
    tensors: int
    parameters: int
    types: dict[str, int]
    key: str
    stripped: str
    beside: dict[str, Any]
    unread: tuple[str, ...]
    backbone: str | None
    settings: dict[str, Any]
    assumed: dict[str, Any]
    outputs: int | None
    merging: str | None
    changes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    handover: dict[str, Any] | None
    fits: tuple[Fit, ...]
    nearest: str

    def __str__(self) -> str:
        lines = [self.path, *(f"  {name:<10}  {text}" for name, text in self._lines() if text)]
        lines += [
            f"  {'fits' if fit.fits else 'not'} {fit.backbone}: {fit.said}" for fit in self.fits
        ]
        if self.nearest:
            lines.append(f"  {self.nearest}")
        return "\n".join(lines)

    def _lines(self) -> list[tuple[str, str]]:
        types = ", ".join(f"{kind} ({count})" for kind, count in self.types.items())
        where = f"under '{self.key}'" if self.key else ""
        prefix = f"every name begins with '{self.stripped}'" if self.stripped else ""
        inputs = self.settings.get("in_channels")
        return [
            ("what", self.title),
            ("from", self.origin),
            ("doubt", self.doubt),
            *_of_handover(self.handover),
            ("sha256", self.sha256 or ""),
            ("tensors", f"{self.tensors}, {self.parameters / 1e6:.4g} M parameters, {types}"),
            ("where", "; ".join(part for part in (where, prefix) if part)),
            ("beside", ", ".join(_shown(self.beside))),
            ("unread", few(self.unread)),
            ("input", "" if inputs is None else f"{inputs} channel{'s' if inputs > 1 else ''}"),
            ("outputs", "" if self.outputs is None else str(self.outputs)),
            ("backbone", self._options()),
            ("assumed", ", ".join(f"{key} {value}" for key, value in self.assumed.items())),
            ("merging", self._merging()),
            ("changes", "; ".join(self.changes)),
            *(
                ("left out", f"{len(names)} ({reason}): {few(names)}")
                for reason, names in self.left_out
            ),
        ]

    def _options(self) -> str:
        """The settings that are not the backbone's defaults, as options of the command line."""
        if self.backbone is None:
            return ""
        usual = _SETTINGS.validate_python({"name": self.backbone}).model_dump()
        given = {**self.settings, **self.assumed}
        if self.merging == "legacy":
            given["merging"] = self.merging
        options = [
            f"--backbone.{key} {_option(value)}"
            for key, value in given.items()
            if key == "name" or usual[key] != value
        ]
        return " ".join(options)

    def _merging(self) -> str:
        if self.backbone != "swin_unetr":
            return ""
        known = {"legacy": "legacy: that of MONAI up to 1.4", "fixed": "fixed: MONAI from 1.5 on"}
        return known.get(self.merging or "", _OPEN)


def passport(path: Path, against: Sequence[str] = ()) -> Passport:
    """What is known of a run, a checkpoint or a weight file.

    Args:
        path: The folder or the file.
        against: Names of backbones to compare it with; the one that it is of if none is named.

    Raises:
        WeightsError: If it cannot be read, or not safely.
    """
    source = read_source(path)
    foreign, content = source.foreign, source.content
    family = None if foreign is None else foreign.family
    handover = read_handover(path) if handover_file(path) is not None else None
    own = source.settings.get("name")
    names = against or ([own] if own else [])
    unknown = not source.known and foreign is None
    return Passport(
        path=str(path),
        kind=_kind(source, handover),
        title=_title(source, handover),
        layout="" if family is None else family.name,
        origin="" if family is None else family.origin,
        doubt="" if family is None else family.doubt,
        sha256=weights_digest(path),
        tensors=len(content.tensors),
        parameters=sum(t.numel() for t in content.tensors.values() if t.is_floating_point()),
        types=_types(content.tensors),
        key=content.key,
        stripped="" if foreign is None else foreign.stripped,
        beside=content.facts,
        unread=content.unread,
        backbone=own,
        settings=dict(source.settings),
        assumed=assumed(own, source.settings) if own and not source.whole else {},
        outputs=outputs_in(source.tensors, own) if own else None,
        merging=source.merging,
        changes=() if foreign is None else foreign.changes,
        left_out=() if foreign is None else foreign.left_out,
        handover=None if handover is None else _brief(handover),
        fits=tuple(_fit(source, name) for name in names),
        nearest=nearest(content.tensors) if unknown else "",
    )


def _kind(source: Source, handover: Handover | None) -> str:
    if handover is not None:
        return "run"
    if source.foreign is not None:
        return "published"
    if source.trained is not None:
        return "checkpoint"
    return "ours" if source.known else "unknown"


def _title(source: Source, handover: Handover | None) -> str:
    if handover is not None:
        kind = "pre-training" if handover.kind == "pretraining" else handover.kind
        return f"a run of voco {handover.voco_version}: {kind}"
    if source.foreign is not None:
        return source.foreign.family.title
    return {
        "checkpoint": "a checkpoint of voco, with all that its method trains",
        "ours": "a weight file of voco without its handover.json",
        "unknown": "a layout that is not known",
    }[_kind(source, handover)]


def _brief(handover: Handover) -> dict[str, Any]:
    kept = {"kind", "voco_version", "method", "task", "step", "seed", "trained", "classes", "data"}
    kept |= {"preprocessing", "intensity", "channels", "modalities", "library", "library_version"}
    return handover.model_dump(mode="json", include=kept)


def _of_handover(handover: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if handover is None:
        return []
    method = handover["method"] or handover["task"] or {}
    data = [f"{one['cases']} cases of store {one['digest'][:12]}" for one in handover["data"]]
    return [
        ("method", ", ".join(str(method[key]) for key in ("name", "variant") if key in method)),
        ("steps", f"{handover['step']}, seed {handover['seed']}"),
        ("data", ", ".join(data)),
        ("modality", ", ".join(handover["modalities"])),
        ("trained", ", ".join(handover["trained"])),
        ("classes", ", ".join(map(str, handover["classes"].values()))),
        ("spacing", _spacing(handover["preprocessing"].get("spacing_mm"))),
        ("intensity", ", ".join(f"{key} {value}" for key, value in handover["intensity"].items())),
        ("library", f"{handover['library']} ({handover['library_version']})"),
    ]


def _spacing(spacing: Sequence[float] | None) -> str:
    return "each scan's own" if spacing is None else " x ".join(map(str, spacing)) + " mm"


def _types(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return dict(kinds.most_common())


def _shown(beside: Mapping[str, Any]) -> list[str]:
    return [
        key if isinstance(value, Mapping) or len(str(value)) > 40 else f"{key} {value}"
        for key, value in list(beside.items())[:8]
    ]


def _option(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _fit(source: Source, name: str) -> Fit:
    """How much of a backbone a file fills, with the settings that suit it best."""
    if source.foreign is not None and not source.known:
        return Fit(name, fits=False, said="no backbone here has this architecture")
    if source.known and name != source.settings["name"]:
        return Fit(name, fits=False, said=f"the file is of '{source.settings['name']}'")
    try:
        config = source.config(source.merging) if source.known else _usual(name)
        backbone = _built(config, source)
        notes = check_settings(source, backbone) if source.merging else ()
        tensors, changes = fitted(source.tensors, backbone, source.grid)
    except (WeightsError, ValueError) as error:
        return Fit(name, fits=False, said=str(error))
    new, counted = unloaded(source, tensors, backbone)
    found = account(backbone, tensors, new=new, counted=counted)
    found = described(found, source, (*changes, *notes))
    if found.refused:
        said = f"does not fit with its usual settings:\n{found.complaint()}"
        if source.known:
            said = f"does not fit:\n{found.complaint()}"
        return Fit(name, fits=False, said=said, tensors=found.tensors, share=found.share)
    return Fit(name, fits=True, said=found.counts(), tensors=found.tensors, share=found.share)


def _usual(name: str) -> BackboneConfig:
    return _SETTINGS.validate_python({"name": name})


def _built(config: BackboneConfig, source: Source) -> Any:  # noqa: ANN401
    outputs = outputs_in(source.tensors, source.settings["name"]) if source.known else None
    with torch.random.fork_rng(devices=()):
        return config.build(outputs or 1)
