"""Weights and labelled cases to what frozen features tell, beside those of an untrained network."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voco.backbone import Backbone
from voco.data.store import write_atomically
from voco.errors import UsageError
from voco.evaluation.probe import Judgement, Rows, chances
from voco.evaluation.statistics import compare
from voco.evaluation.summary import comparison_entry
from voco.evaluation.tables import number_text, write_rows
from voco.probing import Probe, extracted, facts, find_probe, judged, untrained
from voco.recipes import ProbeConfig
from voco.weights import Handover, load_backbone, read_handover, weights_digest

OUTPUTS = ("probe.csv", "probe.json")
"""Files that a probe writes."""

COLUMNS = ("network", "probe", "structure", "metric", "value", "chance")
"""Of ``probe.csv``."""

NETWORKS = ("trained", "untrained")


@dataclass(frozen=True)
class Probed:
    """What came out of a probe.

    Attributes:
        folder: Where the tables are.
        summary: What ``probe.json`` holds.
    """

    folder: Path
    summary: dict[str, Any]

    def __str__(self) -> str:
        cases = self.summary["cases"]
        rows = self.summary["rows"]
        lines = [
            f"{len(cases['train'])} cases to learn from, {len(cases['test'])} to ask about "
            f"({rows['train']:,} and {rows['test']:,} {self.summary['settings']['of']}, "
            f"{self.summary['features']:,} features, {len(self.summary['classes'])} classes)"
        ]
        ours, theirs = (self.summary["networks"][name] for name in NETWORKS)
        lines += [
            f"  {probe}, {metric.replace('_', ' ')}: {value:.3f}, untrained "
            f"{theirs[probe][metric]:.3f}, difference {value - theirs[probe][metric]:+.3f}, "
            f"chance {self.summary['chance'][metric]:.3f}"
            for probe, metrics in ours.items()
            for metric, value in metrics.items()
        ]
        lines += [f"  warning: {text}" for text in self.summary["warnings"]]
        return "\n".join([*lines, f"tables: {self.folder / OUTPUTS[0]}"])


def probe(
    weights: Path | str,
    data: Sequence[Path | str],
    out: Path | str,
    config: ProbeConfig | None = None,
    *,
    device: str | None = None,
    overwrite: bool = False,
) -> Probed:
    """Ask the frozen features of a network which labels they tell apart.

    The same is asked of the untrained network, with the random weights of the same seed: random
    features tell much already, and only the difference is what training gave.

    Args:
        weights: The folder of a finished run, or its weight file.
        data: Stores with labelled cases.
        out: Folder to write ``probe.csv`` and ``probe.json`` into.
        config: The settings.
        device: Such as ``cuda:1``; the GPU if there is one, else the CPU, for ``None``.
        overwrite: Replace the tables that are there.

    Raises:
        UsageError: If ``out`` holds a probe.
        ConfigError: If settings, data and network do not fit together.
        StoreError: If a store has no usable labels.
        WeightsError: If the weights are missing, damaged, or not described by a ``handover.json``.
    """
    weights, out, config = Path(weights), Path(out), config or ProbeConfig()
    there = [name for name in OUTPUTS if (out / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{out}: holds {', '.join(there)}. Give another folder, or --overwrite.")
    handover = read_handover(weights)
    networks = {
        "trained": load_backbone(weights),
        "untrained": untrained(handover.backbone, handover.seed, handover.out_channels),
    }
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = find_probe(config, data, networks["trained"], handover.intensity)
    began = time.monotonic()
    rows = {name: _features(found, each, place, name) for name, each in networks.items()}
    results = {name: judged(found, *parts, place) for name, parts in rows.items()}
    train, test = rows["trained"]
    summary = {
        "weights": str(weights),
        "sha256": weights_digest(weights),
        "trained": list(handover.trained),
        **facts(found),
        "classes": {str(value): name for value, name in found.classes.items()},
        "rows": {"train": len(train.classes), "test": len(test.classes)},
        "features": train.features.shape[1],
        "chance": chances(train.classes, test.classes),
        "networks": {name: result.figures for name, result in results.items()},
        "comparison": _compared(results),
        "warnings": list(_warnings(found, handover)),
        "seconds": round(time.monotonic() - began, 3),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "probe.json").unlink(missing_ok=True)
    write_rows(out / "probe.csv", COLUMNS, _rows(results, found, summary["chance"]))
    # Last: where it is, the table is whole.
    write_atomically(out / "probe.json", json.dumps(summary, indent=2).encode())
    return Probed(out, summary)


def _features(
    found: Probe, network: Backbone, device: torch.device, name: str
) -> tuple[Rows, Rows]:
    return extracted(found, network.to(device), device, what=f"probe, {name}")


def _compared(results: dict[str, Judgement]) -> dict[str, Any]:
    """By probe: trained minus untrained, paired by case, of the balanced accuracy of each case."""
    ours, theirs = (results[name].by_case for name in NETWORKS)
    return {name: comparison_entry(compare(ours[name], theirs[name])) for name in ours}


def _rows(
    results: dict[str, Judgement], found: Probe, chance: dict[str, float]
) -> Iterator[list[str]]:
    names = list(found.classes.values())
    for network, result in results.items():
        for asked, metrics in result.figures.items():
            for metric, value in metrics.items():
                level = number_text(chance[metric])
                yield [network, asked, "all", metric, number_text(value), level]
            for number, share in result.found[asked].items():
                yield [network, asked, names[number], "found", number_text(share), ""]


def _warnings(found: Probe, handover: Handover) -> Iterator[str]:
    theirs, ours = handover.preprocessing, found.stores[0].preprocessing
    if theirs != ours:
        yield f"the weights were trained with the preprocessing {theirs!r}, the store has {ours!r}"
    shown = {one.case.modality for one in (*found.split.train, *found.split.validation)}
    strange = sorted(shown - set(handover.modalities)) if handover.modalities else []
    if strange:
        yield (
            f"the weights were trained on {', '.join(handover.modalities)}, the cases are "
            f"{', '.join(strange)}"
        )
