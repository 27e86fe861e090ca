"""Running a function in two processes that form a group, as a distributed run would."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

WORLD = 2


def in_two_processes(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(rank, world, *arguments)`` returns in each process.

    The function must stand in a module, as both processes import it.
    """
    torch.multiprocessing.spawn(_process, (work, folder, arguments), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _process(rank: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = f"file://{(folder / 'rendezvous').absolute()}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    try:
        torch.save(work(rank, WORLD, *arguments), folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
