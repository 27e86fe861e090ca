"""A recipe and stores to pre-trained weights."""

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from voco.data.fingerprint import Fingerprint
from voco.data.leaks import LeftOut, cases_to_leave_out, fingerprints, tested_cases
from voco.data.selection import Entry, Split, split_cases
from voco.data.store import Store, open_alike, write_atomically
from voco.data.windows import Share, Windows, window_batches
from voco.draws import Draws, mixed_seed
from voco.engine.checkpoint import is_checkpoint
from voco.engine.launch import launch
from voco.engine.loop import Record
from voco.engine.optimizer import build_optimizer
from voco.engine.run import first_does, open_run
from voco.engine.session import train
from voco.errors import ConfigError
from voco.evaluation.probe import chances, with_chance
from voco.evaluation.tables import number_text, write_rows
from voco.method import Method
from voco.probing import Probe, extracted, facts, find_probe, judged
from voco.recipes import PretrainConfig
from voco.shapes import Volumes
from voco.task import Step
from voco.weights import (
    Accounting,
    Guarded,
    Seen,
    TrainingData,
    export,
    record,
    resume_method,
    seen_before,
    seen_in,
    settled,
    transfer,
    weights_digest,
)

_LOOK = 0x60
_LEAST_LOOKED_AT, _MOST_LOOKED_AT = 16, 32
"""Windows of held-out cases that are looked at: one of each case, but several of few cases, since
figures of a handful of crops say nothing."""

LEFT_OUT = "left_out.csv"
"""Table in the run folder: cases that were not trained on since they are to be tested on."""

_NAMED = 8
"""Cases that are named on the screen; all are in the table."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where.

    Attributes:
        config: The recipe.
        fabric: Launched.
        stores: Opened stores.
        split: Cases to train on, and cases to look at.
        method: On the device.
        out: The run folder.
        guarded: Stores from whose scans it is kept away.
        left_out: Cases that are not trained on for that reason.
        seen: The scans of this training, and of those before.
        probe: What is asked of the features meanwhile, if anything.
    """

    config: PretrainConfig
    fabric: Fabric
    stores: tuple[Store, ...]
    split: Split
    method: Method
    out: Path
    guarded: tuple[Store, ...]
    left_out: tuple[LeftOut, ...]
    seen: tuple[Seen, ...]
    probe: Probe | None = None

    def windows(self, entries: Sequence[Entry], seed: int, share: Share) -> Windows:
        """Windows of some of the cases."""
        config = self.config
        return Windows(
            self.stores,
            entries,
            config.windows,
            self.method.window,
            config.intensity,
            seed,
            share,
        )


def pretrain(
    config: PretrainConfig,
    data: Sequence[Path | str],
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    weights: Path | str | None = None,
    probe_data: Sequence[Path | str] = (),
    exclude: Sequence[Path | str] = (),
) -> Path:
    """Pre-train a network on unlabelled scans.

    A run that was killed at any moment and resumed ends with the same weights and the same log,
    bit by bit, as one that was never stopped (on one kind of CPU, with the same number of
    threads).

    Args:
        config: The recipe.
        data: Stores.
        out: The run folder.
        resume: Go on from the last checkpoint; start, if there is no run yet.
        overwrite: Remove a run that lies there.
        weights: Start from these: the backbone of a run or of a weight file of anybody whose
            layout is known; or the whole method, heads and teacher, of a run's checkpoint. The
            optimizer starts anew. ``weights.json`` keeps the account.
        probe_data: Labelled stores: what the features tell of their labels is logged as ``probe``
            every ``config.probe_every`` steps, beside what those of the untrained network told.
            The network never learns from them.
        exclude: Stores that will be tested on: cases that were made from one of their tested
            scans, however they were prepared, are not learnt from, and neither are the other cases
            of their groups. Tested are the cases of the split ``test``, or all of a store that has
            none. ``left_out.csv`` names what was left out.

    Returns:
        The run folder.

    Raises:
        ConfigError: If recipe and data do not fit together.
        StoreError: If a store is missing or damaged, or has no case to train on, or two stores were
            prepared differently.
        WeightsError: If the weights do not fit the backbone.
        UsageError: If the run folder may not be written.
        TrainingError: If a loss or a gradient is not finite.
        Interrupted: After SIGTERM or Ctrl-C, with a checkpoint written.
    """
    out, weights = Path(out), None if weights is None else Path(weights)
    stores = open_alike(data)
    guarded = tuple(Store(path) for path in exclude)
    left_out = cases_to_leave_out(stores, guarded)
    split = find_cases(config, stores, {(item.store, item.case) for item in left_out})
    config = config.model_copy(update={"backbone": settled(config.backbone, weights)})
    method, accounting = started_method(config, weights)
    probe = None
    if probe_data:
        probe = find_probe(config.probe, probe_data, method.handover(), config.intensity)
    fabric = launch(config.precision)
    facts = {
        "stores": [store.digest for store in stores],
        "weights": weights_digest(weights),
        "exclude": [store.digest for store in guarded] or None,
    }
    run = open_run(fabric, out, config, facts, resume=resume, overwrite=overwrite)
    if run.finished:
        return out
    # Before the first step: a damaged store is noticed now rather than after the last one.
    learnt = first_does(fabric, lambda: _fingerprints(stores, split))
    seen = (*seen_before(weights), seen_in("pretraining", learnt))
    method = method.to(fabric.device)
    job = Job(config, fabric, stores, split, method, out, guarded, left_out, seen, probe)
    first_does(fabric, lambda: _note_weights(out, weights, accounting))
    first_does(fabric, lambda: _note_left_out(job))
    first_does(fabric, lambda: _draw_views(job))
    reference = _reference(job)
    optimizer = build_optimizer(config.optimizer, method, fused=config.precision != "fp16-mixed")
    train(
        fabric,
        run,
        method,
        optimizer,
        lambda done: _batches(job, done),
        config,
        what="pre-train",
        hooks=(
            lambda record: _look(job, record),
            lambda record: _ask(job, reference, record),
        ),
    )
    first_does(fabric, lambda: _finish(job))
    return out


