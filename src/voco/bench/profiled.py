"""Where the seconds of a step go: the time of every operator, added up by what it is for."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

CONVOLUTION, ATTENTION, LINEAR = "convolutions", "attention", "linear layers"
NORM, OPTIMIZER = "norms and their activations", "optimizer"
REST = "sums, copies, activations and all else"
KINDS = (CONVOLUTION, ATTENTION, LINEAR, NORM, OPTIMIZER, REST)
"""What seconds are added up by."""

_NAMES = {
    "vector_norm": OPTIMIZER,  # of gradients, which are clipped
    "foreach_norm": OPTIMIZER,
    "Optimizer.": OPTIMIZER,
    "convolution": CONVOLUTION,
    "conv3d": CONVOLUTION,
    "conv_transpose": CONVOLUTION,
    "_WindowAttention": ATTENTION,
    "dot_product": ATTENTION,
    "baddbmm": NORM,  # adds the residual of one channel
    "bmm": ATTENTION,
    "addmm": LINEAR,
    "aten.mm": LINEAR,
    "aten::mm": LINEAR,
    "aten::linear": LINEAR,
    "_norm": NORM,
    "_Norm": NORM,
    "_Affine": NORM,
}
"""Parts of names, of operators and of the functions that call them; the first that fits says it."""


def kind_of(name: str) -> str:
    """What an operator or a function is for, by its name: ``aten::mm``, ``aten.mm``, ``_Norm``."""
    return next((kind for part, kind in _NAMES.items() if part in name), REST)


def profiled(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the CPU of each of :data:`KINDS`.

    Watching takes time too, most of it where operators are small, so the sum is more than the
    work takes by itself. Operators of several threads are counted by the thread that called them.

    Args:
        work: Called once.
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        work()
    return added_up(found.events() or ())


def added_up(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Seconds of each of :data:`KINDS`, of what a profiler saw."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[_kind(event)] += event.self_cpu_time_total / 1e6
    return {kind: seconds[kind] for kind in KINDS}


def _kind(event: FunctionEvent) -> str:
    """That of the nearest caller whose name says one, since a norm copies and an optimizer adds."""
    above: FunctionEvent | None = event
    while above is not None:
        if (kind := kind_of(above.name)) != REST:
            return kind
        above = above.cpu_parent
    return REST
