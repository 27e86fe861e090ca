"""What was learnt from against what is tested on: scans that are in both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from voco.data.fingerprint import SAME, WORTH_ALIGNING, Fingerprint, decoded
from voco.data.intake import look_at
from voco.data.leaks import Same, find_overlaps, fingerprints, learnt_cases, tested_cases
from voco.data.preprocess import prepare_volume
from voco.data.sources import discover, read_source
from voco.data.store import Preprocessing, Store
from voco.errors import DataError, UsageError, VocoError, WeightsError
from voco.evaluation.tables import number_text, write_rows
from voco.progress import track
from voco.weights import WEIGHTS_FILE, read_handover
from voco.weights.handover import handover_file

TABLE = "leaks.csv"
"""One line for each pair of a tested and a seen case that are one scan."""

_SHOWN = 20
"""Pairs that are printed; all are in the table."""

_WORDS: dict[Same, str] = {
    "files": "the same files as",
    "voxels": "the same voxels as",
    "look": "looks like",
}


class Leak(NamedTuple):
    """A tested case that was learnt from.

    Attributes:
        case: The tested case.
        place: Where it is.
        seen: The case that is the same scan; empty where its fingerprint alone is known.
        seen_place: Where that is.
        same: What they share: ``files``, ``voxels`` or ``look``.
        likeness: Of their looks; 1 where more than those is equal.
    """

    case: str
    place: str
    seen: str
    seen_place: str
    same: Same
    likeness: float

    def __str__(self) -> str:
        of = f"{self.seen} of {self.seen_place}" if self.seen else f"a scan of {self.seen_place}"
        likeness = f" ({self.likeness:.3f})" if self.same == "look" else ""
        return f"{self.case} of {self.place}: {_WORDS[self.same]} {of}{likeness}"


@dataclass(frozen=True)
class Leaks:
    """What came out of a check.

    Attributes:
        seen: Cases that were learnt from.
        tested: Tested cases.
        leaks: Every pair that is one scan.
        doubts: Why more may have been learnt from than is known.
        failures: Scan and reason, of those that could not be read.
        table: ``leaks.csv``, if it was asked for.
    """

    seen: int
    tested: int
    leaks: tuple[Leak, ...]
    doubts: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    table: Path | None

    @property
    def clean(self) -> bool:
        """Whether all was checked, and no tested case was learnt from."""
        return not (self.leaks or self.failures)

    @property
    def cases(self) -> tuple[str, ...]:
        """Tested cases that were learnt from, each once."""
        return tuple(dict.fromkeys(leak.case for leak in self.leaks))

    def __str__(self) -> str:
        where = f"; see {self.table}" if self.table else ""
        found = len({(leak.place, leak.case) for leak in self.leaks})
        head = f"{found} of {self.tested} tested cases are among {self.seen} seen ones{where}"
        lines = [head, *(f"  {leak}" for leak in self.leaks[:_SHOWN])]
        if len(self.leaks) > _SHOWN:
            lines.append(f"  and {len(self.leaks) - _SHOWN} pairs more")
        lines += [f"  not known: {doubt}" for doubt in self.doubts]
        return "\n".join([*lines, *(f"  not read: {scan}: {why}" for scan, why in self.failures)])


@dataclass(frozen=True)
class _Place:
    """Fingerprints of what is in a place, and what is not known of it."""

    name: str
    cases: Sequence[str]
    marks: Sequence[Fingerprint]
    learnt: Sequence[int]
    """Numbers of the cases that a training may learn from."""
    tested: Sequence[int]
    """Numbers of the cases that are tested on."""
    doubts: Sequence[str] = ()
    failures: Sequence[tuple[str, str]] = ()


def leaks(
    seen: Sequence[Path | str],
    against: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    likeness: float | None = None,
    overwrite: bool = False,
) -> Leaks:
    """Find the scans that are both in what was learnt from and in what is tested on.

    Copies are found under any name, with another header or compression, resampled, cut to the
    body, with another window of intensities, or with some noise; how surely, and what is not
    found, is said in ``docs/how-to/leaks.md``.

    Of a store with the splits ``validation`` and ``test``, the other cases are learnt from, and
    those of ``test`` are tested on; of a store without a split ``test`` all are. Such a store, or a
    folder, that is named on both sides is searched for copies within itself.

    Args:
        seen: Stores, runs (whose ``handover.json`` holds the fingerprints of all that they have
            learnt from), or folders of scans.
        against: The same, of tested cases.
        out: Folder for ``leaks.csv``; no table for ``None``.
        likeness: How alike two scans must look, from 0.5 to 1; 0.9 for ``None``.
        overwrite: Replace the table that is there.

    Raises:
        DataError: If a place holds neither a store, nor a run, nor scans.
        StoreError: If a store is damaged.
        UsageError: If nothing is named, the likeness is out of range, or the table would be
            replaced without being asked to.
        WeightsError: If a run does not tell what it has learnt from.
    """
    least = SAME if likeness is None else likeness
    table = None if out is None else Path(out) / TABLE
    _check(seen, against, least, table, overwrite=overwrite)
    named = dict.fromkeys(map(Path, (*seen, *against)))
    preprocessing = _preprocessing(list(named))
    places = {path: _read(path, preprocessing) for path in named}
    ours, theirs = (
        [places[p] for p in dict.fromkeys(map(Path, paths))] for paths in (seen, against)
    )
    found = tuple(leak for one in theirs for other in ours for leak in _between(other, one, least))
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        rows = ([*leak[:5], number_text(leak.likeness)] for leak in found)
        write_rows(table, Leak._fields, rows)
    return Leaks(
        seen=sum(len(place.learnt) for place in ours),
        tested=sum(len(place.tested) for place in theirs),
        leaks=found,
        doubts=tuple(doubt for place in ours for doubt in place.doubts),
        failures=tuple(failure for place in places.values() for failure in place.failures),
        table=table,
    )


def _check(
    seen: Sequence[Path | str],
    against: Sequence[Path | str],
    least: float,
    table: Path | None,
    *,
    overwrite: bool,
) -> None:
    if not seen or not against:
        raise UsageError("name what was learnt from, and with --against what is tested on.")
    if not WORTH_ALIGNING <= least <= 1:
        raise UsageError(
            f"likeness {least:g}: lies between {WORTH_ALIGNING} (scans of different people) and 1 "
            "(equal)."
        )
    if table is not None and table.exists() and not overwrite:
        raise UsageError(f"{table}: exists. Give another folder, or --overwrite.")


def _between(seen: _Place, tested: _Place, least: float) -> Iterator[Leak]:
    ours = [seen.marks[number] for number in seen.learnt]
    theirs = [tested.marks[number] for number in tested.tested]
    # Within one place a case is its own copy, and a pair that may change sides comes twice.
    both = {*seen.learnt} & {*tested.tested} if seen is tested else set[int]()
    for pair in find_overlaps(ours, theirs, least):
        one, other = tested.tested[pair.tested], seen.learnt[pair.seen]
        if {one, other} <= both and other >= one:
            continue
        case, copy = tested.cases[one], seen.cases[other]
        yield Leak(case, tested.name, copy, seen.name, pair.same, pair.likeness)


def _preprocessing(places: Sequence[Path]) -> Preprocessing:
    """How scans are prepared that are in no store: as the others are, for the same voxels."""
    for place in places:
        if _is_store(place):
            return Store(place).preprocessing
        if handover_file(place) is not None:
            return read_handover(place).preprocessing
    return Preprocessing()


def _read(place: Path, preprocessing: Preprocessing) -> _Place:
    if _is_store(place):
        store = Store(place)
        numbers = {case: number for number, case in enumerate(store.cases)}
        learnt, tested = (
            [numbers[case.id] for case in cases]
            for cases in (learnt_cases(store), tested_cases(store))
        )
        marks = fingerprints(store, store.cases.values())
        return _Place(str(place), list(numbers), marks, learnt, tested)
    if handover_file(place) is not None or place.name == WEIGHTS_FILE:
        return _run(place)
    if (place / "recipe.yaml").is_file():
        raise UsageError(
            f"{place}: is a run that is not finished, so it has no handover.json. Name the stores "
            "that it is trained on."
        )
    return _scans(place, preprocessing)


def _is_store(place: Path) -> bool:
    return (place / "store.json").is_file()


def _run(place: Path) -> _Place:
    parts = read_handover(place).seen
    if parts is None:
        raise WeightsError(
            f"{place}: its handover.json is of a version that did not keep which scans were learnt "
            "from. Name the stores that it was trained on."
        )
    texts = [text for part in parts for text in part.fingerprints]
    marks = decoded(texts)
    doubts = []
    if any(part.stage == "unknown" for part in parts):
        doubts.append(f"{place} started from weights that do not tell what they have learnt from")
    if len(marks) < len(texts):
        lost = len(texts) - len(marks)
        doubts.append(f"{place} has {lost} fingerprints that this version cannot read")
    every = range(len(marks))
    return _Place(str(place), [""] * len(marks), marks, every, every, doubts)


def _scans(place: Path, preprocessing: Preprocessing) -> _Place:
    """Scans that are in no store: each is prepared, looked at, and forgotten."""
    sources, refused = discover(place)
    failures = [(str(item.path), item.reason) for item in refused if not item.passed_over]
    names: list[str] = []
    marks: list[Fingerprint] = []
    for source in track(sources, "look at scans", total=len(sources)):
        try:
            scan, _ = read_source(replace(source, label=None))
            ready = prepare_volume(scan.volume, preprocessing, modality=scan.modality)
            marks.append(look_at(source, ready))
        except (VocoError, OSError, MemoryError) as error:
            failures.append((str(source.images[0]), str(error) or "not enough memory"))
            continue
        names.append(source.id)
    if not names and not failures:
        raise DataError(f"{place}: is neither a store nor a run, and holds nothing that is a scan.")
    every = range(len(names))
    return _Place(str(place), names, marks, every, every, (), failures)