def find_cases(
    config: PretrainConfig,
    stores: Sequence[Store],
    without: Collection[tuple[int, str]] = (),
) -> Split:
    """Cases to train on and cases to look at; reads no voxels.

    Args:
        config: The recipe.
        stores: Where the cases are.
        without: Number of the store and id of cases that are left out.

    Raises:
        ConfigError: If the network takes another number of channels.
        StoreError: If nothing is left to train on.
    """
    split = split_cases(stores, config.holdout, config.seed, without)
    entry = split.train[0]
    channels = entry.case.channels
    if len(channels) != config.backbone.in_channels:
        raise ConfigError(
            f"backbone.in_channels is {config.backbone.in_channels}, and the cases of "
            f"{stores[entry.store].path} have {len(channels)} ({', '.join(channels)}). "
            f"Set backbone.in_channels to {len(channels)}."
        )
    return split


def build_method(config: PretrainConfig) -> Method:
    """The method around its backbone; random weights depend on the seed alone.

    Raises:
        ConfigError: If the backbone does not fit the method.
    """
    return started_method(config, None)[0]


def started_method(
    config: PretrainConfig, weights: Path | None
) -> tuple[Method, Accounting | None]:
    """The method as its first step finds it, and where its weights came from.

    Raises:
        ConfigError: If the backbone does not fit the method.
        WeightsError: If the weights do not fit the backbone, or the checkpoint not the method.
    """
    accounting = None
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        backbone = config.backbone.build()
        if weights is not None and not is_checkpoint(weights):
            accounting = transfer(backbone, weights)
        method = config.method.build(backbone)
        if weights is not None and is_checkpoint(weights):
            accounting = resume_method(method, weights)
    return method, accounting


def _note_weights(out: Path, weights: Path | None, accounting: Accounting | None) -> None:
    """``weights.json``, and a line on the screen."""
    if weights is None:
        return
    about = record(weights, accounting)
    write_atomically(out / "weights.json", json.dumps(about, indent=2).encode())
    print(f"voco: from {weights}: {about['summary']}", file=sys.stderr)  # noqa: T201


def _fingerprints(stores: Sequence[Store], split: Split) -> list[Fingerprint]:
    """Of all cases to train on."""
    return [
        mark
        for number, store in enumerate(stores)
        for mark in fingerprints(store, (e.case for e in split.train if e.store == number))
    ]


def _note_left_out(job: Job) -> None:
    """``left_out.csv``, and a line on the screen."""
    if not job.guarded:
        return
    rows = [
        [
            item.case,
            job.stores[item.store].path,
            item.copy_of,
            job.guarded[item.copy_store].path,
            item.same,
            number_text(item.likeness),
        ]
        for item in job.left_out
    ]
    columns = ("case", "store", "copy_of", "excluded_store", "same", "likeness")
    write_rows(job.out / LEFT_OUT, columns, rows)
    names = [item.case for item in job.left_out]
    few = ", ".join(names[:_NAMED]) + (", ..." if names[_NAMED:] else "")
    total = sum(len(store.cases) for store in job.stores)
    said = f" ({few}); see {job.out / LEFT_OUT}" if names else ""
    text = f"voco: {len(names)} of {total} cases are copies of excluded ones and left out{said}"
    print(text, file=sys.stderr)  # noqa: T201


def _batches(job: Job, done: int) -> Iterator[Volumes]:
    """Micro-batches from a step on."""
    config, fabric = job.config, job.fabric
    accumulate = config.optimizer.accumulate
    share = Share(config.batch_size, accumulate, fabric.global_rank, fabric.world_size)
    windows = job.windows(job.split.train, config.seed, share)
    start, stop = done * accumulate, config.steps * accumulate
    return window_batches(windows, fabric.device, config.windows.workers, start, stop)


