"""Scans to masks or class scores, on the original grid of each scan."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voco.backbone import Backbone
from voco.data.imageio import write_image
from voco.data.intensity import apply
from voco.data.patches import fitted, lowest, scaling
from voco.data.preprocess import Prepared, prepare_volume, restore_labels, restore_maps
from voco.data.source import Source
from voco.data.sources import discover, read_source
from voco.data.store import write_atomically
from voco.errors import DataError, UsageError, VocoError, WeightsError
from voco.evaluation.tables import number_text, write_rows
from voco.geometry import Grid
from voco.inference import all_logits, class_probabilities, windows_of
from voco.progress import track
from voco.tasks.classification import Classification
from voco.tasks.segmentation import Segmentation
from voco.volume import Volume
from voco.weights import Handover, load_backbone, read_handover, read_tensors
from voco.weights.trained import build_task, load_classifier

SCORES = "scores.csv"
"""Table of a classification: a line per scan."""


@dataclass(frozen=True)
class Predictions:
    """What became of the scans.

    Attributes:
        folder: Where the results are.
        files: Masks, or the table of scores.
        scans: How many scans were predicted.
        failures: Scan and reason, of those that were not.
    """

    folder: Path
    files: tuple[Path, ...]
    scans: int
    failures: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether every scan was predicted."""
        return not self.failures

    def __str__(self) -> str:
        failed = f", {len(self.failures)} not" if self.failures else ""
        lines = [f"{self.scans} scans predicted{failed}; see {self.folder}"]
        return "\n".join([*lines, *(f"  {scan}: {reason}" for scan, reason in self.failures)])


@dataclass(frozen=True)
class Model:
    """A fine-tuned network and what it expects."""

    task: Segmentation | Classification
    handover: Handover
    device: torch.device


def predict(
    run: Path | str,
    scans: Sequence[Path | str],
    out: Path | str,
    *,
    overwrite: bool = False,
    flips: bool = False,
    probabilities: bool = False,
    modality: str | None = None,
    device: str | None = None,
) -> Predictions:
    """Predict masks (a NIfTI file per scan) or scores (one table).

    Scans are read and prepared as in training; logits, not labels, are brought back to the grid
    of the scan. A scan that cannot be predicted is reported, and the others go on.

    Args:
        run: A run folder of fine-tuning.
        scans: Files, DICOM folders, or folders of scans.
        out: Folder to write.
        overwrite: Replace what is there.
        flips: Average over mirrored copies, along the axes that the task allows.
        probabilities: Also write the probability of every class, as the fourth axis of a file
            per scan in ``probabilities/``.
        modality: What the scans are, for formats that do not say.
        device: Such as ``cuda:1``; the GPU if there is one, else the CPU, for ``None``.

    Raises:
        WeightsError: If the run is not one of fine-tuning, or damaged.
        DataError: If nothing that could be a scan is found.
        UsageError: If results would be replaced without being asked to.
    """
    model = load_model(Path(run), device)
    sources, failures = _find([Path(scan) for scan in scans])
    out = Path(out)
    segments = isinstance(model.task, Segmentation)
    files = [out / f"{source.id}.nii.gz" for source in sources] if segments else [out / SCORES]
    _check_free(files, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[float]] = {}
    for source in track(sources, "predict", total=len(sources)):
        try:
            ready = _prepare(source, model, modality)
            if segments:
                done[source.id] = []
                _segment(model, source.id, ready, out, flips=flips, maps=probabilities)
            else:
                done[source.id] = _classify(model, ready, flips=flips)
        except (VocoError, MemoryError, torch.OutOfMemoryError, OSError) as error:
            done.pop(source.id, None)
            failures.append((str(source.images[0]), str(error) or "not enough memory"))
    _write_names(model.handover, out)
    if not segments:
        _write_scores(model.handover, done, out)
    written = tuple(file for file in files if file.exists())
    return Predictions(out, written, len(done), tuple(failures))


def load_model(run: Path, device: str | None = None) -> Model:
    """The network of a fine-tuning run, ready to predict.

    Raises:
        WeightsError: If the run is not one of fine-tuning, or damaged.
    """
    handover = read_handover(run)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if handover.task is None or handover.kind == "pretraining":
        raise WeightsError(
            f"{run}: holds a network of the kind '{handover.kind}', which gives no masks and no "
            f"scores. Fine-tune it first: voco finetune RECIPE --data STORE --weights {run}"
        )
    task = _build(handover, load_backbone(run), run)
    return Model(task.to(place).eval(), handover, place)


def _build(handover: Handover, backbone: Backbone, run: Path) -> Segmentation | Classification:
    task = build_task(handover, backbone, run)
    if isinstance(task, Classification):
        return load_classifier(task, read_tensors(run), run)
    return task


