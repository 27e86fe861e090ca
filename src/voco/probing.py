"""Frozen features of labelled voxels or cases, and what they tell: the work of ``voco probe``.

Cases are shared out as in fine-tuning: by case and group, never by voxel, since voxels of one scan
are near copies of each other. Which voxels are drawn follows from the seed and the name of the case
alone, so every network, at every step, is asked the very same.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voco.backbone import Backbone, BackboneConfig
from voco.data.intensity import Intensity, apply
from voco.data.labelled import (
    Labelled,
    Split,
    check_channels,
    label_classes,
    labelled_cases,
    split_cases,
    target_classes,
)
from voco.data.patches import class_numbers, class_voxels, fitted, lowest, read_padded, scaling
from voco.data.store import Store, open_alike
from voco.draws import mixed_seed
from voco.embedding import pooled
from voco.errors import ConfigError, StoreError
from voco.evaluation.probe import Judgement, Rows, judge
from voco.inference import starts
from voco.nn.gather import gathered_objects, rank, world_size
from voco.nn.pooling import hypercolumns
from voco.progress import track
from voco.recipes import ProbeConfig
from voco.shapes import Shape3

_VOXELS, _BACKGROUND = 0x90BE, 0x90BF
"""Keep the random numbers of different uses apart."""

_WINDOW: Shape3 = (96, 96, 96)
"""Of a network that takes any size, where none is asked for."""


class Drawn(NamedTuple):
    """Voxels of a case, and the class of each."""

    places: Int64[np.ndarray, "n 3"]
    classes: Int64[np.ndarray, "n"]


@dataclass(frozen=True)
class Probe:
    """What is asked of features, and of whom.

    Attributes:
        config: The settings.
        stores: Where the cases are.
        split: Cases to learn from, and cases to ask about.
        classes: For voxels label values and names, in the order of the classes; for cases class
            numbers and targets.
        targets: The targets in the order of the classes; empty for voxels.
        intensity: How stored voxels become the network's input.
        window: Voxels of what the network sees at once.
    """

    config: ProbeConfig
    stores: tuple[Store, ...]
    split: Split
    classes: dict[int, str]
    targets: tuple[int | str, ...]
    intensity: Intensity
    window: Shape3
    _drawn: dict[str, Drawn] = field(default_factory=dict, init=False, repr=False, compare=False)

    def drawn(self, one: Labelled) -> Drawn:
        """The voxels of a case; its label is read once."""
        key = one.case.id
        if key not in self._drawn:
            self._drawn[key] = drawn_voxels(
                one, tuple(self.classes), self.config.voxels, self.config.seed
            )
        return self._drawn[key]


def find_probe(
    config: ProbeConfig, data: Sequence[Path | str], backbone: Backbone, intensity: Intensity
) -> Probe:
    """Classes, cases and window; reads no voxels.

    Args:
        config: The settings.
        data: Stores with labelled cases.
        backbone: One such as will be asked.
        intensity: How stored voxels become its input.

    Raises:
        ConfigError: If settings, data and backbone do not fit together.
        StoreError: If the stores have no usable labels.
    """
    stores = open_alike(data)
    window = config.window or backbone.fixed_size or _WINDOW
    backbone.check_size(window)
    cases = labelled_cases(stores, "label" if config.of == "voxels" else "target")
    split = split_cases(
        cases,
        validation=config.validation,
        split_seed=config.split_seed,
        labels=config.labels,
        labels_seed=config.labels_seed,
    )
    if not split.validation:
        raise ConfigError(
            f"validation: {config.validation} holds no case out, and there is nothing to ask "
            "about. Hold out at least 1."
        )
    check_channels((*split.train, *split.validation), backbone.config.in_channels)
    if config.of == "voxels":
        classes, targets = label_classes(cases), ()
        shown = {value for one in split.train for value in one.case.class_voxels}
    else:
        targets = target_classes(cases)
        classes = dict(enumerate(map(str, targets)))
        shown = {one.case.target for one in split.train}
    if len(shown) < 2:
        raise StoreError(
            f"the {len(split.train)} cases to learn from show one class only, so there is nothing "
            "to tell apart. Take more of them (labels), or hold out fewer (validation)."
        )
    return Probe(config, stores, split, classes, targets, intensity, window)


def untrained(config: BackboneConfig, seed: int, out_channels: int = 1) -> Backbone:
    """The backbone with the random weights of a seed: what every probe is compared with."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return config.build(out_channels)


def facts(probe: Probe) -> dict[str, Any]:
    """What two probes must have in common if their figures are to be compared; plain values."""
    return {
        "settings": {**probe.config.model_dump(mode="json"), "window": list(probe.window)},
        "stores": [store.digest for store in probe.stores],
        "cases": {
            "train": [one.case.id for one in probe.split.train],
            "test": [one.case.id for one in probe.split.validation],
        },
    }


def judged(probe: Probe, train: Rows, test: Rows, device: torch.device) -> Judgement:
    """Fit the probes to the features of some cases and ask them about those of others."""
    config = probe.config
    ours, theirs = (Rows(*(part.to(device) for part in rows)) for rows in (train, test))
    return judge(
        ours,
        theirs,
        len(probe.classes),
        ridge=config.ridge,
        iterations=config.iterations,
        neighbours=config.neighbours,
        temperature=config.temperature,
    )


