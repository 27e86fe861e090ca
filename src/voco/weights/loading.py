"""Loading tensors into a network, with an account of every one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from voco.backbone import Backbone, Part
from voco.errors import WeightsError
from voco.weights.foreign import LeftOut
from voco.weights.handover import TASK_PREFIX
from voco.weights.reading import few, unwrapped

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
        origin: What the file is, if others made it.
        left_out: Tensors of the file that have no place in the network, and why.
        changes: What was done to tensors so that they fit.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    refused: tuple[Refusal, ...]
    stripped: str
    part: str
    tensors: tuple[int, int]
    parameters: tuple[int, int]
    origin: str = ""
    left_out: tuple[LeftOut, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the part's parameters that are loaded, from 0 to 1."""
        return self.parameters[0] / max(1, self.parameters[1])

    def counts(self) -> str:
        """How much of the part is loaded, in words."""
        done, total = (f"{count / 1e6:.1f} M" for count in self.parameters)
        return (
            f"{self.tensors[0]} of {self.tensors[1]} tensors, {100 * self.share:.4g} % of the "
            f"{self.part} ({done} of {total} parameters)"
        )

    def __str__(self) -> str:
        lines = [self.counts()]
        if self.origin:
            lines.insert(0, self.origin)
        if self.stripped:
            lines.append(f"'{self.stripped}' taken off every name")
        lines += self.changes
        lines += [
            f"{len(names)} {what}: {few(names)}"
            for what, names in (("new", self.new), ("unused", self.unused))
            if names
        ]
        lines += [f"{len(names)} left out ({why}): {few(names)}" for why, names in self.left_out]
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
    constants = {name for name, one in network.named_buffers() if not one.is_floating_point()}
    optional = kept | constants | tensors.keys()
    shared = [name for name in state if name in tensors and name not in kept]
    refused = [Refusal(name, "missing") for name in state if name not in optional]
    refused += [Refusal(n, "unknown") for n in tensors if n not in state and n not in unused]
    unfit = [refusal for name in shared if (refusal := _unfit(name, tensors[name], state[name]))]
    loaded = {*shared} - {refusal.name for refusal in unfit}
    prefixes = target.prefixes(counted) if isinstance(target, Backbone) else ("",)
    part = {n for n in state if n.startswith(prefixes)} - (constants - tensors.keys())
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


def _network(target: nn.Module) -> nn.Module:
    return target.network if isinstance(target, Backbone) else target


def _unfit(name: str, given: Tensor, wanted: Tensor) -> Refusal | None:
    if given.shape != wanted.shape:
        shapes = f" {tuple(given.shape)} instead of {tuple(wanted.shape)}"
        return Refusal(name, "of another shape", shapes)
    if given.is_floating_point() != wanted.is_floating_point():
        return Refusal(name, "of another type", f" {given.dtype} instead of {wanted.dtype}")
    if not bool(torch.isfinite(given).all()):
        return Refusal(name, "not finite")
    return None
