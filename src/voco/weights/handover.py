"""``weights.safetensors`` and ``handover.json``: a trained network on disk."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from voco import __version__
from voco.backbone import Backbone, Part
from voco.backbones import BackboneSettings
from voco.config import Config, parse
from voco.data.intensity import Intensity
from voco.data.store import Preprocessing, write_atomically
from voco.engine.checkpoint import is_checkpoint
from voco.errors import ConfigError, WeightsError
from voco.weights.seen import Guarded, Seen, Stage

FORMAT = 1
"""Version of both files; another one is refused with a way out."""

WEIGHTS_FILE, HANDOVER_FILE = "weights.safetensors", "handover.json"

TASK_PREFIX = "task."
"""What the names of tensors begin with that belong to a task and not to the network."""


class TrainingData(Config):
    """A store that was trained on."""

    digest: str
    """Of the store (:attr:`voco.data.store.Store.digest`)."""
    cases: NonNegativeInt
    """How many of its cases were trained on."""


class Handover(Config):
    """What a weight file is, where it came from, and what it expects."""

    format: Literal[1] = 1
    """Version of this file."""
    voco_version: str
    """Version of voco that wrote it."""
    kind: Stage
    """What the network was trained for."""
    backbone: BackboneSettings
    """Settings of the backbone."""
    out_channels: PositiveInt
    """Channels of the output layer."""
    library: str
    """Import path of the network's class."""
    library_version: str
    """Version of the package that the class is from."""
    library_arguments: dict[str, Any]
    """The class called with these builds the network."""
    trained: tuple[Part, ...]
    """Parts of the network that were trained; the file holds these and no others."""
    prefixes: dict[Part, tuple[str, ...]]
    """Beginnings of the tensors' names, for each part."""
    method: dict[str, Any] | None = None
    """Settings of the pre-training method."""
    task: dict[str, Any] | None = None
    """Settings of the task that the network was fine-tuned for."""
    step: NonNegativeInt
    """Optimizer steps done."""
    seed: NonNegativeInt
    """The run's seed."""
    preprocessing: Preprocessing
    """How scans must be prepared."""
    intensity: Intensity
    """How intensities must be brought to the network's range."""
    channels: tuple[str, ...] = ()
    """Names of the channels of a scan; empty where they were not kept."""
    modalities: tuple[str, ...] = ()
    """Modalities that were trained on; empty where they were not kept."""
    classes: dict[int, str] = Field(default_factory=dict)
    """Classes by number, for segmentation and classification."""
    data: tuple[TrainingData, ...] = ()
    """What was trained on."""
    seen: tuple[Seen, ...] | None = None
    """The scans of all trainings so far, those before included; ``None`` where they were not
    kept."""
    guarded: tuple[Guarded, ...] = ()
    """Stores from whose scans the training was kept away."""
    left_out: NonNegativeInt = 0
    """How many cases were not trained on for that reason."""
    weights_sha256: str
    """Of the weight file."""


def export(  # noqa: PLR0913, D417 (one argument for each fact of the file, described there)
    folder: Path,
    backbone: Backbone,
    *,
    kind: Stage,
    trained: tuple[Part, ...],
    step: int,
    seed: int,
    preprocessing: Preprocessing,
    intensity: Intensity,
    method: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    channels: tuple[str, ...] = (),
    modalities: tuple[str, ...] = (),
    classes: dict[int, str] | None = None,
    data: tuple[TrainingData, ...] = (),
    seen: tuple[Seen, ...] | None = None,
    guarded: tuple[Guarded, ...] = (),
    left_out: int = 0,
    task_tensors: Mapping[str, Tensor] | None = None,
) -> Handover:
    """Write ``weights.safetensors`` and ``handover.json``; the same arguments give the same bytes.

    Args:
        folder: Where; made if it is not there.
        backbone: The network. Only its ``trained`` parts are written.
        task_tensors: Tensors of the task that are not the network's, such as a classifier; written
            under names that begin with ``task.``. All other arguments: see :class:`Handover`.

    Raises:
        WeightsError: If a tensor is not finite, or nothing was trained.
    """
    prefixes: dict[Part, tuple[str, ...]] = {part: backbone.prefixes(part) for part in trained}
    content = _serialise(backbone, prefixes, task_tensors or {})
    handover = Handover(
        **_network(backbone),
        kind=kind,
        trained=trained,
        prefixes=prefixes,
        method=method,
        task=task,
        step=step,
        seed=seed,
        preprocessing=preprocessing,
        intensity=intensity,
        channels=channels,
        modalities=modalities,
        classes=classes or {},
        data=data,
        seen=seen,
        guarded=guarded,
        left_out=left_out,
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    return _write(folder, content, handover)


def handover_file(path: Path) -> Path | None:
    """The ``handover.json`` that belongs to a run folder or a weight file, if there is one."""
    if not path.is_dir() and path.name not in {WEIGHTS_FILE, HANDOVER_FILE}:
        return None
    file = (path if path.is_dir() else path.parent) / HANDOVER_FILE
    return file if file.is_file() else None


def seen_before(weights: Path | None) -> tuple[Seen, ...]:
    """The scans that weights have learnt from; none for random weights.

    Raises:
        WeightsError: If their ``handover.json`` is damaged, or of another version.
    """
    if weights is None:
        return ()
    if is_checkpoint(weights):  # what the run has seen is written when it ends
        weights = weights.parent.parent
    known = None if handover_file(weights) is None else read_handover(weights).seen
    return (Seen(stage="unknown"),) if known is None else known


def read_handover(path: Path) -> Handover:
    """The ``handover.json`` in a run folder, or beside a weight file.

    Raises:
        WeightsError: If it is missing, damaged, or of another version.
    """
    file = handover_file(path)
    if file is None:
        raise WeightsError(
            f"{path}: has no {HANDOVER_FILE}. Name the folder of a finished run, which holds "
            f"{WEIGHTS_FILE} and {HANDOVER_FILE}."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: damaged ({error}). Export the run anew.") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise WeightsError(
            f"{file}: format {found!r}, this version reads {FORMAT}. Use the version of voco "
            "that wrote it, or export the run anew."
        )
    try:
        return parse(Handover, values, str(file))
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def _network(backbone: Backbone) -> dict[str, Any]:
    kind = type(backbone.network)
    return {
        "voco_version": __version__,
        "backbone": backbone.config,
        "out_channels": backbone.out_channels,
        "library": f"{kind.__module__}.{kind.__qualname__}",
        "library_version": importlib.metadata.version(kind.__module__.partition(".")[0]),
        "library_arguments": backbone.library_arguments,
    }


def _write(folder: Path, content: bytes, handover: Handover) -> Handover:
    text = handover.model_dump_json(indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, content)
    write_atomically(folder / HANDOVER_FILE, f"{text}\n".encode())
    return Handover.model_validate_json(text)  # as it will be read: lists, where tuples were


def _serialise(
    backbone: Backbone,
    prefixes: Mapping[Part, tuple[str, ...]],
    task_tensors: Mapping[str, Tensor],
) -> bytes:
    wanted = tuple(prefix for part in prefixes.values() for prefix in part)
    state = backbone.network.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if name.startswith(wanted)}
    if not tensors:
        raise WeightsError("No part of the network was trained: there is nothing to hand on.")
    tensors |= {f"{TASK_PREFIX}{name}": tensor for name, tensor in task_tensors.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"{name} is not finite: the run diverged, its weights are of no use."
            )
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": FORMAT, "backbone": backbone.config.model_dump()}
    # One entry: safetensors writes several in random order, and equal runs give equal files.
    return safetensors.torch.save(ready, {"voco": json.dumps(about)})
