"""Scans to masks or class scores, on the original grid of each scan."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Integer

from voco.backbone import Backbone
from voco.data.dicomseg import check_highdicom, write_dicom_segmentation
from voco.data.fingerprint import Fingerprint
from voco.data.imageio import write_image
from voco.data.intake import look_at
from voco.data.labelnames import itksnap_labels
from voco.data.listings import read_json
from voco.data.patches import fitted, lowest
from voco.data.preprocess import Prepared, restore_rows
from voco.data.source import Source
from voco.data.store import write_atomically
from voco.engine.allocator import keep_freed_pages
from voco.errors import DataError, UsageError, VocoError, WeightsError
from voco.evaluation.tables import SEEN, number_text, read_rows, write_rows
from voco.inference import class_probabilities, sliding_window, windows_of
from voco.progress import track
from voco.scans import find_scans, prepare_scan, scaled
from voco.tasks.classification import Classification
from voco.tasks.segmentation import Segmentation
from voco.volume import Volume
from voco.weights import Handover, load_backbone, read_handover, read_tensors, recognise
from voco.weights.trained import build_task, load_classifier

MaskFormat = Literal["nifti", "dicomseg", "both"]
"""How masks are written."""

SCORES = "scores.csv"
"""Table of a classification: a line per scan."""

REFERENCES = "references.csv"
"""What is true of the scans of a data set, for ``voco evaluate``."""

_NAMED = 5
"""Scans that were learnt from and are named on the screen."""


@dataclass(frozen=True)
class Predictions:
    """What became of the scans.

    Attributes:
        folder: Where the results are.
        files: Masks, or the table of scores.
        scans: How many scans were predicted.
        failures: Scan and reason, of those that were not.
        seen: Scans that the network has learnt from, and in which training.
    """

    folder: Path
    files: tuple[Path, ...]
    scans: int
    failures: tuple[tuple[str, str], ...]
    seen: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every scan was predicted."""
        return not self.failures

    def __str__(self) -> str:
        failed = f", {len(self.failures)} not" if self.failures else ""
        lines = [f"{self.scans} scans predicted{failed}; see {self.folder}"]
        if self.seen:
            names = list(self.seen)
            few = ", ".join(names[:_NAMED]) + (", ..." if names[_NAMED:] else "")
            lines.append(
                f"{len(names)} of them were learnt from ({few}; see {SEEN}): they do not tell how "
                "good the network is on new scans"
            )
        return "\n".join([*lines, *(f"  {scan}: {reason}" for scan, reason in self.failures)])


@dataclass(frozen=True)
class Model:
    """A fine-tuned network and what it expects."""

    task: Segmentation | Classification
    handover: Handover
    device: torch.device


def predict(  # noqa: PLR0913 (one argument per option)
    run: Path | str,
    scans: Sequence[Path | str],
    out: Path | str,
    *,
    overwrite: bool = False,
    flips: bool = False,
    probabilities: bool = False,
    modality: str | None = None,
    device: str | None = None,
    dataset: str | None = None,
    only: Literal["train", "validation", "unused"] | None = None,
    mask_format: MaskFormat = "nifti",
) -> Predictions:
    """Predict masks (a file per scan) or scores (one table).

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
        dataset: The scans lie in the folder of this data set, as its owners distribute it. Then
            ``references.csv`` says what is true of them, for :func:`voco.evaluate`.
        only: Only the scans that the run learnt from, held out, or left alone, by its
            ``cases.json``.
        mask_format: ``nifti``; ``dicomseg``: DICOM segmentations, of scans that are DICOM (others
            are reported); ``both``: NIfTI of all scans, and DICOM segmentations of those that are
            DICOM.

    Raises:
        WeightsError: If the run is not one of fine-tuning, or damaged.
        DataError: If nothing that could be a scan is found.
        UsageError: If results would be replaced without being asked to, or a classification is
            asked for masks, or the package that writes them is not installed.
    """
    model = load_model(Path(run), device)
    if model.device.type == "cpu":
        keep_freed_pages()
    sources, failures = find_scans(
        [Path(scan) for scan in scans], "Predict them into different folders.", dataset
    )
    if only is not None:
        sources, failures = _chosen(sources, Path(run), only), []
    out = Path(out)
    segments = isinstance(model.task, Segmentation)
    _check_format(mask_format, segments=segments)
    files = [out / SCORES]
    if segments:
        files = [file for source in sources for file in _mask_files(source, out, mask_format)]
    _check_free(files, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[float]] = {}
    marks: dict[str, Fingerprint] = {}
    for source in track(sources, "predict", total=len(sources)):
        try:
            if segments and not _mask_files(source, out, mask_format):
                raise DataError(
                    f"{source.images[0]}: is not DICOM, so a DICOM segmentation has nothing to "
                    "refer to. Write NIfTI: --format nifti, or both."
                )
            ready = prepare_scan(source, model.handover, modality)
            if segments:
                done[source.id] = []
                mask = _segment(model, source.id, ready, out, flips=flips, maps=probabilities)
                _write_mask(model.handover, mask, source, ready, out, mask_format)
            else:
                done[source.id] = _classify(model, ready, flips=flips)
            marks[source.id] = look_at(source, ready)
        except (VocoError, MemoryError, torch.OutOfMemoryError, OSError) as error:
            done.pop(source.id, None)
            failures.append((str(source.images[0]), str(error) or "not enough memory"))
    _write_names(model, out)
    if dataset is not None:
        _write_references(sources, out)
    if not segments:
        _write_scores(model.handover, done, out)
    written = tuple(file for file in files if file.exists())
    seen = _write_seen(model.handover, marks, out)
    return Predictions(out, written, len(done), tuple(failures), seen)


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


