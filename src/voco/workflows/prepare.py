"""Scans on disk into a store, side by side, resumable, with a quality report."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from voco.data.datasets import read_dataset
from voco.data.intake import Job, Outcome, source_keys, take
from voco.data.layouts import check_counts, lay_out
from voco.data.loading import usable_cores
from voco.data.quality import Line, quality_lines, refusal_line, write_quality
from voco.data.quality_page import write_page
from voco.data.source import Refused, Source
from voco.data.sources import completed, discover
from voco.data.splits import with_splits
from voco.data.store import Case, Preprocessing, Store
from voco.engine.allocator import keep_freed_pages
from voco.errors import DataError, UsageError
from voco.progress import track
from voco.shapes import Spacing
from voco.shipped import shipped

_LONGEST_ID = 120


@dataclass(frozen=True)
class Report:
    """What became of the sources.

    Attributes:
        store: The store.
        taken: Cases made in this run, ``remade`` included.
        remade: Cases made anew because their source changed.
        skipped: Cases that were in the store already, unchanged.
        refused: Sources that could not be taken; why is in ``quality.jsonl``.
        refusals: Source and reason of each.
        notes: What a user should know about the data set that was named.
    """

    store: Path
    taken: int
    remade: int
    skipped: int
    refusals: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> int:
        """How many sources could not be taken."""
        return len(self.refusals)

    @property
    def complete(self) -> bool:
        """Whether every source found is in the store."""
        return not self.refusals

    def __str__(self) -> str:
        parts = [f"{self.taken} taken"]
        if self.remade:
            parts[0] += f" ({self.remade} of them anew: the source changed)"
        if self.skipped:
            parts.append(f"{self.skipped} there already")
        if self.refusals:
            parts.append(f"{self.refused} refused")
        shown = [f"  refused {source}: {reason}" for source, reason in self.refusals[:_SHOWN]]
        more = self.refused - len(shown)
        if more > 0:
            shown.append(f"  and {more} more")
        head = f"{', '.join(parts)}; see {self.store / 'quality.html'}"
        return "\n".join([head, *shown, *(f"note: {note}" for note in self.notes)])


_SHOWN = 10
"""Refusals that are printed; all are in the quality report."""


def prepare(  # noqa: PLR0913 (one argument per option)
    sources: Path | str | Iterable[Path | str],
    out: Path | str,
    *,
    spacing_mm: Spacing | float | None = None,
    foreground: bool = False,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    modality: str | None = None,
    overwrite: bool = False,
    dataset: str | None = None,
    partial: bool = False,
    split_files: Sequence[str] = (),
) -> Report:
    """Bring scans into a store.

    Safe to kill at any moment and to run again: finished cases are skipped, a case whose source
    changed is made anew, sources that are added keep what is there.

    Args:
        sources: Files, folders (walked), ``dataset.json``, nnU-Net raw or BIDS folders, lists.
        out: The store.
        spacing_mm: Millimetres per voxel, one number or three; ``None`` keeps each scan's own.
        foreground: Whether volumes are cut to the box that holds the body.
        workers: Processes; as many as there are cores for ``None``. Each needs up to 1 GB.
        shard: ``(i, n)``, from 1: only every n-th source, beginning with the i-th. All n may run
            at the same time.
        modality: What all scans are, for formats that do not say; overrides what files say.
        overwrite: Whether a store that is there is removed first.
        dataset: The source is this data set, as its owners distribute it: the name of a
            description that comes along, or the path of one. Counts, label values and splits are
            checked, and the description's spacing and foreground are used where none are given.
        partial: Whether a data set may have fewer or more cases than its owners distribute.
        split_files: Splits of a data set's cases, ``FILE``, ``SPLIT=FILE``, or ``FOLD=FILE`` of a
            JSON list with folds, instead of those that come along.

    Raises:
        DataError: If a place does not exist, or nothing that could be a scan is found; if it is
            not the data set that it is said to be.
        StoreError: If the store was prepared in another way.
        UsageError: If the shard is none or would overwrite, or the folder holds something else.
    """
    out, part = Path(out), _part(shard)
    if shard is not None and overwrite:
        raise UsageError("a shard cannot overwrite: it would remove what the others made.")
    places = [Path(place) for place in ([sources] if isinstance(sources, str | Path) else sources)]
    notes: tuple[str, ...] = ()
    if dataset is None:
        if partial or split_files:
            raise UsageError("partial and split_files are about a data set; name it: --dataset.")
        found, refused = _discover(places)
    else:
        found, refused, notes = _described(places, dataset, split_files, partial=partial)
        known = read_dataset(dataset)
        spacing_mm = known.spacing_mm if spacing_mm is None else spacing_mm
        foreground = foreground or known.foreground
    store = _open(out, _preprocessing(spacing_mm, foreground=foreground), overwrite=overwrite)
    if part is None:
        store.merge()
        _sweep(out)
    jobs = _jobs(found, store, modality)
    if shard is not None:
        jobs, refused = jobs[shard[0] - 1 :: shard[1]], refused[shard[0] - 1 :: shard[1]]
    outcomes = []
    try:
        for outcome in track(_work(jobs, out, workers), "prepare", total=len(jobs)):
            if outcome.case is not None and outcome.status != "kept":
                store.add([outcome.case], part)
            outcomes.append(outcome)
    finally:
        lines = [refusal_line(item) for item in refused]
        lines += quality_lines(outcomes, store)
        write_page(store, write_quality(out, lines, part))
        store.write_counts()
    return _report(out, outcomes, lines, notes)


def _part(shard: tuple[int, int] | None) -> str | None:
    if shard is None:
        return None
    number, count = shard
    if not 1 <= number <= count:
        raise UsageError(f"shard {shard}: must be (i, n) with 1 <= i <= n.")
    return f"{number}-of-{count}"


def _preprocessing(spacing_mm: Spacing | float | None, *, foreground: bool) -> Preprocessing:
    if isinstance(spacing_mm, int | float):
        spacing_mm = (spacing_mm, spacing_mm, spacing_mm)
    if spacing_mm is not None and not all(0 < side < float("inf") for side in spacing_mm):
        raise UsageError(f"spacing_mm {spacing_mm}: must be positive.")
    return Preprocessing(spacing_mm=spacing_mm, foreground=foreground)


Keyed = dict[str, tuple[Source, Path]]
"""Sources by key, with the place in which each was found."""


def _described(
    places: Sequence[Path], dataset: str, split_files: Sequence[str], *, partial: bool
) -> tuple[Keyed, list[Refused], tuple[str, ...]]:
    """The cases of a data set, what is wrong with others, and what is to be known about it.

    Raises:
        DataError: If it is not there, not whole, or its splits are not sound.
        UsageError: If there is no such description, or more than one folder is named.
    """
    if len(places) != 1:
        raise UsageError(f"--dataset {dataset}: name the one folder that holds it.")
    root = places[0]
    description = read_dataset(dataset)
    name = dataset if dataset in shipped("data set") else str(Path(dataset).absolute())
    laid = lay_out(description, name, root)
    if not partial:
        check_counts(description, name, root, laid)
    sources, refused = completed(
        with_splits(description, name, laid, split_files, partial=partial), laid.refused
    )
    notes = list(description.traps)
    if laid.unused:
        names = ", ".join(laid.unused[:3])
        notes.insert(0, f"{len(laid.unused)} images are no part of {dataset}, such as {names}")
    found = {
        key: (source, root.absolute())
        for key, source in zip(source_keys(sources), sources, strict=True)
    }
    return found, refused, tuple(notes)


def _discover(named: Iterable[Path]) -> tuple[Keyed, list[Refused]]:
    """All sources by key, each once, with the place in which it was found."""
    found: Keyed = {}
    refused: dict[Refused, None] = {}
    places = list(named)
    for place in places:
        sources, reasons = discover(place)
        for key, source in zip(source_keys(sources), sources, strict=True):
            found.setdefault(key, (source, place.absolute()))
        refused |= dict.fromkeys(reasons)
    if not found and not refused:
        raise DataError(
            f"{', '.join(map(str, places)) or 'no source'}: nothing that could be a scan."
        )
    return found, list(refused)


def _open(out: Path, preprocessing: Preprocessing, *, overwrite: bool) -> Store:
    is_store = (out / "store.json").exists()
    if out.exists() and not is_store and any(not p.name.startswith(".") for p in out.iterdir()):
        raise UsageError(f"{out}: holds something else than a store. Give another folder.")
    if is_store and overwrite:
        _remove(out)
    return Store.create(out, preprocessing)


def _remove(store: Path) -> None:
    """Remove a store's files, and nothing else that lies in its folder; the head goes last."""
    names = ("cases*.jsonl", "quality*.jsonl", "quality.html", "images/*.b2nd", "labels/*.b2nd")
    for name in (*names, "store.json"):
        for file in store.glob(name):
            file.unlink()


