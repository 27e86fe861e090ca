"""What became of each source found, one line each: ``quality.jsonl``."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from voco.config import Config, parse
from voco.data.intake import Outcome
from voco.data.source import Refused
from voco.data.store import Store, write_atomically


class Line(Config):
    """One source."""

    source: str
    """Its path; with ``#NAME`` where that holds several."""
    status: Literal["taken", "refused", "passed over"]
    """Whether it is in the store; ``passed over`` is what a layout says to be no case."""
    reason: str | None = None
    """Why it was refused or passed over."""
    case: str | None = None
    """The id of its case."""
    warnings: tuple[str, ...] = ()
    """What a reader should know about how it was taken."""


def quality_lines(outcomes: Iterable[Outcome], store: Store) -> list[Line]:
    """A line for each outcome.

    Args:
        outcomes: What became of sources.
        store: Which holds what was taken; cases with the same content are told of each other.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for case in store.cases.values():
        alike[case.source_sha256].append(case.id)
    return [_line(outcome, alike) for outcome in outcomes]


def refusal_line(item: Refused) -> Line:
    """The line for what never became a case."""
    status = "passed over" if item.passed_over else "refused"
    return Line(source=str(item.path), status=status, reason=item.reason)


def write_quality(folder: Path, lines: Sequence[Line], part: str | None = None) -> list[Line]:
    """Write the lines on sources; those on other sources, from earlier runs, are kept.

    Args:
        folder: The store's.
        lines: What became of sources now.
        part: Which part of the store, where several processes fill it.

    Returns:
        All lines, in the order of their sources.
    """
    if part is not None:
        _write_lines(folder / f"quality-{part}.jsonl", lines)
    parts = sorted(folder.glob("quality-*.jsonl"))
    union: dict[str, list[Line]] = {}
    for group in [_read_lines(folder / "quality.jsonl"), *map(_read_lines, parts), lines]:
        now = {line.source for line in group}
        union = {source: old for source, old in union.items() if source not in now}
        for line in group:
            union.setdefault(line.source, []).append(line)
    known = [line for source in sorted(union) for line in union[source]]
    _write_lines(folder / "quality.jsonl", known)
    if part is None:
        for file in parts:
            file.unlink()
    return known


def _line(outcome: Outcome, alike: Mapping[str, Sequence[str]]) -> Line:
    key, case = outcome.job.key, outcome.case
    if outcome.status == "refused" or case is None:
        gone = () if case is None else (f"it changed, so case {case.id} left the store",)
        return Line(source=key, status="refused", reason=outcome.reason, warnings=gone)
    notes = [f"made anew: {outcome.reason}"] if outcome.status == "remade" else []
    twins = [name for name in alike.get(case.source_sha256, ()) if name != case.id]
    if twins:
        notes.append(f"the same files as case {', '.join(twins)}")
    return Line(source=key, status="taken", case=case.id, warnings=(*notes, *case.warnings))


def _read_lines(file: Path) -> list[Line]:
    if not file.exists():
        return []
    rows = file.read_text(encoding="utf-8").splitlines()
    return [parse(Line, json.loads(row), str(file)) for row in rows]


def _write_lines(file: Path, lines: Sequence[Line]) -> None:
    write_atomically(file, "".join(line.model_dump_json() + "\n" for line in lines).encode())
