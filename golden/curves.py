"""Golden curves: how each method learns on generated torsos, recorded, drawn and looked at again.

``python -m golden.curves [NAME ...]`` trains the smoke recipe of each method for 40 steps under
three seeds, writes the band in which losses and health figures lay to ``golden/curves/NAME.json``,
and draws it to ``docs/methods/NAME.svg``. A test runs the first steps of one seed again: a method
that computes something else leaves its band.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from voco.config import parse, read_yaml
from voco.data.store import open_alike, write_atomically
from voco.data.windows import Share, Windows, window_batches
from voco.engine.launch import launch
from voco.engine.loop import Record, fit
from voco.engine.optimizer import build_optimizer
from voco.figures.style import BLUE, ORANGE, new_figure, styled
from voco.methods import available
from voco.recipes import PretrainConfig
from voco.workflows.phantom import phantom
from voco.workflows.prepare import prepare
from voco.workflows.pretrain import build_method, find_cases

ROOT = Path(__file__).parents[1]
CURVES, PICTURES = ROOT / "golden" / "curves", ROOT / "docs" / "methods"

SEEDS = (0, 1, 2)
STEPS = 40
LOOKS = (1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40)
"""Steps whose figures are kept."""
TORSOS, SPACING_MM = 6, 8.0
"""How many are generated, and the side of their voxels."""

_MARGIN = 0.5
"""A band reaches beyond what was seen by this share of its width ..."""
_ROUNDING = 0.02
"""... and by this share of the values themselves, for other kinds of CPU."""

Figures = dict[str, float]


class _EnoughError(Exception):
    """Ends a run before its last step."""


class Band(NamedTuple):
    """Where a figure lay under all seeds: lowest, mean and highest at each look."""

    low: list[float]
    mean: list[float]
    high: list[float]

    def around(self, look: int) -> tuple[float, float]:
        """The band at a look, with what is allowed beyond it."""
        low, high = self.low[look], self.high[look]
        room = _MARGIN * (high - low) + _ROUNDING * max(abs(low), abs(high)) + 1e-6
        return low - room, high + room


def recipe_of(name: str, seed: int) -> PretrainConfig:
    """The smoke recipe of a method, longer."""
    file = ROOT / "recipes" / ("smoke.yaml" if name == "voco" else f"smoke-{name}.yaml")
    values = read_yaml(file) | {"steps": STEPS, "seed": seed}
    return parse(PretrainConfig, values, str(file))


def torsos(folder: Path) -> Path:
    """A store of generated torsos, always the same ones."""
    scans = phantom(folder / "scans", TORSOS, 0, spacing_mm=SPACING_MM, workers=1)
    prepare([scans], folder / "store", workers=1)
    return folder / "store"


def run(name: str, store: Path, seed: int, upto: int = STEPS) -> dict[int, Figures]:
    """Losses and health figures of the first steps of a run, by step.

    Args:
        name: Of the method.
        store: Of torsos.
        seed: Of the run.
        upto: The last step that is done; the schedule is that of all.
    """
    config = recipe_of(name, seed)
    stores = open_alike([store])
    split, method = find_cases(config, stores), build_method(config)
    windows = Windows(
        stores,
        split.train,
        config.windows,
        method.window,
        config.intensity,
        seed,
        Share(config.batch_size, config.optimizer.accumulate),
    )
    looks: dict[int, Figures] = {}

    def look(record: Record) -> None:
        if record.done in LOOKS:
            losses = record.ledger.settle()
            values = {name: losses[name] for name in losses if name != "gradient norm"}
            health = {name: float(value) for name, value in record.health.items()}
            looks[record.done] = {"loss": sum(values.values()), **values, **health}
        if record.done == upto:
            raise _EnoughError

    fabric = launch(config.precision)
    optimizer = build_optimizer(config.optimizer, method)
    batches = window_batches(windows, fabric.device, 0, 0, STEPS * config.optimizer.accumulate)
    with contextlib.suppress(_EnoughError):
        fit(
            fabric,
            method,
            optimizer,
            batches,
            config.optimizer,
            steps=range(STEPS),
            seed=seed,
            what=f"{name}, seed {seed}",
            hooks=(look,),
        )
    return looks


def record(name: str, store: Path) -> dict[str, Any]:
    """Run a method under all seeds."""
    runs = [run(name, store, seed) for seed in SEEDS]
    names = list(runs[0][LOOKS[-1]])
    bands = {}
    for figure in names:
        columns = [[looks[step][figure] for looks in runs] for step in LOOKS]
        bands[figure] = {
            "low": [_short(min(column)) for column in columns],
            "mean": [_short(sum(column) / len(column)) for column in columns],
            "high": [_short(max(column)) for column in columns],
        }
    return {
        "method": name,
        "recipe": recipe_of(name, 0).model_dump(mode="json"),
        "seeds": list(SEEDS),
        "torsos": {"count": TORSOS, "spacing_mm": SPACING_MM, "seed": 0},
        "torch": torch.__version__.split("+")[0],
        "looks": list(LOOKS),
        "bands": bands,
    }


def read(name: str) -> tuple[list[int], dict[str, Band]]:
    """The recorded curve of a method: the steps that were looked at, and a band per figure."""
    content = json.loads((CURVES / f"{name}.json").read_text(encoding="utf-8"))
    return content["looks"], {key: Band(**band) for key, band in content["bands"].items()}


def draw(name: str) -> None:
    """The recorded curve of a method as a picture: figures with their bands, chance dashed."""
    looks, bands = read(name)
    # "chance" alone belongs to "accuracy".
    chances = {key: key.removesuffix("chance").rstrip("_") for key in bands if "chance" in key}
    shown = [key for key in bands if key not in chances]
    columns = 3
    rows = -(-len(shown) // columns)
    with styled():
        figure = new_figure(10, 2.1 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, key in zip(axes, shown, strict=False):
            band = bands[key]
            axis.fill_between(looks, band.low, band.high, color=BLUE, alpha=0.2, linewidth=0)
            axis.plot(looks, band.mean, color=BLUE)
            stem = key.removesuffix("accuracy").rstrip("_")
            chance = next((bands[c] for c, of in chances.items() if of in {key, stem}), None)
            if chance is not None:
                axis.plot(looks, chance.mean, color=ORANGE, linestyle="--", linewidth=1.2)
            axis.set_title(key.replace("_", " "))
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        PICTURES.mkdir(exist_ok=True)
        figure.savefig(
            PICTURES / f"{name}.svg",
            metadata={"Date": None, "Creator": None},
        )


def main(names: Sequence[str]) -> None:
    """Record and draw the curves of some methods, or of all."""
    CURVES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        store = torsos(Path(folder))
        for name in names or available():
            content = json.dumps(record(name, store), separators=(",", ":"))
            write_atomically(CURVES / f"{name}.json", content.encode())
            draw(name)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    main(sys.argv[1:])
