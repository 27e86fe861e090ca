"""Starting a network from weights, whoever made them."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from voco.backbone import Backbone, BackboneConfig, Part
from voco.backbones.swin_unetr import Merging, SwinUNETRConfig
from voco.errors import WeightsError
from voco.method import Method
from voco.weights.fitting import fitted, outputs_in
from voco.weights.foreign import nearest
from voco.weights.handover import Handover, handover_file, read_handover
from voco.weights.loading import Accounting, load_weights
from voco.weights.reading import read_tensors, unwrapped, weights_digest
from voco.weights.sources import Source, checkpoint_tensors, method_of, read_source

_log = logging.getLogger(__name__)

_PARTS: tuple[Part, ...] = ("encoder", "decoder", "head")

ConfigT = TypeVar("ConfigT", bound=BackboneConfig)


def settled(config: ConfigT, weights: Path | None) -> ConfigT:
    """Settings of a backbone that leave nothing open for the weights to decide.

    Args:
        config: Where it says how patches are merged, it is left alone.
        weights: What the network starts from.

    Raises:
        WeightsError: If they cannot be read.
    """
    if weights is None or not isinstance(config, SwinUNETRConfig) or config.merging is not None:
        return config
    if read_source(weights).merging != "legacy":
        return config
    return config.model_copy(update={"merging": "legacy"})


def transfer(
    backbone: Backbone,
    path: Path,
    *,
    fresh: tuple[Part, ...] = ("head",),
    expected_share: float = 0.9,
) -> Accounting:
    """Start a backbone from the weights of a run folder, a checkpoint, or a file of anybody.

    Parts that were not trained stay as they are. Weights that do not say what was trained are
    taken to have trained those parts of which they hold any tensor.

    Args:
        backbone: The network to fill.
        path: A run folder, a checkpoint of a run, or a weight file whose layout is known
            (:mod:`voco.weights.families`) or whose names are the network's own.
        fresh: Parts that stay as they are even if the weights have them.
        expected_share: Least share of the encoder's parameters that must come from the weights; if
            they say that they trained what makes the tokens alone, of those.

    Raises:
        WeightsError: If the weights are of another backbone, or do not fit (:func:`load_weights`).
    """
    source = read_source(path)
    notes = check_settings(source, backbone)
    tensors, changes = fitted(source.tensors, backbone, source.grid)
    new, counted = unloaded(source, tensors, backbone, fresh)
    try:
        accounting = load_weights(
            backbone, tensors, new=new, counted=counted, expected_share=expected_share
        )
    except WeightsError as error:
        hint = "" if source.known else f"\n{nearest(source.content.tensors)}"
        raise WeightsError(f"{path}: {error}{hint}") from None
    return described(accounting, source, (*changes, *notes))


def unloaded(
    source: Source,
    tensors: Mapping[str, Tensor],
    backbone: Backbone,
    fresh: tuple[Part, ...] = (),
) -> tuple[tuple[str, ...], Part]:
    """Prefixes of what stays as it is, and the part that must be filled."""
    trained = _parts_in(tensors, backbone) if source.trained is None else source.trained
    new = (*untrained(backbone, trained), *(p for part in fresh for p in backbone.prefixes(part)))
    return new, "tokens" if "tokens" in trained and "encoder" not in trained else "encoder"


def described(accounting: Accounting, source: Source, notes: tuple[str, ...]) -> Accounting:
    """An accounting that also says what was done before the tensors were put into the network."""
    foreign = source.foreign
    if foreign is None:
        return replace(accounting, changes=notes)
    return replace(
        accounting,
        origin=foreign.family.title,
        stripped=foreign.stripped,
        left_out=foreign.left_out,
        changes=(*foreign.changes, *notes),
    )


def resume_method(method: Method, checkpoint: Path) -> Accounting:
    """Start a method from a checkpoint: student, teacher, heads and queues, but not the optimizer.

    Args:
        method: With the settings of the run that the checkpoint is of; the number of steps, the
            data and the optimizer may differ.
        checkpoint: Its folder.

    Raises:
        WeightsError: If it is damaged, or of another method or other settings.
    """
    theirs, tensors = method_of(checkpoint), checkpoint_tensors(checkpoint)
    if type(theirs) is not type(method):
        raise WeightsError(
            f"{checkpoint}: is of {type(theirs).__name__}, asked for is {type(method).__name__}. "
            "Name the folder of its run instead, once it is finished: its backbone can be started "
            "from by any method."
        )
    try:
        return load_weights(method, tensors)
    except WeightsError as error:
        raise WeightsError(
            f"{checkpoint}: {error}\nTo start from the backbone alone, name the folder of its run, "
            "once that is finished."
        ) from None


def untrained(backbone: Backbone, trained: tuple[Part, ...]) -> tuple[str, ...]:
    """Prefixes of the parameters that belong to none of the trained parts."""
    known = {prefix for part in trained for prefix in backbone.prefixes(part)}
    return tuple(p for part in _PARTS for p in backbone.prefixes(part) if p not in known)


def build_backbone(handover: Handover) -> Backbone:
    """The backbone of a run with the random weights of its seed: the same ones every time."""
    return _built(handover.backbone, handover.out_channels, handover.seed)


def load_backbone(path: Path) -> Backbone:
    """The backbone of a run, built from its ``handover.json`` and filled with its weights.

    Parts that were not trained have random weights, the same ones every time.

    Raises:
        WeightsError: If a file is missing, damaged, or does not fit the other.
    """
    return _of_run(path)[0]


def load(path: Path | str, *, merging: Merging | None = None) -> nn.Module:
    """A network with trained weights: the library's own class (MONAI ``SwinUNETR``, ...).

    Says what is random where a part of the network only was trained, and what was left out.

    Args:
        path: A run folder, a checkpoint of a run, or a weight file of a known layout.
        merging: How a Swin UNETR merges patches, for files that do not tell; overrides what is
            known of the file's layout.

    Raises:
        WeightsError: If a file is missing, damaged, or does not fit the other; if its layout is
            unknown, or of a network that is not here.
    """
    path = Path(path)
    backbone, accounting = _of_run(path) if handover_file(path) else _of_file(path, merging)
    if accounting.new or accounting.left_out or accounting.changes:
        _log.warning("%s: %s", path, accounting)
    return backbone.network


def _of_run(path: Path) -> tuple[Backbone, Accounting]:
    handover = read_handover(path)
    backbone = build_backbone(handover)
    new = untrained(backbone, handover.trained)
    return backbone, load_weights(backbone, read_tensors(path), new=new)


def _of_file(path: Path, merging: Merging | None) -> tuple[Backbone, Accounting]:
    source = read_source(path)
    if not source.known:
        raise WeightsError(f"{path}: {_not_ours(source)}")
    outputs = outputs_in(source.tensors, source.settings["name"])
    backbone = _built(source.config(merging), outputs or 1)
    return backbone, transfer(backbone, path, fresh=())


def _not_ours(source: Source) -> str:
    if source.foreign is not None:
        return f"is {source.foreign.family.title}. No backbone here has this architecture."
    return f"a layout that is not known. {nearest(source.content.tensors)}"


def _built(config: BackboneConfig, out_channels: int, seed: int = 0) -> Backbone:
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return config.build(out_channels)


def _parts_in(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[Part, ...]:
    names = unwrapped(tensors)[1]
    parts: tuple[Part, ...] = tuple(
        p for p in _PARTS if any(n.startswith(backbone.prefixes(p)) for n in names)
    )
    beside = tuple({*backbone.prefixes("encoder")} - {*backbone.prefixes("tokens")})
    if backbone.prefixes("tokens") and not any(name.startswith(beside) for name in names):
        alone: Part = "tokens"
        return tuple(alone if part == "encoder" else part for part in parts)
    return parts


def check_settings(source: Source, backbone: Backbone) -> tuple[str, ...]:
    """Compare what weights are of with what is to be filled.

    Returns:
        What is worth a note though it is allowed.

    Raises:
        WeightsError: If they are of another network.
    """
    if source.foreign is not None and not source.known:
        raise WeightsError(f"{source.path}: {_not_ours(source)}")
    if not source.known:
        return ()
    theirs, ours = dict(source.settings), backbone.config.model_dump()
    free = {*backbone.config.changeable, *backbone.config.adaptable, "merging"}
    keys = {**theirs, **ours} if source.whole else theirs
    unequal = [key for key in keys if theirs.get(key) != ours.get(key) and key not in free]
    if unequal:
        said = "; ".join(
            f"{key} is {theirs.get(key)!r}, asked for is {ours.get(key)!r}" for key in unequal
        )
        raise WeightsError(
            f"{source.path}: trained with another backbone: {said}. Set the recipe's backbone to "
            "what the weights have, or use other weights."
        )
    return _check_merging(source, backbone.config)


def _check_merging(source: Source, config: BackboneConfig) -> tuple[str, ...]:
    if not isinstance(config, SwinUNETRConfig):
        return ()
    asked = config.merging
    if source.merging is None and asked is None:
        raise WeightsError(
            f"{source.path}: does not tell with which MONAI it was trained, and 1.5 changed how "
            "Swin UNETR merges patches. Set backbone.merging to 'legacy' (MONAI up to 1.4) or to "
            "'fixed' (from 1.5 on)."
        )
    if source.merging is None or source.merging == (asked or "fixed"):
        return ()
    if asked is None or source.foreign is None:
        raise WeightsError(
            f"{source.path}: trained with patches merged in the way '{source.merging}', asked for "
            f"is '{asked or 'fixed'}'. Set backbone.merging to '{source.merging}'."
        )
    return (f"merging is '{asked}' as asked for, though such files expect '{source.merging}'",)


def record(path: Path | None, accounting: Accounting | None) -> dict[str, Any]:
    """What ``weights.json`` says of the weights that a run started from."""
    return {
        "weights": None if path is None else str(path),
        "sha256": weights_digest(path),
        "summary": "none: trained from scratch" if accounting is None else str(accounting),
        "accounting": None if accounting is None else _plain(accounting),
    }


def _plain(accounting: Accounting) -> dict[str, Any]:
    left = [{"reason": reason, "names": names} for reason, names in accounting.left_out]
    return {**vars(accounting), "left_out": left}