def _chosen(sources: Sequence[Source], run: Path, only: str) -> list[Source]:
    """The sources of one part of a run's cases.

    Raises:
        WeightsError: If the run does not say which cases those are.
        DataError: If one of them is not there, or there is none.
    """
    file = run / "cases.json"
    if not file.is_file():
        raise WeightsError(f"{file}: not there, so nothing says which cases are '{only}'.")
    wanted = read_json(file).get(only, [])
    found = {source.id: source for source in sources}
    missing = [name for name in wanted if name not in found]
    if missing or not wanted:
        raise DataError(
            f"{file}: of the {len(wanted)} cases of '{only}', {len(missing)} are not among the "
            f"scans given, such as {', '.join(missing[:3]) or 'none'}."
        )
    return [found[name] for name in wanted]


def _check_free(files: Sequence[Path], *, overwrite: bool) -> None:
    taken = [file for file in files if file.exists()]
    if taken and not overwrite:
        raise UsageError(
            f"{taken[0]}: exists (and {len(taken) - 1} more). Give another folder, or --overwrite."
        )


def _check_format(mask_format: MaskFormat, *, segments: bool) -> None:
    if mask_format != "nifti" and not segments:
        raise UsageError(f"format {mask_format}: the network classifies; it gives no masks.")
    if mask_format != "nifti":
        check_highdicom()


def _mask_files(source: Source, out: Path, mask_format: MaskFormat) -> list[Path]:
    """The masks that are written of a scan."""
    dicom = source.stack is not None and mask_format != "nifti"
    nifti = mask_format != "dicomseg"
    names = [f"{source.id}.nii.gz"] * nifti + [f"{source.id}.seg.dcm"] * dicom
    return [out / name for name in names]


def _segment(
    model: Model, name: str, ready: Prepared, out: Path, *, flips: bool, maps: bool
) -> Integer[np.ndarray, "_ _ _"]:
    """The mask of a scan, on its own grid."""
    task = model.task
    assert isinstance(task, Segmentation)
    volume = scaled(ready.image, ready, model.handover, model.device)
    rows = sliding_window(task.backbone, volume, windows_of(task.config, flips=flips))
    numbers, shares = restore_rows(rows, ready.grid, ready.source_grid, shares=maps)
    values = np.array(list(model.handover.classes))
    if shares is not None:
        folder = out / "probabilities"
        folder.mkdir(exist_ok=True)
        write_image(Volume(shares, ready.source_grid), folder / f"{name}.nii.gz")
    return values.astype(np.uint8 if values.max() < 256 else np.int16)[numbers]


def _write_mask(
    handover: Handover,
    mask: Integer[np.ndarray, "_ _ _"],
    source: Source,
    ready: Prepared,
    out: Path,
    mask_format: MaskFormat,
) -> None:
    for file in _mask_files(source, out, mask_format):
        if file.suffix != ".dcm":
            write_image(Volume(mask[None], ready.source_grid), file, labels=handover.classes)
        elif source.stack is not None:
            network = handover.weights_sha256
            write_dicom_segmentation(mask, handover.classes, source.stack, file, network=network)


def _classify(model: Model, ready: Prepared, *, flips: bool) -> list[float]:
    task = model.task
    assert isinstance(task, Classification)
    stored = fitted(ready.image, task.config.size, task.config.fit, lowest(ready))
    volume = scaled(stored, ready, model.handover, model.device)
    return class_probabilities(task, volume, flips=flips).tolist()


def _write_names(model: Model, out: Path) -> None:
    names: dict[str, Any] = {str(n): name for n, name in model.handover.classes.items()}
    if isinstance(model.task, Segmentation) and model.task.config.regions:
        names["regions"] = model.task.config.regions
    write_atomically(out / "labels.json", json.dumps(names, indent=2).encode())
    if model.handover.kind == "segmentation":
        write_atomically(out / "labels.txt", itksnap_labels(model.handover.classes).encode())


def _write_references(sources: Sequence[Source], out: Path) -> None:
    """What is true of the scans, where that is known: their labels' files, or their classes."""
    labels = [[s.id, os.path.abspath(s.label)] for s in sources if s.label]  # noqa: PTH100
    targets = [[source.id, source.target] for source in sources if source.target is not None]
    if labels or targets:
        column = "label" if labels else "target"
        write_rows(out / REFERENCES, ["case", column], labels or targets)


def _write_seen(handover: Handover, marks: Mapping[str, Fingerprint], out: Path) -> dict[str, str]:
    """``seen.csv``: which scans the network has learnt from; those of earlier calls stay."""
    if handover.seen is None:
        return {}
    names = list(marks)
    known = recognise(handover.seen, list(marks.values()))
    seen = {names[number]: stage for number, stage in sorted(known.stages.items())}
    file, new = out / SEEN, "" if known.certain else "unknown"
    old = read_rows(file, ("case", "stage")) if file.exists() else []
    rows = [[row["case"], row["stage"]] for row in old if row["case"] not in marks]
    rows += [[name, seen.get(name, new)] for name in names]
    write_rows(file, ("case", "stage"), rows)
    return seen


def _write_scores(handover: Handover, done: dict[str, list[float]], out: Path) -> None:
    names = list(handover.classes.values())
    rows: Iterator[list[object]] = (
        [case, names[int(np.argmax(values))], *map(number_text, values)]
        for case, values in done.items()
    )
    write_rows(out / SCORES, ["case", "predicted", *names], rows)
