"""Labelled scans and weights to a network that segments or classifies."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from voco.backbone import Part
from voco.data.fingerprint import Fingerprint
from voco.data.labelled import (
    Labelled,
    Split,
    check_channels,
    label_classes,
    labelled_cases,
    split_cases,
    target_classes,
)
from voco.data.leaks import find_overlaps, fingerprints
from voco.data.loading import Share
from voco.data.patches import (
    CropSamples,
    CropSettings,
    VolumeSamples,
    patch_batches,
    volume_batches,
)
from voco.data.store import Store, open_alike, write_atomically
from voco.draws import Draws
from voco.engine.launch import launch
from voco.engine.loop import Record
from voco.engine.optimizer import build_optimizer
from voco.engine.run import first_does, open_run
from voco.engine.session import train
from voco.errors import ConfigError
from voco.evaluation.tables import Score, number_text, read_rows, write_rows
from voco.nn.gather import gathered_objects
from voco.recipes import FinetuneConfig
from voco.task import Step
from voco.tasks.classification import Classification, ClassificationConfig
from voco.tasks.segmentation import Segmentation, SegmentationConfig
from voco.validation import figures, score_cases, summarise
from voco.weights import (
    Accounting,
    Seen,
    TrainingData,
    export,
    read_handover,
    recognise,
    record,
    seen_before,
    seen_in,
    settled,
    transfer,
    weights_digest,
)
from voco.weights.handover import handover_file

_COLUMNS = ("step", "case", "structure", "metric", "value")
"""Of ``validation.csv``."""

_NAMED = 5
"""Cases that a warning names."""


@dataclass(frozen=True)
class Job:
    """What is learnt from which cases.

    Attributes:
        stores: Where the cases are.
        split: Which cases are learnt from, held out, and left alone.
        classes: For segmentation label values and names, in the order of the classes; for
            classification class numbers and targets.
        targets: The targets in the order of the classes; empty for segmentation.
    """

    stores: tuple[Store, ...]
    split: Split
    classes: dict[int, str]
    targets: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Leaks:
    """Held-out cases that are learnt from.

    Attributes:
        tested: How many cases are held out: for validation, and of the split ``test``.
        certain: Whether all that the weights have learnt from is known.
        seen: Held-out cases, and in which training the weights have learnt from them.
        copies: Held-out cases, and the case of this training that is the same scan.
    """

    tested: int
    certain: bool
    seen: dict[str, str]
    copies: dict[str, str]

    def warnings(self) -> Iterator[str]:
        """What a reader of the scores must know."""
        of = f"of the {self.tested} held-out cases"
        if self.seen:
            stages = " and ".join(sorted(set(self.seen.values())))
            yield (
                f"the weights have learnt from {len(self.seen)} {of} in {stages} "
                f"({_few(list(self.seen))}): their scores say nothing about new scans. "
                "'voco pretrain --exclude' leaves copies of a store's cases out"
            )
        if self.copies:
            pairs = [f"{one} is {other}" for one, other in self.copies.items()]
            yield (
                f"{len(self.copies)} {of} are the same scans as cases to learn from "
                f"({_few(pairs)}): put both into one group"
            )


def finetune(
    config: FinetuneConfig,
    data: Sequence[Path | str],
    weights: Path | str | None,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a network for a task, from weights or from scratch under the very same conditions.

    The result is always the network of the last step: none is picked by how well it does on the
    cases that are reported.

    Args:
        config: The recipe.
        data: Stores with labelled cases.
        weights: A run folder, a checkpoint of a run, or a weight file of anybody whose layout is
            known; ``None`` trains from scratch.
        out: The run folder.
        resume: Go on from the last checkpoint.
        overwrite: Remove a run that lies there.

    Returns:
        The run folder.

    Raises:
        ConfigError: If recipe and data do not fit together.
        StoreError: If a store has no usable labels.
        WeightsError: If the weights do not fit the network.
        UsageError: If the run folder may not be written.
    """
    out, weights = Path(out), None if weights is None else Path(weights)
    config = config.model_copy(update={"backbone": settled(config.backbone, weights)})
    job = find_job(config, data)
    task, accounting = start(config, job, weights)
    fabric = launch(config.precision)
    facts = {"stores": [store.digest for store in job.stores], "weights": weights_digest(weights)}
    run = open_run(fabric, out, config, facts, resume=resume, overwrite=overwrite)
    if run.finished:
        return out
    before = seen_before(weights)
    learnt = first_does(fabric, lambda: _fingerprints(job.split.train))

    def note() -> None:
        _write_notes(out, config, job, weights, accounting, _leaks(job, before, learnt))

    first_does(fabric, note)
    first_does(fabric, lambda: _draw_views(config, job, task, out))
    optimizer = build_optimizer(
        config.optimizer,
        task,
        share=lambda name: config.encoder_lr_share if _in_encoder(name, task) else 1.0,
        fused=config.precision != "fp16-mixed",
    )
    share = Share(
        config.batch_size, config.optimizer.accumulate, fabric.global_rank, fabric.world_size
    )
    train(
        fabric,
        run,
        task,
        optimizer,
        lambda done: _batches(config, job, share, fabric.device, done, config.steps),
        config,
        what="fine-tune",
        hooks=(lambda record: _look(fabric, task, config, job, record, out),),
    )
    seen = (*before, seen_in(config.task.name, learnt))
    first_does(fabric, lambda: _hand_over(config, job, task, out, seen))
    return out


