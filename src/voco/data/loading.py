"""Micro-batches from loader processes, in order, however many processes there are."""

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from voco.errors import DataError, VocoError


class Share(NamedTuple):
    """Which samples of a step this process takes.

    Attributes:
        batch_size: Volumes per step and process.
        accumulate: Micro-batches per step; must divide ``batch_size``.
        rank: Number of this process.
        world: Number of processes.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def samples(self, index: int) -> range:
        """Sample numbers of a micro-batch; micro-batches are counted over all steps."""
        count = self.batch_size // self.accumulate
        start = (index * self.world + self.rank) * count
        return range(start, start + count)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loaded(dataset: Dataset[Any], numbers: range, workers: int, *, pin: bool) -> Iterator[Any]:
    """Micro-batches by number, in the order of the numbers.

    Args:
        dataset: Gives a micro-batch, or the error that a user should read: raised in a loader
            process, it would come out wrapped in a traceback.
        numbers: Of the micro-batches; nothing before them is read.
        workers: Loader processes, of which no more are started than there are cores: a recipe may
            be for a larger machine, and what comes does not depend on them. 0 loads here.
        pin: Whether to put them into memory from which a GPU copies faster.

    Raises:
        DataError: If a loader process was killed; and what the dataset gives as an error.
    """
    workers = min(workers, usable_cores())
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_training if workers else None,
        pin_memory=pin,
        # Otherwise the loader would take a number from torch's own generator.
        generator=torch.Generator(),
    )
    try:
        for batch in loader:
            if isinstance(batch, VocoError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a loader process died ({error}). Most often memory has run out, or /dev/shm is too "
            "small (docker run --shm-size=8g): set fewer workers, or 0."
        ) from None


def _leave_signals_to_training(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the step that is under way needs its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
