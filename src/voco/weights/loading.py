"""Loading tensors into a network, with an account of every one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from voco.backbone import Backbone, Part
from voco.errors import WeightsError
from voco.weights.handover import TASK_PREFIX, Handover, handover_file, read_handover
from voco.weights.reading import few, read_tensors, unwrapped

_log = logging.getLogger(__name__)

_PARTS: tuple[Part, ...] = ("encoder", "decoder", "head")
_CALLED: dict[Part, str] = {
    "encoder": "encoder",
    "decoder": "decoder",
    "head": "output layer",
    "tokens": "transformer",
}

Reason = Literal["missing", "unknown", "of another shape", "of another type", "not finite"]
"""Missing in the file, unknown to the network, or in both but unfit."""


class Refusal(NamedTuple):
    """A tensor that does not fit.

    Attributes:
        name: Of the tensor.
        reason: Why.
        detail: The two that differ.
    """

    name: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Accounting:
    """What becomes of every tensor of a file and of a network.

    Attributes:
        loaded: Tensors of the network that come from the file.
        new: Tensors of the network that keep the values they were built with.
        unused: Tensors of the file that nothing wants.
        refused: Tensors that do not fit; with one of them nothing is loaded.
        stripped: Prefix that was taken off every name of the file.
        part: What the counts below are about: the encoder of a backbone, or the whole network.
        tensors: How many of the part's tensors are loaded, and how many it has.
        parameters: The same in numbers to train.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    refused: tuple[Refusal, ...]
    stripped: str
    part: str
    tensors: tuple[int, int]
    parameters: tuple[int, int]

    @property
    def share(self) -> float:
        """Share of the part's parameters that are loaded, from 0 to 1."""
        return self.parameters[0] / max(1, self.parameters[1])

    def __str__(self) -> str:
        done, total = (f"{count / 1e6:.1f} M" for count in self.parameters)
        lines = [
            f"{self.tensors[0]} of {self.tensors[1]} tensors, {100 * self.share:.4g} % of the "
            f"{self.part} ({done} of {total} parameters)"
        ]
        if self.stripped:
            lines.append(f"'{self.stripped}' taken off every name")
        lines += [
            f"{len(names)} {what}: {few(names)}"
            for what, names in (("new", self.new), ("unused", self.unused))
            if names
        ]
        return "; ".join(lines)

    def complaint(self) -> str:
        """What does not fit, one line for each reason."""
        lines: list[str] = []
        for reason in get_args(Reason):
            names = [f"{item.name}{item.detail}" for item in self.refused if item.reason == reason]
            if names:
                lines.append(f"  {len(names)} {reason}: {few(names)}")
        return "\n".join(lines)