def find_job(config: FinetuneConfig, data: Sequence[Path | str]) -> Job:
    """Classes and cases of a run; reads no voxels.

    Raises:
        ConfigError: If recipe and data do not fit together.
        StoreError: If the stores were prepared differently, or have no usable labels.
    """
    stores = open_alike(data)
    segments = isinstance(config.task, SegmentationConfig)
    cases = labelled_cases(stores, "label" if segments else "target")
    split = split_cases(
        cases,
        validation=config.validation,
        split_seed=config.split_seed,
        labels=config.labels,
        labels_seed=config.seed if config.labels_seed is None else config.labels_seed,
    )
    check_channels((*split.train, *split.validation), config.backbone.in_channels)
    if isinstance(config.task, SegmentationConfig):
        classes = label_classes(cases)
        _check_regions(config.task, classes)
        return Job(stores, split, classes)
    targets = target_classes(cases)
    return Job(stores, split, dict(enumerate(map(str, targets))), targets)


def _check_regions(task: SegmentationConfig, classes: dict[int, str]) -> None:
    for name, values in task.regions.items():
        strange = sorted(set(values) - (set(classes) - {0}))
        if strange or not values:
            known = ", ".join(f"{value} ({each})" for value, each in classes.items() if value)
            raise ConfigError(
                f"task.regions.{name}: {strange or 'nothing'} are no labels of this data; they "
                f"are {known}. Two data sets may number the same structures differently."
            )


def start(
    config: FinetuneConfig, job: Job, weights: Path | None
) -> tuple[Segmentation | Classification, Accounting | None]:
    """The task as its first step finds it, and where its weights came from.

    Raises:
        ConfigError: If the backbone does not fit the task.
        WeightsError: If the weights do not fit the network.
    """
    task, accounting = build_task(config, job), None
    if weights is not None:
        fresh: tuple[Part, ...] = ("head",) if config.transfer == "all" else ("decoder", "head")
        accounting = transfer(
            task.backbone, weights, fresh=fresh, expected_share=config.expected_share
        )
    if config.encoder_lr_share == 0:
        for name, parameter in task.named_parameters():
            if _in_encoder(name, task):
                parameter.requires_grad = False
    return task, accounting


