"""Sums and rows over all processes, with gradients: the batch is that of all processes together.

Gradients are averaged over processes by the training loop, so the loss of a run is the mean of
the processes' losses. For that loss these functions have the right gradient: what one process
receives from another carries the other's gradient back.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def world_size() -> int:
    """How many processes share the batch; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The sum of a tensor over all processes, the same on each of them."""
    return values if world_size() == 1 else _Sum.apply(values)


def mean_over_processes(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The mean of a tensor over all processes, the same on each of them."""
    return sum_over_processes(values) / world_size()


def following_rows(rows: Float[Tensor, "b *n"], *, everywhere: bool) -> Float[Tensor, "b *n"]:
    """For each row the next one of the batch; the first for the last.

    Args:
        rows: This process's rows; every process has the same number.
        everywhere: Whether the batch is that of all processes, in the order of their ranks.
    """
    world = world_size() if everywhere else 1
    if world == 1:
        return rows.roll(-1, dims=0)
    firsts = rows.new_zeros(world, *rows.shape[1:])
    # One slot per process, empty but for its own: the sum is the gathered whole.
    own = torch.arange(world, device=rows.device) == dist.get_rank()
    firsts = sum_over_processes(firsts + rows[:1] * own.view(-1, *[1] * (rows.ndim - 1)))
    following = (dist.get_rank() + 1) % world
    return torch.cat([rows[1:], firsts[following : following + 1]])


def gathered_rows(rows: Float[Tensor, "b *n"], *, everywhere: bool) -> Float[Tensor, "m *n"]:
    """The rows of all processes in the order of their ranks, with gradients.

    Args:
        rows: This process's rows; every process has the same number.
        everywhere: Whether the batch is that of all processes; if not, it is ``rows``.
    """
    return rows if not everywhere or world_size() == 1 else _Gather.apply(rows)


def gathered_objects(own: Any) -> list[Any]:  # noqa: ANN401 (whatever can be pickled)
    """What every process gives, in the order of their ranks, in each of them; no gradients."""
    if world_size() == 1:
        return [own]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, own)
    return parts


def rank() -> int:
    """Number of this process; 0 where nothing is distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def first_row(count: int, *, everywhere: bool) -> int:
    """Where the ``count`` rows of this process start among :func:`gathered_rows`."""
    return dist.get_rank() * count if everywhere and world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401 (as torch has it)
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        start = dist.get_rank() * ctx.count
        return sum_over_processes(gradients[0].contiguous())[start : start + ctx.count]


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401, ARG004 (as torch has it)
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return sum_over_processes(gradients[0].contiguous())
