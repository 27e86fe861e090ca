"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_PLAIN_SECONDS = 15.0
"""Seconds between two plain lines."""


def track(items: Iterable[Item], what: str, total: int, start: int = 0) -> Iterator[Item]:
    """Pass items on and show how far it is.

    Args:
        items: What is worked on.
        what: A word or two for the line: ``prepare``, ``pre-train``.
        total: How many there will be, those already done included.
        start: How many were done before (a resumed run).
    """
    if sys.stderr.isatty():
        yield from _bar(items, what, total, start)
    else:
        yield from _lines(items, what, total, start)


def _bar(items: Iterable[Item], what: str, total: int, start: int) -> Iterator[Item]:
    from rich.console import Console  # noqa: PLC0415 (a tenth of a second that pipes need not pay)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        began = time.monotonic()
        job = bar.add_task(what, total=total, completed=start, rate="")
        for count, item in enumerate(items, start=1):
            yield item
            rate = count / max(time.monotonic() - began, 1e-9)
            bar.update(job, advance=1, rate=f"{rate:.2f}/s")


def _lines(items: Iterable[Item], what: str, total: int, start: int) -> Iterator[Item]:
    began = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        done = start + count
        if now - last >= _PLAIN_SECONDS and done < total:
            last = now
            rate = count / (now - began)
            left = _clock((total - done) / rate)
            print(f"{what}: {done}/{total}, {rate:.2f}/s, {left} left", file=sys.stderr)  # noqa: T201


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