def _sweep(store: Path) -> None:
    """Remove what killed processes left half written."""
    for folder in (store, store / "images", store / "labels"):
        for file in folder.glob(".*.*"):
            if re.search(r"\.(b2nd|jsonl|json|html)\.\d+$", file.name):
                file.unlink(missing_ok=True)


def _jobs(
    found: Mapping[str, tuple[Source, Path]], store: Store, modality: str | None
) -> list[Job]:
    known = {case.source: case for case in (*store.cases.values(), *store.gone.values())}
    names = _names({key: source for key, (source, _) in found.items()}, known)
    return [
        Job(source, key, names[key], place, modality, known.get(key))
        for key, (source, place) in found.items()
    ]


def _names(found: Mapping[str, Source], known: Mapping[str, Case]) -> dict[str, str]:
    """An id for each source: its own as long as no other has it, else with a hash of its path.

    A source that the store knows keeps its id, so ids do not depend on what is added later.
    """
    names = {key: case.id for key, case in known.items()}
    # Some file systems do not tell Liver from liver.
    used = {name.casefold() for name in names.values()}
    wanted = {key: source.id[:_LONGEST_ID] for key, source in found.items() if key not in names}
    count = Counter(name.casefold() for name in wanted.values())
    for key, name in wanted.items():
        taken = count[name.casefold()] > 1 or name.casefold() in used
        names[key] = f"{name}-{sha256(key.encode()).hexdigest()[:8]}" if taken else name
    return names


