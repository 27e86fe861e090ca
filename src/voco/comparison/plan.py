"""From a recipe to jobs: which trainings, in which order, and which of them cannot be."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch

from voco.backbone import Part
from voco.comparison.settings import ComparisonConfig, Labels
from voco.engine.run import digest
from voco.errors import ConfigError
from voco.evaluation.standing import SCRATCH
from voco.recipes import FinetuneConfig, PretrainConfig
from voco.tasks.segmentation import SegmentationConfig
from voco.workflows.pretrain import build_method

Kind = Literal["budget", "pretraining", "finetuning"]


class Place(NamedTuple):
    """Where in the comparison a job stands; empty where it does not apply.

    Attributes:
        method: Name of the method's row, or ``scratch``.
        backbone: Name of the network.
        handover: What fine-tuning takes over: ``encoder``, ``full``; ``none`` for scratch.
        labels: Labelled cases, as in the recipe.
        pretraining_seed: Seed of the pre-training.
        seed: Seed of the fine-tuning.
    """

    method: str
    backbone: str
    handover: str = ""
    labels: str = ""
    pretraining_seed: str = ""
    seed: str = ""


@dataclass(frozen=True)
class Job:
    """One thing to do, by one process.

    Attributes:
        kind: ``budget`` measures how many steps fit in the seconds; ``pretraining``;
            ``finetuning`` also predicts and measures.
        place: Where it stands.
        config: Its recipe.
        data: Its stores.
        needs: Jobs that must be done before, by id.
        seconds: Budget that replaces the recipe's steps.
        exclude: Stores whose test cases are kept out of it, copies included.
    """

    kind: Kind
    place: Place
    config: PretrainConfig | FinetuneConfig
    data: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seconds: float | None = None
    exclude: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Its name, also of its files."""
        return job_id(self.kind, self.place)

    @property
    def folder(self) -> str:
        """Where it writes, below the comparison's folder."""
        return f"{self.kind}/{self.id.removesuffix(f'--{self.kind}')}"

    @cached_property
    def settings(self) -> str:
        """Hash of what its result depends on, other jobs and the content of stores left out."""
        config = self.config
        if self.seconds is not None:  # then the recipe's steps do not count
            config = config.model_copy(update={"steps": 1})
        known: list[Any] = [digest(config), self.seconds, *self.needs, *self.exclude]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


