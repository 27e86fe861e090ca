"""Which tested cases were learnt from: fingerprints of many cases against those of many others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from voco.data.fingerprint import (
    SAME,
    WORTH_ALIGNING,
    Fingerprint,
    Looks,
    aligned_likeness,
    decode,
    directions,
    fingerprint,
)
from voco.data.store import Case, Store
from voco.progress import track

Same = Literal["files", "voxels", "look"]
"""What two cases share: their files, their prepared voxels, or their look."""

_CASES, _LOOKS = 4, 3
"""With how many of the seen cases that look most alike a tested case is aligned, and how many
pairs of their looks are tried."""


class Overlap(NamedTuple):
    """Two cases that were made from one scan.

    Attributes:
        seen: Number of the first among the cases that were learnt from.
        tested: Number of the second among the tested cases.
        same: What they share; the strictest that holds.
        likeness: Of their looks; 1 where more than those is equal.
    """

    seen: int
    tested: int
    same: Same
    likeness: float


class LeftOut(NamedTuple):
    """A case that must not be learnt from.

    Attributes:
        store: Number of its store.
        case: Its id.
        copy_of: The guarded case that is the same scan, or a scan of whose group is.
        copy_store: Number of that case's store among those that are guarded.
        same: What they share; ``group`` where another case of the group is the copy.
        likeness: Of the copy.
    """

    store: int
    case: str
    copy_of: str
    copy_store: int
    same: Same | Literal["group"]
    likeness: float


def find_overlaps(
    seen: Sequence[Fingerprint], tested: Sequence[Fingerprint], likeness: float = SAME
) -> list[Overlap]:
    """All pairs of a seen and a tested case that were made from one scan.

    Args:
        seen: Cases that were learnt from.
        tested: Cases that are tested on.
        likeness: How alike two cases must look.

    Returns:
        In the order of the tested cases, and of the seen cases for each.
    """
    found = {(item.seen, item.tested): item for item in _alike(seen, tested, likeness)}
    sames: tuple[Same, ...] = ("voxels", "files")
    for same in sames:
        for pair in _equal(seen, tested, same):
            found[pair] = Overlap(*pair, same, 1.0)
    return sorted(found.values(), key=lambda item: (item.tested, item.seen))


def learnt_cases(store: Store) -> list[Case]:
    """What a training may learn from: cases that are not kept for validation or test."""
    return [case for case in store.cases.values() if case.split not in ("validation", "test")]


def tested_cases(store: Store) -> list[Case]:
    """What is tested on: the cases of the split ``test``; all, where there are none."""
    return [c for c in store.cases.values() if c.split == "test"] or list(store.cases.values())


def fingerprints(store: Store, cases: Iterable[Case]) -> list[Fingerprint]:
    """The fingerprints of some cases of a store, made from their voxels where none is kept.

    Raises:
        StoreError: If the voxels of such a case are missing or damaged.
    """
    cases = list(cases)
    known = {case.id: decode(case.fingerprint) for case in cases}
    lacking = [case for case in cases if known[case.id] is None]
    for case in track(lacking, "fingerprints", total=len(lacking)):
        known[case.id] = fingerprint_of(store, case)
    return [mark for case in cases if (mark := known[case.id]) is not None]


def fingerprint_of(store: Store, case: Case) -> Fingerprint:
    """The fingerprint of a case, from its voxels.

    Raises:
        StoreError: If they are missing or damaged.
    """
    # What is known of a labelled source is the hash of the image and of the label together.
    files = "" if case.has_label else case.source_sha256
    return fingerprint(store.read(case.id), case.spacing_mm, files)


def cases_to_leave_out(stores: Sequence[Store], guarded: Sequence[Store]) -> tuple[LeftOut, ...]:
    """Cases that are copies of what is tested on, and all others of their groups.

    Args:
        stores: What may be learnt from.
        guarded: What is tested on: of each the cases of the split ``test``, or all if none are.

    Raises:
        StoreError: If the voxels of a case without a fingerprint are missing or damaged.
    """
    if not guarded:
        return ()
    ours, theirs = (
        [(number, case) for number, store in enumerate(some) for case in cases_of(store)]
        for some, cases_of in ((stores, learnt_cases), (guarded, tested_cases))
    )
    seen, tested = (
        [mark for store in some for mark in fingerprints(store, cases_of(store))]
        for some, cases_of in ((stores, learnt_cases), (guarded, tested_cases))
    )
    found: dict[tuple[int, str], LeftOut] = {}
    groups: dict[str, LeftOut] = {}
    for overlap in find_overlaps(seen, tested):
        (store, case), (copy_store, copy) = ours[overlap.seen], theirs[overlap.tested]
        item = LeftOut(store, case.id, copy.id, copy_store, overlap.same, overlap.likeness)
        found.setdefault((store, case.id), item)
        if case.group:
            groups.setdefault(case.group, item)
    for store, case in ours:
        if case.group in groups and (store, case.id) not in found:
            first = groups[case.group]
            found[store, case.id] = first._replace(store=store, case=case.id, same="group")
    return tuple(found[key] for key in sorted(found))


def _equal(
    seen: Sequence[Fingerprint], tested: Sequence[Fingerprint], same: Same
) -> Iterator[tuple[int, int]]:
    """Pairs of cases with equal files, or with equal voxels."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for number, mark in enumerate(seen):
        places[mark.files if same == "files" else mark.voxels].append(number)
    for number, mark in enumerate(tested):
        key = mark.files if same == "files" else mark.voxels
        if any(key):  # zeros stand for files that are not known
            yield from ((place, number) for place in places.get(key, ()))


def _alike(
    seen: Sequence[Fingerprint], tested: Sequence[Fingerprint], least: float
) -> Iterator[Overlap]:
    """Pairs of cases that look the same."""
    ours, theirs = (
        [number for number, mark in enumerate(some) if len(mark.looks.waves)]
        for some in (seen, tested)
    )
    if not ours or not theirs:
        return
    rows = directions(np.concatenate([seen[number].looks.waves for number in ours]))
    starts = np.cumsum([0, *(len(seen[number].looks.waves) for number in ours[:-1])])
    for number in theirs:
        products = directions(tested[number].looks.waves) @ rows.T
        likeness = np.maximum.reduceat(products.max(axis=0), starts)
        for place in np.flatnonzero(likeness >= least):
            # Of equal looks the product may be a last bit above 1.
            yield Overlap(ours[place], number, "look", min(1.0, float(likeness[place])))
        for place in np.argsort(-likeness, kind="stable")[:_CASES]:
            if WORTH_ALIGNING <= likeness[place] < least:
                best = likeness_of(seen[ours[place]].looks, tested[number].looks)
                if best >= least:
                    yield Overlap(ours[place], number, "look", best)


def likeness_of(seen: Looks, tested: Looks) -> float:
    """How alike two cases are after alignment: the best of the pairs of looks that fit best."""
    products = _products(seen, tested)
    best = float(products.max(initial=0.0))
    for place in np.argsort(-products, axis=None)[:_LOOKS]:
        first, second = divmod(int(place), products.shape[1])
        best = max(best, aligned_likeness(_row(tested, first), _row(seen, second)))
    return min(1.0, best)


def _row(looks: Looks, number: int) -> Looks:
    here = slice(number, number + 1)
    return Looks(looks.sides_mm[here], looks.waves[here])


def _products(seen: Looks, tested: Looks) -> Float32[np.ndarray, "tested seen"]:
    return directions(tested.waves) @ directions(seen.waves).T
