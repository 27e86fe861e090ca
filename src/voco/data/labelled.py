"""Which labelled cases are learnt from, which are held out, and which classes they have.

Cases are put into an order by a hash of their name and a seed, and taken from its front. So the
first 5 are among the first 10, and a case that is added to a store moves no other one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from voco.data.store import Case, Store
from voco.errors import ConfigError, StoreError

Kind = Literal["label", "target"]
"""Whether voxels have classes, or whole volumes."""


class Labelled(NamedTuple):
    """A case and the store that it is in."""

    store: Store
    case: Case


class Split(NamedTuple):
    """What becomes of the labelled cases."""

    train: tuple[Labelled, ...]
    """Learnt from."""
    validation: tuple[Labelled, ...]
    """Looked at, never learnt from."""
    unused: tuple[Labelled, ...]
    """Neither: cases of the split ``test``, and labels that were not asked for."""


def labelled_cases(stores: Sequence[Store], kind: Kind) -> tuple[Labelled, ...]:
    """All cases that have a label (or a target), in the order of the stores.

    Raises:
        StoreError: If there is none, or two stores use the same name for a case.
    """
    found: dict[str, Labelled] = {}
    for store in stores:
        for case in store.cases.values():
            if not (case.has_label if kind == "label" else case.target is not None):
                continue
            if case.id in found:
                raise StoreError(
                    f"case '{case.id}' is in {found[case.id].store.path} and in {store.path}. "
                    "Prepare both sources into one store, which gives every case its own name."
                )
            found[case.id] = Labelled(store, case)
    if not found:
        names = ", ".join(str(store.path) for store in stores)
        raise StoreError(
            f"{names}: no case has a {kind}. Prepare sources that come with "
            f"{'label files' if kind == 'label' else 'a class per scan'}."
        )
    return tuple(found.values())


def label_classes(cases: Iterable[Labelled]) -> dict[int, str]:
    """Label values and their names in rising order; 0 is the background and always there.

    Raises:
        StoreError: If two cases give a value different names, or a label holds a value that the
            case does not name.
    """
    names: dict[int, str] = {0: "background"}
    known: dict[int, str] = {}
    for _, case in cases:
        for value, name in case.classes.items():
            if value in known and names[value] != name:
                raise StoreError(
                    f"label value {value} is '{names[value]}' in case '{known[value]}' and "
                    f"'{name}' in case '{case.id}'. Give it one name and prepare anew."
                )
            names[value] = name
            known[value] = case.id
        strange = sorted(set(case.class_voxels) - set(case.classes) - {0})
        if strange:
            raise StoreError(
                f"case '{case.id}': its label holds the values {strange}, which are none of its "
                f"classes {case.classes}. Name or correct them and prepare anew."
            )
    return dict(sorted(names.items()))


def target_classes(cases: Iterable[Labelled]) -> tuple[int | str, ...]:
    """The different targets, in rising order.

    Raises:
        StoreError: If there is only one, or some are numbers and some are words.
    """
    targets = {case.target for _, case in cases if case.target is not None}
    if len({type(target) for target in targets}) > 1:
        raise StoreError(f"targets are numbers and words: {sorted(map(str, targets))}.")
    if len(targets) < 2:
        raise StoreError(f"all cases have the target {targets}; there is nothing to tell apart.")
    return tuple(sorted(targets))  # pyright: ignore[reportArgumentType] (all of one type)


def split_cases(
    cases: Sequence[Labelled],
    *,
    validation: int | float,
    split_seed: int,
    labels: int | float | None,
    labels_seed: int,
) -> Split:
    """Share the cases out.

    Cases of the split ``validation`` are held out; where there is none, ``validation`` says how
    many of the others are, groups whole. ``test`` is never touched. With targets every part has
    them in the same shares.

    Args:
        cases: All labelled cases.
        validation: A count, or a share below 1; 0 holds nothing out.
        split_seed: Chooses them.
        labels: How many of the rest to learn from: a count, or a share; ``None`` takes all.
        labels_seed: Chooses those.

    Raises:
        ConfigError: If there are fewer cases than asked for, or none is left to learn from.
        StoreError: If the store puts cases of one group into different splits.
    """
    _check_groups(cases)
    usable = [one for one in cases if one.case.split != "test"]
    held = [one for one in usable if one.case.split == "validation"]
    if not held:
        held = _hold_out(usable, _amount(validation, len(usable), "validation"), split_seed)
    away = {one.case.id for one in held}
    rest = [one for one in usable if one.case.id not in away]
    if not rest:
        raise ConfigError(
            f"validation: {len(held)} of {len(cases)} labelled cases are held out, so none is "
            "left to learn from. Hold out fewer."
        )
    count = len(rest) if labels is None else _amount(labels, len(rest), "labels")
    if count == 0:
        raise ConfigError("labels: 0 cases are nothing to learn from. Take at least 1.")
    order = _in_order(rest, labels_seed, lambda one: one.case.id)
    chosen = {one.case.id for one in order[:count]}
    unused = [one for one in cases if one not in held and one.case.id not in chosen]
    return Split(tuple(one for one in rest if one.case.id in chosen), tuple(held), tuple(unused))


def check_channels(cases: Iterable[Labelled], in_channels: int) -> None:
    """Refuse cases that a network cannot be shown.

    Raises:
        ConfigError: Naming the first whose number of channels is not that of the network.
    """
    for one in cases:
        count = len(one.case.channels)
        if count != in_channels:
            raise ConfigError(
                f"case '{one.case.id}' has {count} channels {one.case.channels}, but "
                f"backbone.in_channels is {in_channels}. Set it to {count}, or "
                "use other data."
            )


def _hold_out(cases: Sequence[Labelled], count: int, seed: int) -> list[Labelled]:
    """At least ``count`` cases, and all cases of their groups."""
    sizes = Counter(map(_group, cases))
    leaders = {_group(one): one for one in reversed(cases)}.values()
    held: set[str] = set()
    for leader in _in_order(list(leaders), seed, _group):
        if sum(sizes[group] for group in held) >= count:
            break
        held.add(_group(leader))
    return [one for one in cases if _group(one) in held]


def _in_order(
    cases: Sequence[Labelled], seed: int, name: Callable[[Labelled], str]
) -> list[Labelled]:
    """By hash; with targets, such that every front part holds them in their shares."""

    def key(one: Labelled) -> bytes:
        return hashlib.sha256(f"{seed} {name(one)}".encode()).digest()

    totals = Counter(one.case.target for one in cases)
    before: Counter[int | str | None] = Counter()
    places: list[tuple[float, bytes, Labelled]] = []
    for one in sorted(cases, key=key):
        target = one.case.target
        places.append(((before[target] + 0.5) / totals[target], key(one), one))
        before[target] += 1
    return [one for _, _, one in sorted(places, key=lambda place: place[:2])]


def _group(one: Labelled) -> str:
    return f"group {one.case.group}" if one.case.group is not None else f"case {one.case.id}"


def _check_groups(cases: Sequence[Labelled]) -> None:
    splits: dict[str, str | None] = {}
    for one in cases:
        first = splits.setdefault(_group(one), one.case.split)
        if first != one.case.split:
            raise StoreError(
                f"{_group(one)} has cases of the split '{first}' and of '{one.case.split}', so "
                "what is learnt would be tested on itself. Put a group into one split."
            )


def _amount(wanted: int | float, total: int, key: str) -> int:
    """Cases, from a count or a share."""
    if isinstance(wanted, int):
        if 0 <= wanted <= total:
            return wanted
        raise ConfigError(f"{key}: {wanted} cases asked for, {total} are there.")
    if not 0 <= wanted <= 1:
        raise ConfigError(f"{key}: a share lies between 0 and 1, a count is whole; got {wanted}.")
    return max(1, round(wanted * total)) if wanted else 0
