"""Check that a store still holds what was written, and mend it from the sources."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from voco.data.arrays import open_array
from voco.data.intake import Job, digest_source, make_case, source_keys
from voco.data.source import Source
from voco.data.sources import discover
from voco.data.store import Case, Store
from voco.errors import VocoError
from voco.progress import track

Found = Mapping[str, Source]
"""Sources by key."""


@dataclass(frozen=True)
class Verification:
    """What a check of a store found.

    Attributes:
        store: The store.
        checked: Cases looked at.
        damaged: What is wrong with each case that is not as written, by id; the mended included.
        repaired: Cases that were made anew and are as before.
        failed: Why damaged cases could not be mended, by id.
    """

    store: Path
    checked: int
    damaged: Mapping[str, str]
    repaired: tuple[str, ...]
    failed: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether all cases are as written (by now)."""
        return set(self.damaged) == set(self.repaired)

    def __str__(self) -> str:
        lines = [f"{self.store}: {self.checked} cases checked, {len(self.damaged)} damaged"]
        for name, problem in self.damaged.items():
            end = "; made anew" if name in self.repaired else ""
            end = f"; not mended: {self.failed[name]}" if name in self.failed else end
            lines.append(f"  {name}: {problem}{end}")
        if not self.sound and not self.failed:
            lines.append(f"'voco verify {self.store} --repair' makes them anew from their sources.")
        return "\n".join(lines)


def verify(path: Path | str, *, repair: bool = False) -> Verification:
    """Compare each array of a store with its checksum.

    Args:
        path: The store.
        repair: Whether damaged cases are made anew from their sources, which must be unchanged.

    Raises:
        StoreError: If it is not a store, or its list of cases is damaged.
    """
    store = Store(path)
    cases = store.cases
    damaged = {
        case.id: problem
        for case in track(cases.values(), "verify", total=len(cases))
        if (problem := "; ".join(_problems(store, case)))
    }
    failed: dict[str, str] = {}
    if repair:
        places: dict[str, Found | str] = {}
        for name in track(damaged, "repair", total=len(damaged)):
            if reason := _repair(store, cases[name], places):
                failed[name] = reason
    repaired = tuple(name for name in damaged if repair and name not in failed)
    return Verification(store.path, len(cases), damaged, repaired, failed)


def _problems(store: Store, case: Case) -> Iterator[str]:
    files: list[tuple[Path, str, tuple[int, ...]]]
    files = [(store.image_file(case.id), case.image_sha256, (len(case.channels), *case.shape))]
    if case.has_label:
        files.append((store.label_file(case.id), case.label_sha256, case.shape))
    for file, digest, shape in files:
        name = file.relative_to(store.path)
        if not file.exists():
            yield f"{name} is missing"
        elif digest and digest != _digest(file):
            yield f"{name} is not what was written"
        elif (found := _shape(file)) != shape:
            yield f"{name} is {found or 'damaged'}, not {shape}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shape(file: Path) -> tuple[int, ...] | None:
    try:
        return tuple(open_array(file).shape)
    except (RuntimeError, OSError):
        return None


def _repair(store: Store, case: Case, places: dict[str, Found | str]) -> str | None:
    """Make a case anew; why not, if it cannot be."""
    place = f"{case.dataset}:{case.place}"
    if place not in places:
        places[place] = _look(Path(case.place), case.dataset)
    found = places[place]
    if isinstance(found, str):
        return found
    source = found.get(case.source)
    if source is None:
        return f"{case.source} is no longer found in {case.place}"
    try:
        digest = digest_source(source)
        if digest != case.source_sha256:
            return f"{case.source} changed; 'voco prepare {case.place}' takes it as it is now"
        modality = None if case.modality == "unknown" else case.modality
        job = Job(source, case.source, case.id, Path(case.place), modality, case)
        made = make_case(job, store, digest)
    except (VocoError, OSError, MemoryError) as error:
        return str(error)
    # What was stated about the case, and its warnings, stay as they were when it was taken.
    sums = {"image_sha256": made.image_sha256, "label_sha256": made.label_sha256}
    store.add([case.model_copy(update=sums)])
    return None


def _look(place: Path, dataset: str) -> Found | str:
    try:
        sources, _ = discover(place, dataset)
    except (VocoError, OSError) as error:
        return str(error)
    return dict(zip(source_keys(sources), sources, strict=True))
