"""One source into a store: hashed, read, prepared, written. Shared by preparing and repairing."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from voco.data.fingerprint import Fingerprint, decode, fingerprint
from voco.data.leaks import fingerprint_of
from voco.data.preprocess import Prepared, prepare_volume
from voco.data.source import Source
from voco.data.sources import read_source
from voco.data.store import Case, Store
from voco.errors import DataError, StoreError, VocoError

_HEADERS = {".hdr", ".img", ".head", ".brik", ".mhd", ".nhdr"}
"""Endings of formats with the voxels in a second file of the same name."""


@dataclass(frozen=True)
class Job:
    """A source and what becomes of it.

    Attributes:
        source: What to read.
        key: What tells it apart, see :attr:`voco.data.store.Case.source`.
        case: The id of its case.
        place: What the user named, in which it was found.
        modality: What the user says all scans are.
        known: The case that the store has of it.
    """

    source: Source
    key: str
    case: str
    place: Path
    modality: str | None = None
    known: Case | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a source.

    Attributes:
        job: The source.
        status: ``made``; ``remade`` because it changed; ``kept`` as it was; ``updated``: the
            voxels were kept, but what is stated about them changed; ``refused``.
        case: The case. Of a refused source only where its last version was in the store: that
            case, gone.
        reason: Why it was refused or remade.
    """

    job: Job
    status: Literal["made", "remade", "kept", "updated", "refused"]
    case: Case | None = None
    reason: str | None = None


def take(job: Job, store: Path) -> Outcome:
    """Bring a source into a store, unless it is there already; never raises for a bad source.

    Writes the arrays; whoever calls adds the case.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # cases run side by side: one thread each
    try:
        return _take(job, Store(store))
    except (VocoError, MemoryError, OSError) as error:
        return Outcome(job, "refused", reason=str(error) or "not enough memory")
    except Exception as error:  # noqa: BLE001 (one scan must not end the work on all the others)
        reason = f"unexpected {type(error).__name__}: {error}. Please report this as a bug"
        return Outcome(job, "refused", reason=reason)
    finally:
        torch.set_num_threads(threads)  # whoever prepares in its own process goes on with all


def make_case(job: Job, store: Store, digest: str) -> Case:
    """Read, prepare and write a source.

    Args:
        job: The source.
        store: Where its arrays go.
        digest: From :func:`digest_source`.

    Raises:
        DataError: If it cannot be taken.
    """
    ready, channels, warnings = _prepare(job, store)
    case = Case(
        id=job.case,
        source=job.key,
        place=str(job.place),
        source_sha256=digest,
        shape=ready.grid.shape,
        spacing_mm=ready.grid.spacing_mm,
        affine=ready.grid.affine.tolist(),
        source_shape=ready.source_grid.shape,
        source_affine=ready.source_grid.affine.tolist(),
        source_orientation=ready.source_grid.orientation,
        modality=ready.modality,
        channels=channels,
        scale=ready.scale,
        offset=ready.offset,
        statistics=ready.statistics,
        foreground=ready.foreground,
        class_voxels=ready.class_voxels,
        warnings=tuple(dict.fromkeys((*warnings, *ready.warnings))),
        fingerprint=look_at(job.source, ready).encode(),
        revision=0 if job.known is None else job.known.revision + 1,
    )
    case = case.model_copy(update=_stated(job, case))
    return store.write(case, ready.image, ready.label)


def _prepare(job: Job, store: Store) -> tuple[Prepared, tuple[str, ...], tuple[str, ...]]:
    """The prepared scan, its channels and warnings; the scan itself is gone from memory."""
    scan, label = read_source(job.source, modality=job.modality)
    ready = prepare_volume(scan.volume, store.preprocessing, modality=scan.modality, label=label)
    return ready, scan.channels, scan.warnings


def digest_source(source: Source) -> str:
    """sha256 over the content of all files of a source, its label included."""
    files = [part for file in source.files for part in _with_companions(file)]
    parts = [_digest_file(file, *_change_marks(file)) for file in files]
    return hashlib.sha256("\n".join([*parts, source.member or ""]).encode()).hexdigest()


def look_at(source: Source, ready: Prepared) -> Fingerprint:
    """The fingerprint of a prepared source; that of a labelled copy is the same."""
    files = digest_source(replace(source, label=None))
    return fingerprint(ready.image, ready.grid.spacing_mm, files)


def source_keys(sources: Sequence[Source]) -> list[str]:
    """What tells sources apart: the path, and a name where several share it."""
    # Not resolved: a link's own path is what the user knows.
    paths = [os.path.abspath(source.images[0]) for source in sources]  # noqa: PTH100
    count = Counter(paths)
    return [
        f"{path}#{_part(source)}" if count[path] > 1 or source.member else path
        for path, source in zip(paths, sources, strict=True)
    ]


def _take(job: Job, store: Store) -> Outcome:
    digest, known = digest_source(job.source), job.known
    if known is None:
        return Outcome(job, "made", make_case(job, store, digest))
    if reason := _change(job, known, digest):
        return _remake(job, known, store, digest, reason)
    stated = {**_stated(job, known), **_recognisable(known, store)}
    if all(getattr(known, name) == value for name, value in stated.items()):
        return Outcome(job, "kept", known)
    revision = known.revision + 1
    return Outcome(job, "updated", known.model_copy(update={**stated, "revision": revision}))


def _remake(job: Job, known: Case, store: Store, digest: str, reason: str) -> Outcome:
    try:
        return Outcome(job, "remade", make_case(job, store, digest), reason)
    except DataError as error:
        # What the store holds is no longer what the source says: it must not be served.
        gone = known.model_copy(update={"gone": True, "revision": known.revision + 1})
        return Outcome(job, "refused", gone, str(error))


def _change(job: Job, known: Case, digest: str) -> str | None:
    """Why a known case no longer is what its source would give."""
    if digest != known.source_sha256 or known.gone:
        return "its source changed"
    stated = job.modality or job.source.modality
    if stated != known.stated_modality:
        return f"it was said to be {known.stated_modality or 'unknown'}, now {stated or 'unknown'}"
    return None


def _stated(job: Job, case: Case) -> Mapping[str, Any]:
    """What lists and data sets say about a case, beyond its voxels."""
    source = job.source
    named = source.classes or {value: str(value) for value in case.class_voxels if value}
    return {
        "classes": {0: "background", **named} if case.has_label else {},
        "split": source.split,
        "group": source.group,
        "target": source.target,
        "channels": source.channels or case.channels,
        "stated_modality": job.modality or source.modality,
        "place": str(job.place),
        "dataset": source.dataset,
    }


def _recognisable(case: Case, store: Store) -> Mapping[str, Any]:
    """The fingerprint, for a case that came into the store before there were any."""
    if decode(case.fingerprint) is not None:
        return {}
    try:
        return {"fingerprint": fingerprint_of(store, case).encode()}
    except StoreError:
        return {}  # damaged voxels are for 'voco verify' to find and to mend


def _part(source: Source) -> str:
    return source.member or (source.stack.name if source.stack else source.id)


def _with_companions(file: Path) -> list[Path]:
    """A file and, for a header whose voxels lie in a file beside it, that file."""
    if file.suffix.lower() not in _HEADERS:
        return [file]
    return sorted(other for other in file.parent.iterdir() if other.stem == file.stem)


def _change_marks(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _digest_file(file: Path, _changed: int, _size: int) -> str:
    """Of one file; an archive that holds a thousand cases is read once per process."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
