"""Where the seconds of a step go: the time of every operator, added up by what it is for."""

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTION, ATTENTION, LINEAR = "convolutions", "attention", "linear layers"
NORM, OPTIMIZER = "norms and their activations", "optimizer and teacher"
REST, BETWEEN = "sums, copies, activations and all else", "between operators"
KINDS = (CONVOLUTION, ATTENTION, LINEAR, NORM, OPTIMIZER, REST, BETWEEN)
"""What seconds are added up by."""

_CALLERS = {
    "voco.nn.convolution": CONVOLUTION,
    "voco.nn.winograd": CONVOLUTION,
    "voco.nn.window_attention": ATTENTION,
    "voco.nn.instance_norm": NORM,
    "voco.nn.channels_last": NORM,
    "voco.nn.ema": OPTIMIZER,
    "torch.optim": OPTIMIZER,
    "torch.nn.utils.clip_grad": OPTIMIZER,
}
"""Beginnings of the names of modules all of whose operators are of one kind."""

_OPERATORS = {
    "convolution": CONVOLUTION,
    "scaled_dot_product": ATTENTION,
    "bmm": ATTENTION,
    "baddbmm": ATTENTION,
    "mm": LINEAR,
    "addmm": LINEAR,
    "native_layer_norm": NORM,
    "native_batch_norm": NORM,
    "native_group_norm": NORM,
}
"""Names of operators of other callers, less what is said of the way they are done."""

_WAYS = re.compile(r"^_|_backward$|_overrideable$|(_fused)?(_flash|_efficient)?_attention.*$")

_NEAR = 12
"""How many callers up a module is looked for."""


class _Watch(TorchDispatchMode):
    """Adds up the seconds of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call the operator and note how long it took."""
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        took = time.perf_counter() - began
        self.seconds[_caller(sys._getframe(1)) or kind_of(str(func))] += took
        return out


def profiled(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each of :data:`KINDS` on the CPU; together, what the work took.

    Watching takes some hundred-thousandths of a second an operator, which count as between them.

    Args:
        work: Called once.
    """
    began = time.perf_counter()
    with _Watch() as watch:
        work()
    took = time.perf_counter() - began
    found = {kind: watch.seconds[kind] for kind in KINDS}
    return found | {BETWEEN: took - sum(found.values())}


def kind_of(operator: str) -> str:
    """What an operator is for, by its name: ``aten.mm.default``, or ``aten.mm``."""
    name = operator.removeprefix("aten.").split(".")[0]
    return _OPERATORS.get(_WAYS.sub("", name), REST)


def _caller(frame: FrameType | None) -> str | None:
    """The kind of all that the nearest known module calls; a norm copies, an optimizer adds."""
    for _ in range(_NEAR):
        if frame is None:
            return None
        name = frame.f_globals.get("__name__", "")
        for beginning, kind in _CALLERS.items():
            if name.startswith(beginning):
                return kind
        frame = frame.f_back
    return None
