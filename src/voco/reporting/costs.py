"""Sections about a comparison: what it cost, and under which conditions it ran."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from voco.config import flat
from voco.evaluation.comparisons import Cost
from voco.figures import draw_bars
from voco.reporting import words
from voco.reporting.compared import ComparisonTables
from voco.reporting.page import Section, Table, chart

_NOT_DIFFERENT = ("method.", "backbone.", "log_every", "checkpoint_every", "keep_checkpoints")
_NOT_DIFFERENT += ("validate_every", "windows.workers", "seed", "trackers")
"""Settings in which methods may differ without a word."""


def cost_section(tables: ComparisonTables) -> Section:
    """Time and memory of every method."""
    section = Section("What it cost")
    trained = [c for c in tables.costs if c.kind == "pretraining" and c.status == "done"]
    groups: dict[tuple[str, str], list[Cost]] = {}
    for cost in trained:
        groups.setdefault((cost.backbone, cost.method), []).append(cost)
    several = len({backbone for backbone, _ in groups}) > 1
    names = [f"{m} on {b}" if several else m for b, m in groups]
    minutes = [_mean_of(some, "training_seconds") / 60 for some in groups.values()]
    memory = [_mean_of(some, "memory_bytes") / 1e9 for some in groups.values()]
    if names:
        order = sorted(range(len(names)), key=lambda number: minutes[number])
        svg = draw_bars(
            [names[number] for number in order],
            [
                ("Pre-training, minutes", [minutes[number] for number in order]),
                ("Most memory, GB", [memory[number] for number in order]),
            ],
            "Time and memory of pre-training",
        )
        caption = (
            "Time in the training loop of one pre-training, and most memory (of the GPU where "
            "there is one, else of the process)."
        )
        section.pictures.append(chart(svg, caption, wide=True))
    rows = [
        [name, *_cost_texts(tables, key, some)]
        for name, (key, some) in zip(names, groups.items(), strict=True)
    ]
    columns = ["row", "steps", "pre-training", "seconds a step", "processor time", "memory"]
    columns += ["fine-tuning", "encoder loaded"]
    note = (
        "Means over seeds. Pre-training and fine-tuning: time in the training loop. Processor "
        "time: of all processes of a pre-training on all cores. Machines that do other work at "
        "the same time take longer."
    )
    section.tables.append(Table("One training each", columns, rows, note))
    total = sum(cost.seconds or 0 for cost in tables.costs)
    devices = dict.fromkeys(cost.device for cost in tables.costs if cost.device)
    section.facts += [
        ("all jobs together", words.duration(total)),
        ("ran on", words.listed(list(devices)) or "–"),
    ]
    return section


def _cost_texts(
    tables: ComparisonTables, key: tuple[str, str], some: Sequence[Cost]
) -> Iterator[str]:
    seconds, steps = _mean_of(some, "training_seconds"), _mean_of(some, "steps")
    tuned = [
        cost
        for cost in tables.costs
        if cost.kind == "finetuning" and (cost.backbone, cost.method) == key
    ]
    shares = {cost.loaded_share for cost in tuned if cost.loaded_share is not None}
    yield f"{steps:.0f}"
    yield _duration(seconds)
    yield f"{seconds / steps:.2f}" if steps else "–"
    yield _duration(_mean_of(some, "cpu_seconds"))
    memory = _mean_of(some, "memory_bytes")
    yield "–" if math.isnan(memory) else words.size(memory)
    yield _duration(_mean_of(tuned, "training_seconds"))
    yield words.percent(min(shares)) if shares else "–"


def _mean_of(costs: Iterable[Cost], name: str) -> float:
    known = [value for cost in costs if (value := getattr(cost, name)) is not None]
    return statistics.fmean(known) if known else math.nan


def _duration(seconds: float) -> str:
    return "–" if math.isnan(seconds) else words.duration(seconds)


def _leaks(tables: ComparisonTables) -> str | None:
    """How many test cases were learnt from, and what was done about it."""
    found = tables.leaks
    if found is None:
        return None
    of = f"of {words.count(found.tested, 'test case')}"
    if not found.leaking:
        return (
            f"none {of} (files, voxels and looks compared with those of "
            f"{words.count(found.learnt, 'case')} to learn from)"
        )
    excluded = tables.recipe.get("leaks") == "exclude"
    what = "their copies were left out of pre-training" if excluded else "as the recipe allows"
    return f"{found.leaking} {of}; {what}"


def conditions_section(tables: ComparisonTables) -> Section:
    """What was the same for all rows, and in which settings the methods differ."""
    section = Section("Under which conditions")
    recipe = tables.recipe
    tuning = recipe.get("finetuning", {})
    methods = recipe.get("methods", {})
    first = next(iter(methods.values()), {})
    budget = f"{recipe['seconds']:g} s" if recipe.get("seconds") else first.get("steps")
    facts = {
        "pre-trained on": _joined(recipe.get("pretrain_data")),
        "pre-training steps": budget,
        "fine-tuned on": _joined(recipe.get("data")),
        "fine-tuning steps": tuning.get("steps"),
        "fine-tuning learning rate": tuning.get("optimizer", {}).get("lr"),
        "seeds of fine-tuning": _joined(recipe.get("seeds")),
        "seed of pre-training": _joined(recipe.get("pretraining_seed")),
        "measured on": _joined((recipe.get("test") or {}).get("images"))
        or "the cases of the split 'test'",
        "measured on and learnt from": _leaks(tables),
        "which network": "always that of the last step: none was picked by how well it did",
        "tables": "table.csv (every value), runs.csv (every job), summary.csv, gains.csv, "
        "ranks.csv, comparison.yaml (to run it again)",
    }
    section.facts += [(name, str(value)) for name, value in facts.items() if value is not None]
    other = differences(methods)
    if other:
        rows = [
            [key, *(_plain_value(values.get(name)) for name in methods)]
            for key, values in other.items()
        ]
        caption = "Settings of training in which the methods differ, beside their own"
        section.tables.append(Table(caption, ["setting", *methods], rows))
    return section


def differences(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings of training that are not the same in all methods' recipes: by key, by method."""
    told = {name: dict(flat(method)) for name, method in methods.items()}
    keys = dict.fromkeys(key for each in told.values() for key in each)
    found = {key: {name: each.get(key) for name, each in told.items()} for key in keys}
    return {
        key: values
        for key, values in found.items()
        if not key.startswith(_NOT_DIFFERENT) and len({str(v) for v in values.values()}) > 1
    }


def _joined(values: Any) -> str | None:  # noqa: ANN401 (whatever YAML knows)
    if values is None:
        return None
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _plain_value(value: Any) -> str:  # noqa: ANN401
    return "–" if value is None else str(value)