class Misfit(NamedTuple):
    """A row that cannot be, and why."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Plan:
    """All jobs, in the order in which they are begun, and what does not fit."""

    jobs: tuple[Job, ...]
    misfits: tuple[Misfit, ...]

    @property
    def places(self) -> list[Place]:
        """Of all fine-tunings, row by row."""
        return [job.place for job in self.jobs if job.kind == "finetuning"]


class _Row(NamedTuple):
    """A method on a backbone, and what may be handed over."""

    method: str
    backbone: str
    handovers: tuple[str, ...]


def plan(config: ComparisonConfig) -> Plan:
    """What a recipe means. Builds every network once, reads no data, writes nothing.

    Raises:
        ConfigError: If the fine-tuning does not fit a backbone, so that no row could be.
    """
    for backbone in config.backbones:
        _check_task(config, backbone)
    rows, misfits = _rows(config)
    jobs: dict[str, Job] = {}
    for seed in config.seeds:
        pretraining_seed = seed if config.pretraining_seed == "each" else config.pretraining_seed
        for row in rows:
            for job in _trained_before(config, row, pretraining_seed):
                jobs.setdefault(job.id, job)
        for labels in config.labels:
            for job in _tuned(config, rows, labels, pretraining_seed, seed):
                jobs.setdefault(job.id, job)
    return Plan(tuple(jobs.values()), tuple(misfits))


def job_id(kind: Kind, place: Place) -> str:
    """The name of a job; no two share one, as no part of it holds two dashes in a row."""
    given = f"p{place.pretraining_seed}" if place.pretraining_seed else ""
    seed = f"s{place.seed}" if place.seed else ""
    parts = (place.method, place.backbone, place.handover, place.labels, given, seed)
    return "--".join([*(part for part in parts if part), kind])


def row_order(config: ComparisonConfig, place: Place) -> tuple[int, ...]:
    """Sorts places as the recipe names their parts; scratch comes last of its backbone."""

    def at(values: Any, value: str) -> int:  # noqa: ANN401 (any collection)
        names = [str(one) for one in values]
        return names.index(value) if value in names else len(names)

    return (
        at(config.backbones, place.backbone),
        at(config.methods, place.method),
        at(config.handover, place.handover),
        at(config.labels, place.labels),
        int(place.pretraining_seed or -1),
        int(place.seed or -1),
    )


def _rows(config: ComparisonConfig) -> tuple[list[_Row], list[Misfit]]:
    rows: list[_Row] = []
    misfits: list[Misfit] = []
    for backbone in config.backbones:
        for method in config.methods:
            try:
                parts = _trained_parts(_pretraining(config, method, backbone, 0))
            except ConfigError as error:
                misfits.append(Misfit(Place(method, backbone), str(error)))
                continue
            possible = ("encoder", "full") if "decoder" in parts else ("encoder",)
            handovers = tuple(one for one in config.handover if one in possible)
            if not handovers:
                reason = "trains no decoder, so there is no full hand-over; 'encoder' is not asked"
                misfits.append(Misfit(Place(method, backbone, "full"), reason))
                continue
            rows.append(_Row(method, backbone, handovers))
        rows.append(_Row(SCRATCH, backbone, ("none",)))
    return rows, misfits


def _trained_parts(config: PretrainConfig) -> tuple[Part, ...]:
    """What a method hands over.

    Raises:
        ConfigError: If the method does not fit the backbone.
    """
    return build_method(config).trained_parts()


def _check_task(config: ComparisonConfig, backbone: str) -> None:
    settings, task = config.backbones[backbone], config.finetuning.task
    try:
        with torch.random.fork_rng(devices=()):
            if isinstance(task, SegmentationConfig):
                task.build(settings.build(2))
            else:
                weights = task.class_weights
                task.build(settings.build(), 2 if weights is None else len(weights))
    except ConfigError as error:
        raise ConfigError(f"finetuning does not fit the backbone '{backbone}': {error}") from None


def _pretraining(config: ComparisonConfig, method: str, backbone: str, seed: int) -> PretrainConfig:
    changes = {"backbone": config.backbones[backbone], "seed": seed}
    return config.methods[method].model_copy(update=changes)


def _trained_before(config: ComparisonConfig, row: _Row, seed: int) -> Iterator[Job]:
    """The pre-training of a row, and the measurement of its budget."""
    if row.method == SCRATCH:
        return
    recipe = _pretraining(config, row.method, row.backbone, seed)
    exclude = config.data if config.leaks == "exclude" else ()
    needs: tuple[str, ...] = ()
    if config.seconds is not None:
        first = _pretraining(config, row.method, row.backbone, 0)
        place = Place(row.method, row.backbone)
        budget = Job("budget", place, first, config.pretrain_data, (), config.seconds)
        needs = (budget.id,)
        yield budget
    place = Place(row.method, row.backbone, pretraining_seed=str(seed))
    yield Job("pretraining", place, recipe, config.pretrain_data, needs, config.seconds, exclude)


def _tuned(
    config: ComparisonConfig, rows: list[_Row], labels: Labels, pretraining_seed: int, seed: int
) -> Iterator[Job]:
    """All rows' fine-tunings of one seed and number of labels."""
    for row in rows:
        scratch = row.method == SCRATCH
        for handover in row.handovers:
            changes = {
                "backbone": config.backbones[row.backbone],
                "labels": None if labels == "all" else labels,
                "seed": seed,
                "transfer": "encoder" if handover == "encoder" else "all",
            }
            given = "" if scratch else str(pretraining_seed)
            place = Place(row.method, row.backbone, handover, str(labels), given, str(seed))
            before = Place(row.method, row.backbone, pretraining_seed=given)
            recipe = config.finetuning.model_copy(update=changes)
            needs = () if scratch else (job_id("pretraining", before),)
            yield Job("finetuning", place, recipe, config.data, needs)