def task_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that :func:`export` was given beside the network's, under their own names."""
    return {
        name.removeprefix(TASK_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(TASK_PREFIX)
    }


def account(
    target: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    new: tuple[str, ...] = (),
    counted: Part = "encoder",
) -> Accounting:
    """What :func:`load_weights` would do with every tensor; changes nothing."""
    network = _network(target)
    stripped, tensors = unwrapped(tensors)
    state = network.state_dict()
    kept = {name for name in state if name.startswith(new)}
    unused = {name for name in tensors if name.startswith((*new, TASK_PREFIX))}
    # Constants of a network, such as tables of indices, may be left out of a file.
    constants = {name for name, _ in network.named_buffers() if not state[name].is_floating_point()}
    optional = kept | constants | tensors.keys()
    shared = [name for name in state if name in tensors and name not in kept]
    refused = [Refusal(name, "missing") for name in state if name not in optional]
    refused += [Refusal(n, "unknown") for n in tensors if n not in state and n not in unused]
    unfit = [refusal for name in shared if (refusal := _unfit(name, tensors[name], state[name]))]
    loaded = {*shared} - {refusal.name for refusal in unfit}
    prefixes = target.prefixes(counted) if isinstance(target, Backbone) else ("",)
    part = {name for name in state if name.startswith(prefixes)}
    sizes = {name: p.numel() for name, p in network.named_parameters() if name in part}
    return Accounting(
        loaded=tuple(name for name in shared if name in loaded),
        new=tuple(name for name in state if name in kept),
        unused=tuple(name for name in tensors if name in unused),
        refused=(*refused, *unfit),
        stripped=stripped,
        part=_CALLED[counted] if isinstance(target, Backbone) else "network",
        tensors=(len(loaded & part), len(part)),
        parameters=(sum(n for name, n in sizes.items() if name in loaded), sum(sizes.values())),
    )


def load_weights(
    target: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    new: tuple[str, ...] = (),
    counted: Part = "encoder",
    expected_share: float = 0.0,
) -> Accounting:
    """Copy tensors into a network: all of them, or none and an error that lists what is wrong.

    Args:
        target: A backbone, or any network.
        tensors: By name, as :func:`read_tensors` gives them. Names that begin with ``task.`` are
            left alone.
        new: Prefixes of the network's tensors that keep their values, whatever the file holds.
        counted: The part of a backbone that must be loaded; of any other network it is all of it.
        expected_share: Least share of that part, from 0 to 1, by parameters.

    Raises:
        WeightsError: If a tensor is missing, unknown, of another shape or type, or not finite, or
            if too little would be loaded. The network is then as it was.
    """
    accounting = account(target, tensors, new=new, counted=counted)
    if accounting.refused:
        raise WeightsError(
            f"The weights do not fit the network:\n{accounting.complaint()}\n"
            "Use weights of the same backbone with the same settings."
        )
    if accounting.share < expected_share:
        raise WeightsError(
            f"Only {100 * accounting.share:.4g} % of the {accounting.part}'s parameters would be "
            f"loaded, expected are {100 * expected_share:.4g} % ({accounting}). Use other "
            "weights, or lower expected_share if the rest is meant to be new."
        )
    _, tensors = unwrapped(tensors)
    state = _network(target).state_dict()
    with torch.no_grad():
        for name in accounting.loaded:
            state[name].copy_(tensors[name])
    return accounting


def transfer(
    backbone: Backbone,
    path: Path,
    *,
    fresh: tuple[Part, ...] = ("head",),
    expected_share: float = 0.9,
) -> Accounting:
    """Start a backbone from the weights of a run folder or file.

    Parts that were not trained stay as they are. A file without ``handover.json`` is taken to
    have trained those parts of which it holds any tensor.

    Args:
        backbone: The network to fill.
        path: A run folder or a weight file.
        fresh: Parts that stay as they are even if the weights have them.
        expected_share: Least share of the encoder's parameters that must come from the weights; if
            they say that they trained what makes the tokens alone, of those.

    Raises:
        WeightsError: If the weights are of another backbone, or do not fit (:func:`load_weights`).
    """
    tensors = read_tensors(path)
    if handover_file(path) is not None:
        handover = read_handover(path)
        _check_settings(handover, backbone, path)
        trained = handover.trained
    else:
        trained = _parts_in(tensors, backbone)
    new = (*untrained(backbone, trained), *(p for part in fresh for p in backbone.prefixes(part)))
    alone = "tokens" in trained and "encoder" not in trained
    return load_weights(
        backbone,
        tensors,
        new=new,
        counted="tokens" if alone else "encoder",
        expected_share=expected_share,
    )


def untrained(backbone: Backbone, trained: tuple[Part, ...]) -> tuple[str, ...]:
    """Prefixes of the parameters that belong to none of the trained parts."""
    known = {prefix for part in trained for prefix in backbone.prefixes(part)}
    return tuple(p for part in _PARTS for p in backbone.prefixes(part) if p not in known)


def build_backbone(handover: Handover) -> Backbone:
    """The backbone of a run with the random weights of its seed: the same ones every time."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(handover.seed)
        return handover.backbone.build(handover.out_channels)


def load_backbone(path: Path) -> Backbone:
    """The backbone of a run, built from its ``handover.json`` and filled with its weights.

    Parts that were not trained have random weights, the same ones every time.

    Raises:
        WeightsError: If a file is missing, damaged, or does not fit the other.
    """
    return _loaded(path)[0]


def load(path: Path | str) -> nn.Module:
    """The network of a run: the library's own class (MONAI ``SwinUNETR``, ...), ready to train.

    Says what is random where the run trained a part of the network only.

    Raises:
        WeightsError: If a file is missing, damaged, or does not fit the other.
    """
    backbone, accounting = _loaded(Path(path))
    if accounting.new:
        _log.warning("%s: %s", path, accounting)
    return backbone.network


def _loaded(path: Path) -> tuple[Backbone, Accounting]:
    handover = read_handover(path)
    backbone = build_backbone(handover)
    new = untrained(backbone, handover.trained)
    return backbone, load_weights(backbone, read_tensors(path), new=new)


def _network(target: nn.Module) -> nn.Module:
    return target.network if isinstance(target, Backbone) else target


def _parts_in(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[Part, ...]:
    names = unwrapped(tensors)[1]
    return tuple(p for p in _PARTS if any(n.startswith(backbone.prefixes(p)) for n in names))


def _unfit(name: str, given: Tensor, wanted: Tensor) -> Refusal | None:
    if given.shape != wanted.shape:
        shapes = f" {tuple(given.shape)} instead of {tuple(wanted.shape)}"
        return Refusal(name, "of another shape", shapes)
    if given.is_floating_point() != wanted.is_floating_point():
        return Refusal(name, "of another type", f" {given.dtype} instead of {wanted.dtype}")
    if not bool(torch.isfinite(given).all()):
        return Refusal(name, "not finite")
    return None


def _check_settings(handover: Handover, backbone: Backbone, path: Path) -> None:
    theirs, ours = handover.backbone, backbone.config
    a, b = theirs.model_dump(), ours.model_dump()
    unequal = [key for key in {**a, **b} if a.get(key) != b.get(key) and key not in ours.changeable]
    if unequal:
        said = "; ".join(f"{key} is {a.get(key)!r}, asked for is {b.get(key)!r}" for key in unequal)
        raise WeightsError(
            f"{path}: trained with another backbone: {said}. Set the recipe's backbone to what "
            "the weights have, or use other weights."
        )
