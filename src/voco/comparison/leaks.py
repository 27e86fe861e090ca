"""Whether a scan that is measured on is also learnt from: looked up before the first job."""

import hashlib
import json
from pathlib import Path

from voco.comparison.settings import ComparisonConfig, UnseenScans
from voco.data.store import Store, write_atomically
from voco.errors import ConfigError
from voco.evaluation.comparisons import LEAKS_FILE
from voco.workflows.leaks import Leak, leaks

_NAMED = 3
"""Pairs that an error names."""


def check_leaks(config: ComparisonConfig, test: UnseenScans, out: Path) -> None:
    """Compare what is measured on with all that is learnt from; note it in ``leaks.json``.

    What was found once is read from there as long as the stores and the test stay the same.

    Args:
        config: The recipe.
        test: What is measured on.
        out: The comparison's folder.

    Raises:
        ConfigError: If a scan is in both, and the recipe does not say how to deal with it.
        StoreError: If a store is missing or damaged.
    """
    if config.leaks == "exclude" and config.test is not None:
        raise ConfigError(
            "leaks: 'exclude' needs test cases that are in a store: prepare them into one of data, "
            "with the split 'test' (a list with a column 'split' says so), and leave out test."
        )
    places = list(dict.fromkeys([*config.pretrain_data, *config.data]))
    key = _key(places, test)
    file = out / LEAKS_FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known.get("key") != key:
        against = config.data if config.test is None else test.images
        found = leaks(places, against)
        pairs = [[*leak[:5], round(leak.likeness, 4)] for leak in found.leaks]
        known = {"key": key, "learnt": found.seen, "tested": found.tested, "leaks": pairs}
        write_atomically(file, f"{json.dumps(known, indent=2)}\n".encode())
    _refuse(config, [Leak(*pair) for pair in known["leaks"]])


def _key(places: list[str], test: UnseenScans) -> str:
    """Of all that the answer depends on, the content of files at ``test.images`` left out."""
    parts = [*(Store(path).digest for path in places), *places, *test.images]
    splits = [f"{case.id} {case.split}" for path in places for case in Store(path).cases.values()]
    return hashlib.sha256(json.dumps([*parts, *splits]).encode()).hexdigest()[:16]


def _refuse(config: ComparisonConfig, found: list[Leak]) -> None:
    """Refuse what the recipe does not allow."""
    if config.leaks == "report":
        return
    if config.leaks == "exclude":  # which can leave cases out of pre-training alone
        found = [leak for leak in found if leak.seen_place in config.data]
    if not found:
        return
    cases = len({leak.case for leak in found})
    pairs = "; ".join(map(str, found[:_NAMED]))
    more = f"; and {len(found) - _NAMED} pairs more" if len(found) > _NAMED else ""
    where = "fine-tuned on" if config.leaks == "exclude" else "learnt from"
    ways = "give them the split 'test' there or measure on others"
    if config.leaks == "refuse" and config.test is None:
        ways += ", leave copies out of pre-training with leaks: exclude"
    raise ConfigError(
        f"test: {cases} of the scans to measure on are also {where}: {pairs}{more}. Remove them, "
        f"{ways}, or go on in spite of it with leaks: report."
    )