def build_task(config: FinetuneConfig, job: Job) -> Segmentation | Classification:
    """The task with random weights that depend on the seed alone: the same in both arms.

    Raises:
        ConfigError: If the backbone does not fit the task.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        if isinstance(config.task, SegmentationConfig):
            return config.task.build(config.backbone.build(len(job.classes)))
        return config.task.build(config.backbone.build(), len(job.classes))


def _in_encoder(name: str, task: Segmentation | Classification) -> bool:
    """Whether a parameter of a task is one of its backbone's encoder."""
    inner = name.removeprefix("backbone.network.")
    return inner != name and inner.startswith(task.backbone.encoder_prefixes)


def _batches(
    config: FinetuneConfig, job: Job, share: Share, device: torch.device, done: int, stop: int
) -> Iterator[Any]:
    """The micro-batches from a step up to another."""
    common = (job.split.train, config.intensity, config.seed, share)
    span = (done * share.accumulate, stop * share.accumulate)
    task = config.task
    if isinstance(task, ClassificationConfig):
        volumes = VolumeSamples(job.targets, task.size, task.fit, *common)
        return volume_batches(volumes, device, config.workers, *span)
    settings = CropSettings(
        tuple(job.classes), task.roi, task.crops_per_volume, task.positive_share
    )
    return patch_batches(CropSamples(settings, *common), device, config.workers, *span)


def _draw_views(
    config: FinetuneConfig, job: Job, task: Segmentation | Classification, out: Path
) -> None:
    """``views.png``: the first volumes as the task sees them."""
    from voco.figures import draw_panels  # noqa: PLC0415 (matplotlib takes a second)

    file = out / "views.png"
    if file.exists():
        return
    quick = config.model_copy(update={"workers": 0})
    batch = next(_batches(quick, job, Share(config.batch_size), torch.device("cpu"), 0, 1))
    panels = task.show(batch, Step(0, config.steps, Draws(config.seed, 0)))
    draw_panels(panels, file, "The first batch")


def _look(
    fabric: Fabric,
    task: Segmentation | Classification,
    config: FinetuneConfig,
    job: Job,
    record: Record,
    out: Path,
) -> None:
    """A hook: look at the held-out cases, if it is time to."""
    cases = job.split.validation
    if not cases or not record.due(config.validate_every):
        return
    record.ledger.settle()
    mine = cases[fabric.global_rank :: fabric.world_size]
    with fabric.autocast():
        scores = score_cases(task, mine, job.classes, config.intensity, fabric.device)
    place = {one.case.id: number for number, one in enumerate(cases)}
    found = [score for part in gathered_objects(scores) for score in part]
    scores = sorted(found, key=lambda score: place[score.case])
    scores += summarise(scores, cases, job.classes)
    record.figures["validation"] = figures(scores)
    first_does(fabric, lambda: _note(out / "validation.csv", record.done, scores))


def _note(file: Path, step: int, scores: Sequence[Score]) -> None:
    """Add the scores of a step to the table; those of later steps are of an interrupted past."""
    old = read_rows(file, _COLUMNS) if file.exists() else []
    kept = [[row[name] for name in _COLUMNS] for row in old if int(row["step"]) < step]
    new = [[step, *score[:3], number_text(score.value)] for score in scores]
    write_rows(file, _COLUMNS, [*kept, *new])


def _hand_over(
    config: FinetuneConfig,
    job: Job,
    task: Segmentation | Classification,
    out: Path,
    seen: tuple[Seen, ...],
) -> None:
    parts: tuple[Part, ...] = ("encoder", "decoder", "head")
    tensors = None
    if isinstance(task, Classification):
        parts = ("encoder",)
        tensors = {f"classifier.{name}": t for name, t in task.classifier.state_dict().items()}
    train = job.split.train
    export(
        out,
        task.backbone,
        kind=config.task.name,
        trained=parts,
        step=config.steps,
        seed=config.seed,
        preprocessing=job.stores[0].preprocessing,
        intensity=config.intensity,
        task=config.task.model_dump(mode="json"),
        channels=train[0].case.channels,
        modalities=tuple(sorted({one.case.modality for one in train})),
        classes=job.classes,
        data=tuple(
            TrainingData(digest=store.digest, cases=sum(one.store is store for one in train))
            for store in job.stores
        ),
        seen=seen,
        task_tensors=tensors,
    )