@torch.no_grad()
def extracted(
    probe: Probe, backbone: Backbone, device: torch.device, *, what: str = ""
) -> tuple[Rows, Rows]:
    """Features of the cases to learn from and of those to ask about, float32, on the CPU.

    The processes of a distributed run share the cases; each gets all rows. All must call this. The
    backbone is left as it was, to the last bit.

    Args:
        probe: Which cases.
        backbone: On the device, in any mode.
        device: Where it is.
        what: A word for the progress line; none is shown without.
    """
    learnt = len(probe.split.train)
    cases = (*probe.split.train, *probe.split.validation)
    mine = range(rank(), len(cases), world_size())
    with _resting(backbone):
        own = {
            number: _case_rows(probe, backbone, cases[number], number, device)
            for number in (track(mine, what, len(mine)) if what else mine)
        }
    made = {number: rows for part in gathered_objects(own) for number, rows in part.items()}
    return (
        _joined([made[number] for number in range(learnt)]),
        _joined([made[number] for number in range(learnt, len(cases))]),
    )


def drawn_voxels(one: Labelled, values: tuple[int, ...], count: int, seed: int) -> Drawn:
    """Up to ``count`` voxels of each class of a case, background first; always the same.

    Background is drawn inside the box that holds the body, where the store knows it: air around
    the body is told from all else by its brightness alone.

    Args:
        one: The case.
        values: Label values in the order of the classes.
        count: How many of each class.
        seed: Chooses them, together with the name of the case.

    Raises:
        DataError: If the label holds a value that is none of ``values``.
    """
    numbers = class_numbers(one.store.read_label(one.case.id), values, one.case.id)
    name = int.from_bytes(hashlib.sha256(one.case.id.encode()).digest()[:8])
    start, stop = one.case.foreground or ((0, 0, 0), one.case.shape)
    inside = numbers[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))]
    # As if the background were the only structure.
    empty = class_voxels((inside == 0).astype(np.int16), mixed_seed(seed, _BACKGROUND, name), count)
    places = {number: rows + start for number, rows in empty.items()}
    found = {
        0: places.get(1, np.zeros((0, 3), np.int64)),
        **class_voxels(numbers, mixed_seed(seed, _VOXELS, name), count),
    }
    classes = [np.full(len(rows), number) for number, rows in found.items()]
    return Drawn(np.concatenate(list(found.values())).astype(np.int64), np.concatenate(classes))


def window_corners(
    places: Int64[np.ndarray, "n 3"], shape: Shape3, window: Shape3, overlap: float
) -> Int64[np.ndarray, "n 3"]:
    """First voxel of the sliding window in whose middle each voxel lies nearest.

    It is below 0 along axes where the volume is smaller than a window and lies in its middle.
    """
    corners = np.empty_like(places)
    for axis, (side, width) in enumerate(zip(shape, window, strict=True)):
        room = side - width
        firsts = np.asarray(starts(side, width, overlap) if room >= 0 else [room // 2])
        away = np.abs(places[:, axis, None] + 0.5 - (firsts + width / 2))
        corners[:, axis] = firsts[away.argmin(axis=1)]
    return corners


def _case_rows(
    probe: Probe, backbone: Backbone, one: Labelled, number: int, device: torch.device
) -> Rows:
    if probe.targets:
        assert one.case.target is not None
        classes = torch.tensor([probe.targets.index(one.case.target)])
        features = _case_features(probe, backbone, one, device)
    else:
        drawn = probe.drawn(one)
        classes = torch.from_numpy(drawn.classes)
        features = _voxel_features(probe, backbone, one, drawn.places, device)
    return Rows(features, classes, torch.full((len(classes),), number))


def _case_features(
    probe: Probe, backbone: Backbone, one: Labelled, device: torch.device
) -> Float[Tensor, "1 e"]:
    stored = fitted(one.store.read(one.case.id), probe.window, probe.config.fit, lowest(one.case))
    volume = _scaled(probe, one, stored, device)
    return pooled(backbone, [volume], backbone.embedding_levels).cpu()


def _voxel_features(
    probe: Probe,
    backbone: Backbone,
    one: Labelled,
    places: Int64[np.ndarray, "n 3"],
    device: torch.device,
) -> Float[Tensor, "n e"]:
    corners = window_corners(places, one.case.shape, probe.window, probe.config.overlap)
    made = torch.zeros(len(places), sum(backbone.channels))
    pads = lowest(one.case)
    # Windows without a voxel that was drawn are not looked at.
    for x, y, z in np.unique(corners, axis=0).tolist():
        rows = (corners == (x, y, z)).all(axis=1)
        stored = read_padded(one, (x, y, z), probe.window, pads)
        pyramid = backbone.encode(_scaled(probe, one, stored, device))
        inside = torch.from_numpy(places[rows] - (x, y, z)).to(device)
        made[torch.from_numpy(rows)] = hypercolumns(pyramid, inside, probe.window).cpu()
    return made


def _scaled(
    probe: Probe, one: Labelled, stored: np.ndarray, device: torch.device
) -> Float[Tensor, "1 c x y z"]:
    gain, bias = (part.to(device) for part in scaling(one.case, probe.intensity))
    voxels = torch.from_numpy(np.ascontiguousarray(stored)).to(device)
    return apply(voxels[None], gain[None], bias[None], *probe.intensity.bounds)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))


@contextmanager
def _resting(backbone: Backbone) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
