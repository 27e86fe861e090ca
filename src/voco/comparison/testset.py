"""What is predicted and measured: scans that nothing has seen, and what is true of them.

Where the recipe names none, these are the cases of the split ``test`` of the labelled stores: from
the files that they were prepared from, so that predictions are measured on original grids.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from voco.comparison.settings import ComparisonConfig, UnseenScans
from voco.data.imageio import read_label, write_image
from voco.data.intake import source_keys
from voco.data.labelled import Labelled, labelled_cases
from voco.data.source import Source
from voco.data.sources import discover, read_source
from voco.data.store import Store
from voco.errors import ConfigError, DataError, StoreError, UsageError
from voco.evaluation.tables import write_rows
from voco.tasks.classification import ClassificationConfig
from voco.volume import Volume

FOLDER = "test"
"""Of the comparison's own lists and references."""

_DONE = "cases.json"
"""Written last: which cases these are."""


def collect(config: ComparisonConfig, out: Path) -> UnseenScans:
    """The scans to predict; where they come from a store, listed in the comparison's folder.

    Raises:
        ConfigError: If nothing says what to measure.
        StoreError: If a case's files are no longer there.
    """
    if config.test is not None:
        return config.test
    folder = out / FOLDER
    cases = _test_cases(config)
    if not (folder / _DONE).is_file():
        _write(cases, folder, classifies=isinstance(config.finetuning.task, ClassificationConfig))
    if json.loads((folder / _DONE).read_text(encoding="utf-8")) != _contents(cases):
        raise ConfigError(
            f"{folder}: the cases of the split 'test' are not those that it was begun with. Start "
            "anew in another folder."
        )
    references = "targets.csv" if (folder / "targets.csv").is_file() else "references"
    return UnseenScans(images=(str(folder / "scans.csv"),), references=str(folder / references))


def _test_cases(config: ComparisonConfig) -> list[Labelled]:
    segments = not isinstance(config.finetuning.task, ClassificationConfig)
    stores = [Store(path) for path in config.data]
    every = labelled_cases(stores, "label" if segments else "target")
    cases = [one for one in every if one.case.split == "test"]
    if not cases:
        raise ConfigError(
            f"test: no labelled case of {', '.join(config.data)} is of the split 'test', so there "
            "is nothing to measure on. Prepare the store with a list that has a column 'split', "
            "or give test.images and test.references."
        )
    return cases


def _write(cases: list[Labelled], folder: Path, *, classifies: bool) -> None:
    """Make the folder, whole or not at all; another process may do the same meanwhile."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    draft.mkdir(parents=True)
    rows = []
    for one, source in zip(cases, _sources(cases), strict=True):
        images, modality = _images(one, source, draft)
        rows.append([one.case.id, ";".join(images), modality])
        if not classifies:
            if source.label is None:
                raise StoreError(f"case '{one.case.id}': its label is no longer beside its image.")
            (draft / "references").mkdir(exist_ok=True)
            write_image(read_label(source.label), draft / "references" / f"{one.case.id}.nii.gz")
    write_rows(draft / "scans.csv", ["id", "image", "modality"], rows)
    if classifies:
        targets = [[one.case.id, one.case.target] for one in cases]
        write_rows(draft / "targets.csv", ["case", "target"], targets)
    (draft / _DONE).write_text(json.dumps(_contents(cases), indent=2), encoding="utf-8")
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        if not (folder / _DONE).is_file():
            raise


def _contents(cases: list[Labelled]) -> dict[str, str]:
    """By case: the hash of what it was prepared from."""
    return {one.case.id: one.case.source_sha256 for one in cases}


def _sources(cases: list[Labelled]) -> Iterator[Source]:
    """What each case was prepared from.

    Raises:
        StoreError: If it is no longer there.
    """
    places: dict[str, dict[str, Source]] = {}
    for _, case in cases:
        place = f"{case.dataset}:{case.place}"
        if place not in places:
            try:
                found = discover(Path(case.place), case.dataset)[0] if case.place else []
            except (DataError, UsageError):
                found = []
            places[place] = dict(zip(source_keys(found), found, strict=True))
        source = places[place].get(case.source)
        if source is None:
            raise StoreError(
                f"case '{case.id}' is of the split 'test', and {case.source}, which it was "
                f"prepared from, is no longer found in {case.place or 'any place'}. Bring it "
                "back, or give test.images and test.references."
            )
        yield source


def _images(one: Labelled, source: Source, draft: Path) -> tuple[list[str], str]:
    """The files of a case and its modality; copies, where no list could say what they are."""
    several_in_one = len(source.images) == 1 and len(one.case.channels) > 1
    plain = source.member is None and source.stack is None and not source.slices
    if plain and not several_in_one:
        paths = [os.path.abspath(path) for path in source.images]  # noqa: PTH100 (links stay)
        return paths, one.case.stated_modality or ""
    (draft / "images").mkdir(exist_ok=True)
    scan, _ = read_source(replace(source, label=None), modality=one.case.stated_modality)
    names = [f"images/{one.case.id}_{n:04d}.nii.gz" for n in range(len(scan.volume.array))]
    for name, channel in zip(names, scan.volume.array, strict=True):
        write_image(Volume(channel[None], scan.volume.grid), draft / name)
    return names, "" if scan.modality == "unknown" else scan.modality
