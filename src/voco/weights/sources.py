"""Weights to start from, whoever made them: a run, a checkpoint of a run, or a file of others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from voco.backbone import BackboneConfig, Part
from voco.backbones import BackboneSettings
from voco.backbones.swin_unetr import Merging, SwinUNETRConfig
from voco.config import read_yaml
from voco.engine.checkpoint import is_checkpoint, read_task
from voco.errors import CheckpointError, ConfigError, WeightsError
from voco.method import Method
from voco.methods import MethodSettings
from voco.shapes import Shape3
from voco.weights.fitting import assumed, settings_in
from voco.weights.foreign import Foreign, identify
from voco.weights.handover import handover_file, read_handover
from voco.weights.loading import load_weights
from voco.weights.reading import Content, read_content

_PATCH = 16


@dataclass(frozen=True)
class Source:
    """What can be started from.

    Attributes:
        path: Where it is.
        content: The file as it was read; of a checkpoint, the tensors of the whole task.
        tensors: Under the names of a backbone's network, as far as the layout is known.
        settings: Settings of that backbone, as far as they are known.
        whole: Whether those are all settings, so that every one can be compared.
        trained: Parts that were trained; ``None`` if that is not said.
        foreign: If others made it, and its layout is known.
        merging: How a Swin UNETR merges patches; ``None`` if that is not known.
    """

    path: Path
    content: Content
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    whole: bool = False
    trained: tuple[Part, ...] | None = None
    foreign: Foreign | None = None
    merging: Merging | None = None

    @property
    def known(self) -> bool:
        """Whether it is known which network the tensors are of."""
        return bool(self.settings)

    @property
    def grid(self) -> Shape3 | None:
        """Tokens along each axis that position codes are for, if that is known."""
        size = self.settings.get("size") if self.whole else None
        return None if size is None else tuple(side // _PATCH for side in size)

    def config(self, merging: Merging | None = None) -> BackboneConfig:
        """Settings of the backbone whose network the tensors are of.

        Args:
            merging: Of a Swin UNETR, if it is not known.

        Raises:
            WeightsError: If they are of none.
        """
        values = {**assumed(self.settings["name"], self.settings), **self.settings}
        if values["name"] == "swin_unetr":
            values["merging"] = merging or self.merging
        try:
            return _SETTINGS.validate_python(values)
        except ValidationError as error:
            raise WeightsError(f"{self.path}: {error.errors()[0]['msg']}.") from None


_SETTINGS: TypeAdapter[Any] = TypeAdapter(BackboneSettings)
_METHODS: TypeAdapter[Any] = TypeAdapter(MethodSettings)


def read_source(path: Path) -> Source:
    """What lies at a path: a run folder, a checkpoint of a run, or a weight file.

    Raises:
        WeightsError: If it cannot be read, or not safely.
    """
    if is_checkpoint(path):
        return _of_checkpoint(path)
    content = read_content(path)
    if handover_file(path) is not None:
        handover = read_handover(path)
        return _of_ours(path, content, handover.backbone, handover.trained)
    about = content.about.get("backbone")
    if about is not None:
        try:
            return _of_ours(path, content, _SETTINGS.validate_python(about))
        except ValidationError:
            pass  # of another version: the layout may still be known
    foreign = identify(content)
    if foreign is None:
        return Source(path, content, content.tensors, {})
    settings: dict[str, Any] = {}
    name = foreign.family.backbone
    if name is not None:
        settings = {"name": name, **settings_in(foreign.tensors, name)}
    return Source(
        path, content, foreign.tensors, settings, foreign=foreign, merging=foreign.merging
    )


def _of_ours(
    path: Path,
    content: Content,
    config: BackboneConfig,
    trained: tuple[Part, ...] | None = None,
) -> Source:
    merging = (config.merging or "fixed") if isinstance(config, SwinUNETRConfig) else None
    return Source(
        path,
        content,
        content.tensors,
        config.model_dump(),
        whole=True,
        trained=trained,
        merging=merging,
    )


def _of_checkpoint(path: Path) -> Source:
    method = method_of(path)
    tensors = checkpoint_tensors(path)
    load_weights(method, tensors)
    backbone, parts = method.handover(), method.trained_parts()
    prefixes = tuple(prefix for part in parts for prefix in backbone.prefixes(part))
    state = backbone.network.state_dict()
    trained = {name: state[name] for name in state if name.startswith(prefixes)}
    source = _of_ours(path, Content(tensors), backbone.config, parts)
    return Source(**{**vars(source), "tensors": trained})


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the method in a checkpoint: student, teacher, heads, queues.

    Raises:
        WeightsError: If it is damaged.
    """
    try:
        return read_task(path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None


def method_of(path: Path) -> Method:
    """The method that a checkpoint is of, with random weights, from the recipe of its run.

    Raises:
        WeightsError: If the run is not of pre-training, or its recipe cannot be read.
    """
    file = path.parent.parent / "recipe.yaml"
    try:
        recipe = read_yaml(file)
        backbone = _SETTINGS.validate_python(recipe.get("backbone")).build()
        return _METHODS.validate_python(recipe.get("method")).build(backbone)
    except (ConfigError, ValidationError) as error:
        raise WeightsError(
            f"{path}: {file} is not a recipe of pre-training that this version reads "
            f"({str(error).splitlines()[0]}). Name the folder of a finished run instead."
        ) from None
