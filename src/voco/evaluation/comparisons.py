"""The tables of a comparison of methods, read back."""

import json
from pathlib import Path
from typing import NamedTuple

from voco.errors import DataError
from voco.evaluation.tables import read_rows

VALUES_FILE, COSTS_FILE, LEAKS_FILE = "table.csv", "runs.csv", "leaks.json"

RECIPE_FILE = "comparison.yaml"
"""The recipe as resolved; where it is, there is a comparison."""

WHOLE_SET = ""
"""The case of a value that is of all cases together."""


class Value(NamedTuple):
    """One value of one metric of one case, and which training it is of.

    Attributes:
        method: Name of the row; ``scratch`` is without pre-training.
        backbone: Name of the network.
        handover: What fine-tuning took over: ``encoder``, ``full``; ``none`` for scratch.
        labels: Labelled cases, as the recipe says it: a count, a share, ``all``.
        pretraining_seed: Seed of the pre-training; empty for scratch.
        seed: Seed of the fine-tuning.
        case: Name of the case; empty for a figure of the whole set (AUROC, ...).
        structure: Name of the structure.
        metric: Name of the metric.
        value: As in ``metrics.csv``.
        unit: ``mm``, or empty.
        seen: In which training the network has learnt from a copy of this case; empty for a scan
            that is new to it, and in tables of versions that did not look.
    """

    method: str
    backbone: str
    handover: str
    labels: str
    pretraining_seed: str
    seed: str
    case: str
    structure: str
    metric: str
    value: float
    unit: str = ""
    seen: str = ""


class LeakCheck(NamedTuple):
    """How many scans that are measured on were also learnt from.

    Attributes:
        learnt: Cases that may be learnt from.
        tested: Cases that are measured on.
        leaking: Cases of these that are copies of cases to learn from; those that were left out of
            pre-training for it included.
    """

    learnt: int
    tested: int
    leaking: int


class Cost(NamedTuple):
    """One job: what became of it, and what it cost. Empty (``None``) where it is not known.

    Attributes:
        kind: ``budget``, ``pretraining`` or ``finetuning``.
        method: As in :class:`Value`, and so the five after it.
        status: ``done``, ``failed``, ``running``, ``interrupted``, ``waiting``, ``blocked`` (what
            it needs failed), ``does not fit``.
        reason: Why it failed, or does not fit.
        steps: Optimizer steps; of a budget how many fit in.
        cases: Cases learnt from.
        seconds: Wall time, over all interruptions.
        cpu_seconds: Time of all its processes on all cores.
        training_seconds: Of the training loop alone.
        memory_bytes: Most memory: of the GPU where there is one, else of the process.
        loaded_share: Share of the encoder's parameters that came from the weights.
        loaded_tensors: Tensors of the network that came from the weights.
        attempts: How often it was begun anew after a failure, the last one included.
        device: What it ran on.
        host: Name of the machine.
    """

    kind: str
    method: str
    backbone: str
    handover: str = ""
    labels: str = ""
    pretraining_seed: str = ""
    seed: str = ""
    status: str = ""
    reason: str = ""
    steps: int | None = None
    cases: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    training_seconds: float | None = None
    memory_bytes: int | None = None
    loaded_share: float | None = None
    loaded_tensors: int | None = None
    attempts: int | None = None
    device: str = ""
    host: str = ""


_WHOLE = ("steps", "cases", "memory_bytes", "loaded_tensors", "attempts")
_BROKEN = ("seconds", "cpu_seconds", "training_seconds", "loaded_share")


def read_values(folder: Path) -> list[Value]:
    """``table.csv`` of a comparison.

    Raises:
        DataError: If it is missing, lacks a column, or holds something else than a number.
    """
    file = folder / VALUES_FILE
    found = []
    required = [name for name in Value._fields if name != "seen"]
    for line, row in enumerate(read_rows(file, required=required), start=2):
        try:
            number = float(row["value"])
        except ValueError:
            raise DataError(f"{file}, line {line}: '{row['value']}' is not a number.") from None
        texts = {name: row.get(name, "") for name in Value._fields if name != "value"}
        found.append(Value(**texts, value=number))
    return found


def read_leak_check(folder: Path) -> LeakCheck | None:
    """``leaks.json`` of a comparison; ``None`` where nobody looked.

    Raises:
        DataError: If it is damaged.
    """
    file = folder / LEAKS_FILE
    if not file.is_file():
        return None
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        leaking = {str(pair[0]) for pair in known["leaks"]}
        return LeakCheck(int(known["learnt"]), int(known["tested"]), len(leaking))
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(
            f"{file}: damaged. Remove it; 'voco compare --resume' looks anew."
        ) from None


def read_costs(folder: Path) -> list[Cost]:
    """``runs.csv`` of a comparison.

    Raises:
        DataError: If it is missing, lacks a column, or holds something else than a number.
    """
    file = folder / COSTS_FILE
    found = []
    for line, row in enumerate(read_rows(file, required=Cost._fields), start=2):
        texts = {n: row[n] for n in Cost._fields if n not in {*_WHOLE, *_BROKEN}}
        try:
            whole = {name: int(row[name]) if row[name] else None for name in _WHOLE}
            broken = {name: float(row[name]) if row[name] else None for name in _BROKEN}
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}.") from None
        found.append(Cost(**texts, **whole, **broken))  # pyright: ignore[reportArgumentType] (told apart by name)
    return found