def _write_notes(
    out: Path,
    config: FinetuneConfig,
    job: Job,
    weights: Path | None,
    accounting: Accounting | None,
    leaks: Leaks,
) -> None:
    """``cases.json`` and ``weights.json``, and the warnings on the screen."""
    parts = job.split._asdict().items()
    cases = {name: [one.case.id for one in part] for name, part in parts}
    warnings = [*leaks.warnings(), *_doubts(config, job), *_differences(config, job, weights)]
    about = {
        **record(weights, accounting),
        "leaks": asdict(leaks),
        "warnings": warnings,
    }
    for name, content in (("cases.json", cases), ("weights.json", about)):
        write_atomically(out / name, json.dumps(content, indent=2).encode())
    counts = f"{len(job.split.train)} cases to learn from, {len(job.split.validation)} held out"
    for line in (
        counts,
        f"weights: {about['summary']}",
        *(f"warning: {text}" for text in warnings),
    ):
        print(f"voco: {line}", file=sys.stderr)  # noqa: T201


def _fingerprints(cases: Sequence[Labelled]) -> list[Fingerprint]:
    """Of each case, in their order."""
    marks: dict[tuple[Path, str], Fingerprint] = {}  # two stores may both have a case of one name
    for store in dict.fromkeys(one.store for one in cases):
        own = [one.case for one in cases if one.store is store]
        names = ((store.path, case.id) for case in own)
        marks |= zip(names, fingerprints(store, own), strict=True)
    return [marks[one.store.path, one.case.id] for one in cases]


def _leaks(job: Job, before: Sequence[Seen], learnt: Sequence[Fingerprint]) -> Leaks:
    """Held-out cases against all that the weights have learnt from, and will learn from now."""
    split = job.split
    tested = [*split.validation, *(one for one in split.unused if one.case.split == "test")]
    marks = _fingerprints(tested)
    names = [one.case.id for one in tested]
    known = recognise(before, marks)
    copies = {
        names[overlap.tested]: split.train[overlap.seen].case.id
        for overlap in find_overlaps(learnt, marks)
    }
    seen = {names[number]: stage for number, stage in sorted(known.stages.items())}
    return Leaks(len(tested), known.certain, seen, copies)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if names[_NAMED:] else "")


def _doubts(config: FinetuneConfig, job: Job) -> Iterator[str]:
    """What is allowed, but seldom meant."""
    if job.targets:
        return
    seen = {value for one in job.split.train for value in one.case.class_voxels}
    unseen = [name for value, name in job.classes.items() if value not in seen]
    if unseen:
        yield f"no case to learn from shows {', '.join(unseen)}"
    task = config.task
    names = " ".join(job.classes.values()).lower()
    sided = "left" in names and "right" in names
    if isinstance(task, SegmentationConfig) and sided and task.flip_probability:
        if "x" in task.flip_axes:
            yield "crops are mirrored from left to right, but some classes have a side"
        elif task.flip_axes and task.turn_probability:
            yield "crops are mirrored and turned, which mixes sides, but some classes have a side"


def _differences(config: FinetuneConfig, job: Job, weights: Path | None) -> Iterator[str]:
    """Where the weights saw other images than this run shows them."""
    if weights is None or handover_file(weights) is None:
        return
    theirs, store = read_handover(weights), job.stores[0]
    pairs = (
        ("preprocessing", theirs.preprocessing, store.preprocessing),
        ("intensity", theirs.intensity, config.intensity),
    )
    for what, before, now in pairs:
        if before != now:
            yield f"the weights were trained with the {what} {before!r}, this run has {now!r}"
