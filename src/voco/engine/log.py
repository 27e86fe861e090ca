"""The log of a run: one JSON object per logged step, and the same for its trackers."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from voco.data.store import write_atomically
from voco.engine.loop import NORM, Record, averaged
from voco.engine.trackers import Trackers
from voco.task import Health

TIMES = ("volumes_per_second", "data_share", "seconds", "memory_bytes")
"""Fields that differ between two runs of the same recipe."""


class Log:
    """A hook that writes ``log.jsonl`` and shows the same figures in trackers.

    Fields: ``step`` (steps done), ``loss``, ``losses`` by name, ``gradient_norm`` (before
    clipping), ``lr``, ``health``, what other hooks added (``holdout``), and :data:`TIMES`:
    volumes per second since the line before, over all processes; the share of that time in which
    the first process waited for a micro-batch (on a GPU, which has work queued, at most so much was
    lost); seconds of training, earlier parts of a resumed run included; most memory so far (of the
    GPU, or of the process).

    Args:
        fabric: Averages over processes; its first process writes.
        folder: The run folder.
        every: Steps between two lines; the first and the last step always have one, and so has
            a step to which another hook added figures.
        volumes: Volumes per step, over all processes.
        done: Steps done when training starts or goes on.
        trackers: Of the first process.
    """

    def __init__(
        self,
        fabric: Fabric,
        folder: Path,
        every: int,
        volumes: int,
        done: int,
        trackers: Trackers | None = None,
    ) -> None:
        self._fabric, self._every, self._volumes = fabric, every, volumes
        self._file = folder / "log.jsonl"
        self._last_step, self._last_time = done, time.monotonic()
        self._seconds = self._waited = 0.0
        self._trackers, self._finished = trackers or Trackers({}), False
        if fabric.is_global_zero:
            self._seconds = _cut(self._file, done)

    def __call__(self, record: Record) -> None:
        """Write a line, if one is due."""
        self._waited += record.waited_seconds
        if not (record.done == 1 or record.due(self._every) or record.figures):
            return
        losses = dict(record.ledger.settle())
        norm = losses.pop(NORM)
        health = _averaged(self._fabric, record.health)
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        waited, self._waited = self._waited, 0.0
        steps = record.done - self._last_step
        self._seconds += seconds
        self._last_step, self._last_time = record.done, now
        self._finished = record.done == record.total
        if self._fabric.is_global_zero:
            line = {
                "step": record.done,
                "loss": sum(losses.values()),
                "losses": losses,
                "gradient_norm": norm,
                "lr": record.lr,
                "health": health,
                **record.figures,
                "volumes_per_second": steps * self._volumes / seconds,
                "data_share": min(1.0, waited / seconds),
                "seconds": self._seconds,
                "memory_bytes": memory_bytes(self._fabric.device),
            }
            _append(self._file, line)
            self._trackers.log(record.done, _figures(line))

    def close(self) -> None:
        """Let the trackers write out what they hold back."""
        self._trackers.close(finished=self._finished)


def _averaged(fabric: Fabric, figures: Health) -> dict[str, float]:
    """Scalars as numbers, averaged over processes."""
    if not figures:
        return {}
    values = [value.detach().float().reshape(()).to(fabric.device) for value in figures.values()]
    return dict(zip(figures, averaged(fabric, torch.stack(values)), strict=True))


def memory_bytes(device: torch.device) -> int:
    """Most memory so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; a torn last one is left out."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _cut(file: Path, done: int) -> float:
    """Drop the lines after a step; returns the seconds of training up to it."""
    lines = [line for line in read_log(file) if line["step"] <= done]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(file, content.encode())
    return lines[-1]["seconds"] if lines else 0.0


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_plain(line), allow_nan=False) + "\n")
        stream.flush()
        # On the disk before the checkpoint that counts on it.
        os.fsync(stream.fileno())


def _plain(value: Any) -> Any:  # noqa: ANN401 (whatever JSON knows)
    """What is not a finite number becomes ``null``: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a line by one name each, such as ``losses/prediction``."""
    nested = {key: value for key, value in line.items() if isinstance(value, dict)}
    plain = {key: value for key, value in line.items() if key not in {"step", *nested}}
    return plain | {
        f"{key}/{name}": value for key, part in nested.items() for name, value in part.items()
    }
