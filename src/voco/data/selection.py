"""Which cases are trained on, and in which order: a function of the seed alone."""

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from voco.data.store import Case, Store
from voco.draws import mixed_seed
from voco.errors import ConfigError, StoreError

_HOLDOUT, _ORDER, _STORES = 0x40, 0x41, 0x42


class Entry(NamedTuple):
    """One case of one of several stores."""

    store: int
    case: Case


class Split(NamedTuple):
    """Cases that are trained on, and cases that are only looked at."""

    train: tuple[Entry, ...]
    held_out: tuple[Entry, ...]


def split_cases(
    stores: Sequence[Store],
    holdout: float,
    seed: int,
    without: Collection[tuple[int, str]] = (),
) -> Split:
    """Share out the cases of all stores.

    Cases of the split ``validation`` are held out, those of ``test`` are left alone, and of the
    groups (patients) of all others a share is held out. A group is never split up: one that has a
    case for validation or test is not trained on. The choice is nested: what a smaller share
    holds out, a larger one does, too.

    Args:
        stores: Where the cases are.
        holdout: Share of the groups.
        seed: Chooses them.
        without: Number of the store and id of cases that are neither trained on nor held out, and
            neither is anything of their groups.

    Raises:
        StoreError: If nothing is left to train on.
        ConfigError: If the cases differ in their number of channels.
    """
    entries = [Entry(i, case) for i, store in enumerate(stores) for case in store.cases.values()]
    _check_channels(stores, entries)
    away = {_group(entry) for entry in entries if (entry.store, entry.case.id) in without}
    kept = {_group(entry) for entry in entries if entry.case.split in ("validation", "test")} | away
    free = [entry for entry in entries if _group(entry) not in kept]
    groups = sorted({_group(entry) for entry in free}, key=lambda name: _rank(name, seed))
    if holdout and len(groups) == 1:
        raise ConfigError(f"holdout {holdout}: there is only one group of cases; set holdout to 0.")
    count = min(len(groups) - 1, max(1, round(holdout * len(groups)))) if holdout else 0
    chosen = set(groups[:count])
    held = [e for e in entries if e.case.split == "validation" and _group(e) not in away]
    split = Split(
        tuple(entry for entry in free if _group(entry) not in chosen),
        (*held, *(entry for entry in free if _group(entry) in chosen)),
    )
    if not split.train:
        names = ", ".join(str(store.path) for store in stores)
        also = f", and so are {len(without)} copies of cases to be tested on" if without else ""
        raise StoreError(
            f"{names}: no case to train on: there are {len(entries)} cases, and those of the "
            f"splits 'validation' and 'test' are left out{also}. Prepare more scans with: voco "
            "prepare."
        )
    return split


class Order:
    """The endless order in which cases are trained on.

    ``case``: the cases in a random order, then all of them in another one, and so on: after n
    samples of N cases each was seen n // N times, or once more. ``store``: the stores take turns,
    in a random order each round, and each has such an order of its own cases.

    Args:
        entries: The cases.
        balance: ``case`` or ``store``.
        seed: The run's seed.
    """

    def __init__(self, entries: Sequence[Entry], balance: str, seed: int) -> None:
        numbers = sorted({entry.store for entry in entries})
        whole = [list(entries)]
        apart = [[entry for entry in entries if entry.store == number] for number in numbers]
        self._piles = apart if balance == "store" else whole
        self._seed = seed

    def __getitem__(self, number: int) -> Entry:
        """The case of a sample; samples are counted over steps and processes."""
        turn, place = divmod(number, len(self._piles))
        pile = _permutation(len(self._piles), mixed_seed(self._seed, turn, _STORES))[place]
        entries = self._piles[pile]
        epoch, place = divmod(turn, len(entries))
        key = mixed_seed(self._seed, epoch, pile, _ORDER)
        return entries[_permutation(len(entries), key)[place]]


@lru_cache(maxsize=64)
def _permutation(length: int, seed: int) -> tuple[int, ...]:
    if length == 1:
        return (0,)
    return tuple(torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist())


def _group(entry: Entry) -> str:
    case = entry.case
    return f"group {case.group}" if case.group else f"case {entry.store} {case.id}"


def _rank(name: str, seed: int) -> int:
    hashed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return mixed_seed(seed, hashed, _HOLDOUT)


def _check_channels(stores: Sequence[Store], entries: Sequence[Entry]) -> None:
    counts: dict[int, Entry] = {}
    for entry in entries:
        counts.setdefault(len(entry.case.channels), entry)
    if len(counts) > 1:
        lines = "\n".join(
            f"  {stores[entry.store].path}, case {entry.case.id}: "
            f"{len(entry.case.channels)} ({', '.join(entry.case.channels)})"
            for entry in counts.values()
        )
        raise ConfigError(
            f"the cases differ in their number of channels, and a network takes one number "
            f"only:\n{lines}\nTrain on stores of one kind."
        )
