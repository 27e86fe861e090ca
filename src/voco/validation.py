"""How well a task does on cases that it does not learn from, on the store's grid."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voco.data.intensity import Intensity, apply
from voco.data.labelled import Labelled
from voco.data.patches import class_numbers, fitted, lowest, scaling
from voco.evaluation.classification import METRICS
from voco.evaluation.overlap import Labels, dice
from voco.evaluation.tables import Score, by_structure, mean_over_structures
from voco.inference import class_probabilities, windows_of, winners
from voco.tasks.classification import Classification
from voco.tasks.segmentation import Segmentation

ALL = "all"
"""Stands for a case or a structure where a metric is about all of them."""


@torch.no_grad()
def score_cases(
    task: Segmentation | Classification,
    cases: Sequence[Labelled],
    classes: dict[int, str],
    intensity: Intensity,
    device: torch.device,
) -> list[Score]:
    """Dice of every structure (or region) of each case, or the probability of every class.

    Args:
        task: In any mode; is left in training mode.
        cases: Held-out cases.
        classes: Label values and names in the order of the classes, background first; for
            classification class numbers and targets.
        intensity: How stored voxels become the network's input.
        device: Where the task is.
    """
    task.eval()
    scores: list[Score] = []
    for one in cases:
        if isinstance(task, Classification):
            scores += _probabilities(task, one, classes, intensity, device)
        else:
            scores += _dice(task, one, classes, intensity, device)
    task.train()
    return scores


def summarise(
    scores: Sequence[Score], cases: Sequence[Labelled], classes: dict[int, str]
) -> list[Score]:
    """Accuracy, AUROC, ... of all cases together, from the probabilities of each; else nothing."""
    table = {(s.case, s.structure): s.value for s in scores if s.metric == "probability"}
    if not table:
        return []
    names = list(classes.values())
    targets = np.array([names.index(str(one.case.target)) for one in cases], np.int64)
    values = np.array([[table[one.case.id, name] for name in names] for one in cases])
    return [Score(ALL, ALL, name, metric(targets, values)) for name, metric in METRICS.items()]


def figures(scores: Sequence[Score]) -> dict[str, float]:
    """One number per metric for the log: Dice is the mean over structures, then over cases."""
    together = {s.metric: s.value for s in scores if s.case == ALL and math.isfinite(s.value)}
    overlaps = mean_over_structures(by_structure(s for s in scores if s.metric == "dice"))
    means = [value for value in overlaps.get("dice", {}).values() if math.isfinite(value)]
    return {**together, **({"dice": float(np.mean(means))} if means else {})}


def _dice(
    task: Segmentation,
    one: Labelled,
    classes: dict[int, str],
    intensity: Intensity,
    device: torch.device,
) -> list[Score]:
    volume = _scaled(one.store.read(one.case.id), one, intensity, device)
    found = winners(task.backbone, volume, windows_of(task.config))
    truth = class_numbers(one.store.read_label(one.case.id), tuple(classes), one.case.id)
    if task.config.regions:
        return _regions_dice(found, truth, one.case.id, list(classes), task.config.regions)
    values = dice(found, truth, range(1, len(classes)))
    names = list(classes.values())
    return [Score(one.case.id, names[n], "dice", value) for n, value in values.items()]


def _regions_dice(
    found: Labels,
    truth: Labels,
    case: str,
    values: Sequence[int],
    regions: Mapping[str, tuple[int, ...]],
) -> list[Score]:
    """Dice of unions of labels; ``values`` are the label values in the order of the classes."""
    scores = []
    for name, parts in regions.items():
        numbers = [values.index(part) for part in parts]
        ours, theirs = np.isin(found, numbers), np.isin(truth, numbers)
        scores.append(Score(case, name, "dice", dice(ours, theirs, [1])[1]))
    return scores


def _probabilities(
    task: Classification,
    one: Labelled,
    classes: dict[int, str],
    intensity: Intensity,
    device: torch.device,
) -> list[Score]:
    config = task.config
    stored = fitted(one.store.read(one.case.id), config.size, config.fit, lowest(one.case))
    values = class_probabilities(task, _scaled(stored, one, intensity, device)).tolist()
    return [
        Score(one.case.id, name, "probability", value)
        for name, value in zip(classes.values(), values, strict=True)
    ]


def _scaled(
    stored: np.ndarray, one: Labelled, intensity: Intensity, device: torch.device
) -> Float[Tensor, "c x y z"]:
    gain, bias = (part.to(device) for part in scaling(one.case, intensity))
    voxels = torch.from_numpy(np.ascontiguousarray(stored)).to(device)
    return apply(voxels[None], gain[None], bias[None], *intensity.bounds)[0]