def _find(scans: Sequence[Path]) -> tuple[list[Source], list[tuple[str, str]]]:
    """Scans in all places, labels left aside, and what was refused.

    Raises:
        DataError: If nothing is there at all, or two scans have the same name.
    """
    sources: dict[str, Source] = {}
    failures: list[tuple[str, str]] = []
    for place in scans:
        try:
            found, refused = discover(Path(place))
        except DataError as error:
            failures.append((str(place), str(error)))
            continue
        failures += [(str(item.path), item.reason) for item in refused]
        for source in found:
            other = sources.get(source.id)
            if other is not None and other.images != source.images:
                raise DataError(
                    f"{other.images[0]} and {source.images[0]} would both become "
                    f"'{source.id}'. Predict them into different folders."
                )
            sources[source.id] = source
    if not sources and not failures:
        raise DataError(f"{', '.join(map(str, scans)) or 'no place'}: no scan is there.")
    return list(sources.values()), failures


def _check_free(files: Sequence[Path], *, overwrite: bool) -> None:
    taken = [file for file in files if file.exists()]
    if taken and not overwrite:
        raise UsageError(
            f"{taken[0]}: exists (and {len(taken) - 1} more). Give another folder, or --overwrite."
        )


def _prepare(source: Source, model: Model, modality: str | None) -> Prepared:
    """A scan as a store would hold it.

    Raises:
        DataError: If it cannot be read, or is of another kind than what was trained on.
    """
    handover = model.handover
    scan, _ = read_source(replace(source, label=None), modality=modality)
    expected = handover.backbone.in_channels
    if len(scan.volume.array) != expected:
        names = f" ({', '.join(handover.channels)})" if handover.channels else ""
        raise DataError(
            f"{source.images[0]}: has {len(scan.volume.array)} channels, the network takes "
            f"{expected}{names}."
        )
    known = handover.modalities
    if known and scan.modality not in known:
        raise DataError(
            f"{source.images[0]}: its modality is {scan.modality}, the network was trained on "
            f"{', '.join(known)}. If the scan is {known[0]}, say so with --modality {known[0]}."
        )
    return prepare_volume(scan.volume, handover.preprocessing, modality=scan.modality)


def _segment(
    model: Model, name: str, ready: Prepared, out: Path, *, flips: bool, maps: bool
) -> None:
    task = model.task
    assert isinstance(task, Segmentation)
    volume = _scaled(model, ready, ready.image)
    logits = all_logits(task.backbone, volume, windows_of(task.config, flips=flips))
    numbers = restore_labels(logits, ready.grid, ready.source_grid)
    values = np.array(list(model.handover.classes))
    mask = values.astype(np.uint8 if values.max() < 256 else np.int16)[numbers]
    write_image(Volume(mask[None], ready.source_grid), out / f"{name}.nii.gz")
    if maps:
        shares = _probabilities(logits, ready.grid, ready.source_grid)
        folder = out / "probabilities"
        folder.mkdir(exist_ok=True)
        write_image(Volume(shares, ready.source_grid), folder / f"{name}.nii.gz")


def _probabilities(
    logits: Float[Tensor, "k x y z"], grid: Grid, source: Grid
) -> Float[np.ndarray, "k _ _ _"]:
    """Probability of every class on the scan's grid; what was cut away is background."""
    shares = logits.float().softmax(dim=0)
    background = restore_maps(shares[:1], grid, source, outside=1.0)
    return np.concatenate([background, restore_maps(shares[1:], grid, source)])


def _classify(model: Model, ready: Prepared, *, flips: bool) -> list[float]:
    task = model.task
    assert isinstance(task, Classification)
    stored = fitted(ready.image, task.config.size, task.config.fit, lowest(ready))
    return class_probabilities(task, _scaled(model, ready, stored), flips=flips).tolist()


def _scaled(model: Model, ready: Prepared, stored: np.ndarray) -> Float[Tensor, "c x y z"]:
    """Stored voxels in the network's range, on the device."""
    intensity = model.handover.intensity
    gain, bias = (part.to(model.device) for part in scaling(ready, intensity))
    voxels = torch.from_numpy(np.ascontiguousarray(stored)).to(model.device)
    return apply(voxels[None], gain[None], bias[None], *intensity.bounds)[0]


def _write_names(handover: Handover, out: Path) -> None:
    content = json.dumps({str(value): name for value, name in handover.classes.items()}, indent=2)
    write_atomically(out / "labels.json", content.encode())


def _write_scores(handover: Handover, done: dict[str, list[float]], out: Path) -> None:
    names = list(handover.classes.values())
    rows: Iterator[list[object]] = (
        [case, names[int(np.argmax(values))], *map(number_text, values)]
        for case, values in done.items()
    )
    write_rows(out / SCORES, ["case", "predicted", *names], rows)