def _held_out(job: Job) -> Iterator[tuple[Volumes, Draws]]:
    """The same windows of held-out cases at every look, in micro-batches as in training."""
    entries, config = job.split.held_out, job.config
    seed = mixed_seed(config.seed, _LOOK)
    share = Share(config.batch_size // config.optimizer.accumulate)
    wanted = min(max(len(entries), _LEAST_LOOKED_AT), _MOST_LOOKED_AT)
    count = -(-wanted // share.batch_size)
    batches = window_batches(
        job.windows(entries, seed, share), job.fabric.device, 0, start=0, stop=count
    )
    for index, volumes in enumerate(batches):
        yield volumes, Draws(seed, index)


@torch.no_grad()
def _look(job: Job, record: Record) -> None:
    """A hook: look at held-out cases, if it is time to; every process sees all of them."""
    if not job.split.held_out or not record.due(job.config.validate_every):
        return
    record.ledger.settle()
    sums: dict[str, float] = {}
    count = 0
    job.method.eval()
    for volumes, draws in _held_out(job):
        with job.fabric.autocast():
            losses, health = job.method(volumes, Step(record.done - 1, record.total, draws))
        figures = {"loss": torch.stack(list(losses.values())).sum(), **losses, **health}
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        count += 1
    job.method.train()
    record.figures["holdout"] = {name: value / count for name, value in sums.items()}


def _ask(job: Job, reference: dict[str, Any], record: Record) -> None:
    """A hook: ask the features what they tell of labels, if it is time to."""
    if job.probe is None or not record.due(job.config.probe_every):
        return
    record.ledger.settle()
    probe, device = job.probe, job.fabric.device
    train, test = extracted(probe, job.method.handover(), device)
    result = first_does(job.fabric, lambda: judged(probe, train, test, device))
    figures = with_chance(result, reference["untrained"], reference["chance"])
    record.figures["probe"] = figures


def _reference(job: Job) -> dict[str, Any]:
    """``probe.json``: what is asked, and what the untrained network and chance answer.

    Made when the run begins, read when it goes on.

    Raises:
        ConfigError: If the run was asked something else before.
    """
    probe, config, device = job.probe, job.config, job.fabric.device
    if probe is None:
        return {}
    file, about = job.out / "probe.json", facts(probe)
    known = first_does(job.fabric, lambda: _known_reference(file, about))
    if known is None:
        train, test = extracted(probe, build_method(config).handover().to(device), device)
        known = {**about, "chance": chances(train.classes, test.classes)}
        known["untrained"] = first_does(
            job.fabric, lambda: judged(probe, train, test, device)
        ).flat()
        content = json.dumps(known, indent=2).encode()
        first_does(job.fabric, lambda: write_atomically(file, content))
    return known


def _known_reference(file: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    if not file.exists():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name, value in about.items() if known.get(name) != value]
    if other:
        raise ConfigError(
            f"{file}: the probe had other {' and '.join(other)}, so its figures cannot be "
            "continued. Give what it had, or leave probe_data out; or remove the file, which "
            "starts a probe of its own from here on."
        )
    return known


def _draw_views(job: Job) -> None:
    """``views.png``: the first batch as the method sees it."""
    file = job.out / "views.png"
    if file.exists():
        return
    config = job.config
    share = Share(config.batch_size, config.optimizer.accumulate, world=job.fabric.world_size)
    windows = job.windows(job.split.train, config.seed, share)
    volumes = next(window_batches(windows, job.fabric.device, 0, start=0, stop=1))
    draws = Draws(config.seed, 0, world=job.fabric.world_size)
    _draw(job, volumes, Step(0, config.steps, draws), file, "The first batch")


def _finish(job: Job) -> None:
    """Pictures, then the hand-over: where it is, the run is finished."""
    config, train_entries = job.config, job.split.train
    if job.split.held_out:
        volumes, draws = next(_held_out(job))
        step = Step(config.steps - 1, config.steps, draws)
        _draw(job, volumes, step, job.out / "method.png", "Held-out cases, after the last step")
    used = [entry.store for entry in train_entries]
    export(
        job.out,
        job.method.handover(),
        kind="pretraining",
        trained=job.method.trained_parts(),
        step=config.steps,
        seed=config.seed,
        preprocessing=job.stores[0].preprocessing,
        intensity=config.intensity,
        method=config.method.model_dump(mode="json"),
        channels=train_entries[0].case.channels,
        modalities=tuple(sorted({entry.case.modality for entry in train_entries})),
        data=tuple(
            TrainingData(digest=store.digest, cases=used.count(index))
            for index, store in enumerate(job.stores)
        ),
        seen=job.seen,
        guarded=tuple(
            Guarded(digest=store.digest, cases=len(tested_cases(store))) for store in job.guarded
        ),
        left_out=len(job.left_out),
    )


@torch.no_grad()
def _draw(job: Job, volumes: Volumes, step: Step, file: Path, title: str) -> None:
    from voco.figures import draw_panels  # noqa: PLC0415 (matplotlib takes a second)

    training = job.method.training
    job.method.eval()
    with job.fabric.autocast():
        panels = job.method.show(volumes, step)
    job.method.train(training)
    draw_panels(panels, file, title)
