"""What a step needs, counted, beside what the machine can do, measured: the distance to the limit.

Counting is done on tensors without storage, so it takes neither memory nor the machine's time.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from voco.bench.profiled import kind_of


@dataclass(frozen=True)
class Need:
    """Arithmetic and memory traffic of some work.

    Attributes:
        flops: Floating-point operations of convolutions, matrix products and attention.
        touched: Bytes that operators read and write, each by itself, as if nothing were fused
            and nothing stayed in a cache.
        operators: How many were called.
        flops_of: The arithmetic of each of :data:`voco.bench.profiled.KINDS` that has any.
    """

    flops: int
    touched: int
    operators: int
    flops_of: dict[str, int]


@dataclass(frozen=True)
class Rates:
    """What the machine was seen to do, just now.

    Attributes:
        convolution: FLOP/s of a convolution of 48 channels at full resolution.
        product: FLOP/s of a large matrix product.
        copy: Bytes/s, read and written, of a large copy into memory that is there already.
    """

    convolution: float
    product: float
    copy: float


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what every operator is given and gives; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = self.operators = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call the operator and note it."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            self.touched += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, out))
                if isinstance(leaf, Tensor)
            )
        return out


def need(work: Callable[[], Any]) -> Need:
    """Count what some work does."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={flash: _attention_flops})
    with counter, Traffic() as traffic:
        work()
    flops_of: dict[str, int] = defaultdict(int)
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        flops_of[kind_of(str(operator))] += flops
    return Need(counter.get_total_flops(), traffic.touched, traffic.operators, dict(flops_of))


def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401
    """Two products for each window and head; arguments are shapes."""
    batch, heads, rows, width = query
    return 2 * 2 * batch * heads * rows * key[-2] * width


def rates(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Rates:
    """Measure the machine: a second or two. A convolution in the layout that it is faster in."""
    crops = torch.rand(2, 48, 64, 64, 64, device=device, dtype=dtype)
    layouts = [crops, crops.contiguous(memory_format=torch.channels_last_3d)]
    kernel = torch.rand(48, 48, 3, 3, 3, device=device, dtype=dtype)
    matrix = torch.rand(2048, 2048, device=device, dtype=dtype)
    source = torch.rand(1 << 26, device=device)
    target = torch.empty_like(source)
    convolution = 2 * crops.numel() * 48 * 27
    with torch.no_grad():
        return Rates(
            convolution
            / min(
                _best(lambda x=each: torch.nn.functional.conv3d(x, kernel, padding=1), device)
                for each in layouts
            ),
            2 * 2048**3 / _best(lambda: matrix @ matrix, device),
            2 * source.numel() * 4 / _best(lambda: target.copy_(source), device),
        )


def _best(work: Callable[[], Any], device: str, times: int = 4) -> float:
    """Least seconds of a few, the first not counted."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
