"""Two ways of doing the same, timed in turns in one process.

A shared machine is noisy: seconds drift, ratios of neighbours in time hold. So the plain path and
ours alternate, and the table shows the ratio of each pair: its median and its spread.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """Something measured.

    Attributes:
        name: For the command line and the table.
        what: What is done, in a phrase: size, type, count.
        plain: The way a user without this project would do it.
        ours: The way this project does it.
        equal: Whether both gave the same, as a phrase with the largest difference.
        most: Largest number of repeats, for subjects that take long.
    """

    name: str
    what: str
    plain: Callable[[], Any]
    ours: Callable[[], Any]
    equal: Callable[[Any, Any], str]
    most: int = 100


@dataclass(frozen=True)
class Timing:
    """What came out: median seconds, and plain over ours (above 1: ours is faster).

    The peak memory of each way is known where each had a process of its own; else it is 0.
    """

    name: str
    what: str
    plain_seconds: float
    ours_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    equal: str
    plain_bytes: int = 0
    ours_bytes: int = 0

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(subject: Subject, repeats: int) -> Timing:
    """Run both ways in turns, once to warm up and then ``repeats`` times."""
    equal = subject.equal(subject.plain(), subject.ours())
    pairs = [
        (_seconds(subject.plain), _seconds(subject.ours)) for _ in range(min(repeats, subject.most))
    ]
    return summed_up(subject.name, subject.what, equal, pairs)


def summed_up(
    name: str,
    what: str,
    equal: str,
    pairs: Sequence[tuple[float, float]],
    peak_bytes: tuple[int, int] = (0, 0),
) -> Timing:
    """Medians, and the range of the ratios, of seconds of the plain way and ours."""
    ratios = sorted(plain / ours for plain, ours in pairs)
    return Timing(
        name=name,
        what=what,
        plain_seconds=statistics.median(plain for plain, _ in pairs),
        ours_seconds=statistics.median(ours for _, ours in pairs),
        ratio=statistics.median(ratios),
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        repeats=len(pairs),
        equal=equal,
        plain_bytes=peak_bytes[0],
        ours_bytes=peak_bytes[1],
    )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
