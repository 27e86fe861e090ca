"""Two ways of doing the same, each in a process of its own, in turns: seconds and peak memory.

A process keeps what it once took from the system, so the most that it held says nothing about
what it did last. Here every measurement is a fresh process that does one thing:
``python -m MODULE FOLDER plain`` or ``ours`` warms up, does its work, and prints one line of JSON
(:func:`report`).
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from voco.bench.harness import Timing, summed_up
from voco.engine.allocator import environment
from voco.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Apart:
    """Something measured in processes.

    Attributes:
        name: For the command line and the table.
        what: What is done, in a phrase: size, type, count.
        module: What a process runs.
        folder: Where both ways find what they work on and leave what they made.
        equal: Whether both made the same, as a phrase; looked at once, after the first pair.
        most: Largest number of repeats.
    """

    name: str
    what: str
    module: str
    folder: Path
    equal: Callable[[Path], str]
    most: int = 100


def measure_apart(subject: Apart, repeats: int) -> Timing:
    """Run both ways in turns, ``repeats`` times.

    Raises:
        UsageError: If a process did not end well.
    """
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    equal = ""
    for _ in range(min(repeats, subject.most)):
        runs.append((_run(subject, "plain"), _run(subject, "ours")))
        equal = equal or subject.equal(subject.folder)
    return summed_up(
        subject.name,
        subject.what,
        equal,
        [(plain["seconds"], ours["seconds"]) for plain, ours in runs],
        peak_bytes=(
            max(plain["peak_bytes"] for plain, _ in runs),
            max(ours["peak_bytes"] for _, ours in runs),
        ),
    )


def report(work: Callable[[], T], times: int = 1) -> T:
    """Do the work of a process, and print how long it took and how much memory the process had.

    Args:
        work: What is timed.
        times: How often; the median counts.

    Returns:
        What was made last.
    """
    seconds = [timed(work)[1] for _ in range(times - 1)]
    made, last = timed(work)
    median = statistics.median([*seconds, last])
    print(json.dumps({"seconds": median, "peak_bytes": peak_bytes()}))  # noqa: T201 (its output)
    return made


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What work made, and its seconds."""
    began = time.perf_counter()
    made = work()
    return made, time.perf_counter() - began


def peak_bytes() -> int:
    """The most memory that this process held at a time."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's number may be that of the process which started this one
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def _run(subject: Apart, way: str) -> dict[str, Any]:
    return said(subject.module, str(subject.folder), way, plain=way == "plain")


def said(module: str, *words: str, plain: bool = False) -> dict[str, Any]:
    """The last line, of JSON, that a module prints in a process of its own.

    Args:
        module: What is run, by ``python -m``.
        words: Its arguments.
        plain: Whether it begins as a program that knows nothing of ours; else as ours runs.

    Raises:
        UsageError: If it did not end well.
    """
    command = [sys.executable, "-m", module, *words]
    variables = environment(thread_cache=plain)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=variables)
    if done.returncode:
        raise UsageError(
            f"'{' '.join(command)}' ended with status {done.returncode}. If nothing is said above, "
            "it was killed, most likely for want of memory: the plain way of 'predict' needs 7 GB, "
            "that of 'prepare' 4. Name other subjects, or free some."
        )
    return json.loads(done.stdout.splitlines()[-1])
