"""Whether the memory of the loader stays what it is, over as many steps as a long run takes.

Tiny windows, so that 10,000 steps pass in seconds: what grows with each step, grows here too.
``python -m voco.bench.memory FOLDER WORKERS STEPS`` prints one line of JSON.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voco.bench.apart import said
from voco.bench.sampling import CPU, Setting, loader, small_store
from voco.data.store import Store
from voco.data.windows import WindowsConfig, window_batches

STEPS, WARM_UP, EVERY = 10_000, 2_000, 250
SETTING = Setting("memory", (2, 2, 1), 8, 0, WindowsConfig(fit="crop"))


def rows(folder: Path, steps: int = STEPS) -> list[dict[str, Any]]:
    """One row per number of loader processes, each measured in a process of its own.

    None where the system does not say what a process holds (it does on Linux).
    """
    if not Path("/proc/self/statm").exists():
        return []
    small_store(folder, (64, 64, 64), 300.0)
    return [_in_a_process(folder, workers, steps) for workers in (0, 2)]


def page(results: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    lines = [
        "| loader processes | steps | memory after 2,000, MB | at the end, MB | MB a 1,000 steps |"
    ]
    lines.append("|---|---|---|---|---|")
    for row in results:
        first, last = row["first_bytes"] / 1e6, row["last_bytes"] / 1e6
        lines.append(
            f"| {row['workers']} | {row['steps']} | {first:.1f} | {last:.1f} "
            f"| {row['slope_bytes'] * 1e-3:+.3f} |"
        )
    return lines


def watch(store: Store, workers: int, steps: int) -> dict[str, Any]:
    """Take steps of the loader, and look at the memory of all processes again and again.

    Returns:
        Among others ``slope_bytes``: bytes per step, of the line of least squares through all
        looks after the first fifth of the steps.
    """
    looks = []
    began = time.perf_counter()
    for step, _ in enumerate(window_batches(loader(store, SETTING), CPU, workers, 0, steps)):
        if step % EVERY == 0 and step >= min(WARM_UP, steps // 5):
            looks.append((step, _held_bytes()))
    number, held = np.transpose(looks)
    return {
        "workers": workers,
        "steps": steps,
        "seconds": time.perf_counter() - began,
        "first_bytes": int(held[0]),
        "last_bytes": int(held[-1]),
        "slope_bytes": float(np.polyfit(number, held, 1)[0]),
    }


def _held_bytes() -> int:
    """Memory of this process and its loader processes; pages that they share count each time."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _in_a_process(folder: Path, workers: int, steps: int) -> dict[str, Any]:
    return said("voco.bench.memory", str(folder), str(workers), str(steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured = watch(Store(Path(sys.argv[1]) / "store"), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(measured))  # noqa: T201 (its output)
