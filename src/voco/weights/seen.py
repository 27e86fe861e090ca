"""The scans that a network has learnt from: what ``handover.json`` keeps, and recognising them."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pydantic import NonNegativeInt

from voco.config import Config
from voco.data.fingerprint import Fingerprint, decoded
from voco.data.leaks import find_overlaps

Stage = Literal["pretraining", "segmentation", "classification"]
"""What a network was trained for."""


class Seen(Config):
    """Scans that a network has learnt from, to be recognised by."""

    stage: Stage | Literal["unknown"]
    """In which training; ``unknown`` for weights that do not tell what they were trained on."""
    fingerprints: tuple[str, ...] = ()
    """One of each case (:mod:`voco.data.fingerprint`), in rising order: they tell no names."""


class Guarded(Config):
    """A store of which no tested scan was learnt from."""

    digest: str
    """Of the store (:attr:`voco.data.store.Store.digest`)."""
    cases: NonNegativeInt
    """How many of its cases are tested on."""


class Recognised(NamedTuple):
    """Which scans a network has learnt from.

    Attributes:
        stages: By the number of the scan: in which training, the first if in several.
        certain: Whether all others are new; false if not all that was learnt from is known.
    """

    stages: dict[int, str]
    certain: bool


def seen_in(stage: Stage, marks: Iterable[Fingerprint]) -> Seen:
    """What is kept of a training."""
    return Seen(stage=stage, fingerprints=tuple(sorted(mark.encode() for mark in marks)))


def recognise(seen: Sequence[Seen], marks: Sequence[Fingerprint]) -> Recognised:
    """Find scans among those that were learnt from."""
    stages: dict[int, str] = {}
    certain = True
    for part in seen:
        known = decoded(part.fingerprints)
        certain &= part.stage != "unknown" and len(known) == len(part.fingerprints)
        for overlap in find_overlaps(known, marks):
            stages.setdefault(overlap.tested, part.stage)
    return Recognised(stages, certain)