def take_next(job: Job, store: Path) -> Outcome:
    """Bring one of many sources into a store: the memory of one serves the next.

    As :func:`voco.data.intake.take`.
    """
    keep_freed_pages()
    return take(job, store)


def _work(jobs: Sequence[Job], store: Path, workers: int | None) -> Iterator[Outcome]:
    count = min(workers or usable_cores(), len(jobs))
    if count <= 1:
        yield from (take_next(job, store) for job in jobs)
        return
    left = dict(enumerate(jobs))
    while left:
        try:
            for number, outcome in _side_by_side(left, store, count):
                del left[number]
                yield outcome
        except TerminatedWorkerError:
            # Nobody says which case it was. It is among those begun first, so these go one by one.
            for number in list(left)[: 2 * count]:
                yield _alone(left.pop(number), store)


def _side_by_side(
    jobs: Mapping[int, Job], store: Path, workers: int
) -> Iterator[tuple[int, Outcome]]:
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        # joblib's declared types lag behind its documentation.
        pool: Any = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=workers)  # pyright: ignore[reportArgumentType]
        run = delayed(_numbered)
        yield from pool(run(take_next, number, job, store) for number, job in list(jobs.items()))


def _numbered(
    run: Callable[[Job, Path], Outcome], number: int, job: Job, store: Path
) -> tuple[int, Outcome]:
    return number, run(job, store)


def _alone(job: Job, store: Path) -> Outcome:
    """A job in a process of its own that may die."""
    try:
        return get_reusable_executor(max_workers=1).submit(take_next, job, store).result()
    except TerminatedWorkerError:
        reason = "its process was killed, most likely for want of memory"
        return Outcome(job, "refused", reason=reason)


def _report(
    store: Path, outcomes: Sequence[Outcome], lines: Sequence[Line], notes: tuple[str, ...]
) -> Report:
    count = Counter(outcome.status for outcome in outcomes)
    return Report(
        store=store,
        taken=count["made"] + count["remade"],
        remade=count["remade"],
        skipped=count["kept"] + count["updated"],
        refusals=tuple(
            (line.source, line.reason or "") for line in lines if line.status == "refused"
        ),
        notes=notes,
    )
