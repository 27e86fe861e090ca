"""Doing a comparison: job by job, gone on with after any stop, by as many processes as like."""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from voco.comparison.claims import HEARTBEAT_SECONDS, Claim, Claims
from voco.comparison.jobs import task_of
from voco.comparison.leaks import check_leaks
from voco.comparison.outcomes import Outcome, Outcomes
from voco.comparison.plan import Job, Place, Plan, plan
from voco.comparison.settings import ComparisonConfig, UnseenScans
from voco.comparison.tables import status_of, write_findings, write_tables
from voco.comparison.testset import collect
from voco.comparison.worker import Worker
from voco.config import to_yaml
from voco.data.store import Store, write_atomically
from voco.errors import ConfigError, Interrupted, UsageError
from voco.evaluation.comparisons import RECIPE_FILE
from voco.workflows.report import report

_TABLES = "tables"
"""Claim of the one process that writes the tables."""

_POLL_SECONDS = 2.0
"""Between two looks whether other processes have got on."""


@dataclass(frozen=True)
class Comparison:
    """What has become of a comparison.

    Attributes:
        folder: Where it is.
        counts: Jobs by what became of them.
        failures: Jobs that failed, and why.
        misfits: Rows that cannot be, and why.
    """

    folder: Path
    counts: Mapping[str, int]
    failures: Mapping[str, str]
    misfits: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every job is done; what does not fit was never to be."""
        return set(self.counts) <= {"done"}

    def __str__(self) -> str:
        said = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        lines = [f"{said}: {self.folder}"]
        lines += [f"  does not fit: {row}: {reason}" for row, reason in self.misfits.items()]
        lines += [f"  failed: {job}: {reason}" for job, reason in self.failures.items()]
        return "\n".join(lines)


class _LostClaimError(Exception):
    """Another process has taken over the job that this one was doing."""


def compare(
    config: ComparisonConfig, out: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Comparison:
    """Run what a comparison still lacks; write its tables, and the report.

    Any number of processes, on one machine or many, may do this with one folder at the same time:
    each job is done by one of them. A job that fails is noted with its reason and the others go
    on; the next call with ``resume`` tries it once more.

    Args:
        config: The recipe. It may have other rows, labels and seeds than when the folder was
            begun; what is done stays done.
        out: The comparison's folder.
        resume: Go on with what lies there; start, if nothing does.
        overwrite: Remove what lies there.

    Raises:
        ConfigError: If the recipe does not fit the data or what was done with it before, or if
            a scan to measure on is also learnt from.
        StoreError: If a store is missing or damaged.
        UsageError: If the folder may not be written.
        Interrupted: After SIGTERM or Ctrl-C, when the job has stopped in good order.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a comparison is not started by torchrun: every job is one process. Start 'voco "
            "compare ... --resume' once for each GPU (CUDA_VISIBLE_DEVICES=0, 1, ...) instead."
        )
    out = Path(out)
    planned = plan(config)
    _open(out, resume=resume, overwrite=overwrite)
    test = collect(config, out)
    check_leaks(config, test, out)
    session = _Session(config, planned, out, test)
    write_atomically(out / RECIPE_FILE, to_yaml(config).encode())
    with Worker() as worker, session.listening(worker):
        session.work(worker)
    session.conclude()
    return session.result()


def preview(config: ComparisonConfig, out: Path | str) -> str:
    """What a comparison would run, and how far it is, in words; writes nothing."""
    out, planned = Path(out), plan(config)
    outcomes, held = _known(out, planned)
    jobs = {job.id: job for job in planned.jobs}
    by_row: dict[Place, Counter[str]] = {}
    for job in planned.jobs:
        row = Place(job.place.method, job.place.backbone, job.place.handover or job.kind)
        by_row.setdefault(row, Counter())[status_of(job, outcomes, held, jobs)] += 1
    width = max(len("  ".join(row[:3])) for row in by_row)
    lines = [
        f"{'  '.join(row[:3]):<{width}}  {sum(counts.values())} jobs: "
        + ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        for row, counts in by_row.items()
    ]
    lines += [f"does not fit: {_row(m.place)}: {m.reason}" for m in planned.misfits]
    total = Counter(status_of(job, outcomes, held, jobs) for job in planned.jobs)
    said = ", ".join(f"{count} {status}" for status, count in sorted(total.items()))
    return "\n".join([*lines, f"{len(planned.jobs)} jobs in all: {said}"])


class _Session:
    """What one process knows and does of a comparison."""

    def __init__(
        self, config: ComparisonConfig, planned: Plan, out: Path, test: UnseenScans
    ) -> None:
        self._config, self._plan, self._out, self._test = config, planned, out, test
        self._jobs = {job.id: job for job in planned.jobs}
        self._outcomes, self._claims = Outcomes(out / "outcomes"), Claims(out / "claims")
        self._settings = _settings(planned)
        self._stop: signal.Signals | None = None
        (out / "logs").mkdir(exist_ok=True)
        known = self._known()
        self._check_same(known)
        self._retried = {
            name: outcome.attempts for name, outcome in known.items() if outcome.status == "failed"
        }
        """Failed jobs that are tried once more, and how often they were."""

    def work(self, worker: Worker) -> None:
        """Do jobs until none is left, or being done by others."""
        while True:
            progress, left = False, False
            for job in self._plan.jobs:
                state = self._state(job)
                left |= state == "later"
                if state == "now" and (claim := self._claims.take(job.id, worker.process)):
                    progress = True
                    with _given_back(claim):
                        self._do(job, claim, worker)
                elif state == "now":
                    left = True
            if not progress:
                if not left:
                    return
                time.sleep(_POLL_SECONDS)

    def conclude(self) -> None:
        """Write the tables, what follows from them, and the page."""
        with self._alone():
            self._write_tables()
            write_findings(self._config, self._out)
            report(self._out)

    def _write_tables(self) -> None:
        write_tables(self._config, self._plan, self._known(), self._claims.held(), self._out)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Tables are written by one process at a time, so that the newest is what stays."""
        while (claim := self._claims.take(_TABLES)) is None:
            time.sleep(0.2)
        with _given_back(claim):
            yield

    def result(self) -> Comparison:
        """What has become of it."""
        known, held = self._known(), self._claims.held()
        states = Counter(status_of(job, known, held, self._jobs) for job in self._plan.jobs)
        return Comparison(
            self._out,
            dict(sorted(states.items())),
            {name: one.reason for name, one in known.items() if one.status == "failed"},
            {_row(misfit.place): misfit.reason for misfit in self._plan.misfits},
        )

    @contextmanager
    def listening(self, worker: Worker) -> Iterator[None]:
        """While it lasts, signals reach the job that is being done, which stops in good order."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._stop = signal.Signals(number)
            if not worker.signal(number):
                raise self._interrupted()

        before = {}
        if threading.current_thread() is threading.main_thread():
            both = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, note) for number in both}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _state(self, job: Job) -> str:
        """``over``; ``now``: can be done; ``later``: others are doing what it needs."""
        outcome = self._outcomes.read(job.id)
        if outcome is not None and outcome.status == "done":
            return "over"
        if outcome is not None and outcome.status == "failed":
            again = self._retried.get(job.id) == outcome.attempts
            return "now" if again and self._ready(job) else "over"
        if self._ready(job):
            return "now"
        before = {self._state(self._jobs[need]) for need in job.needs if not self._is_done(need)}
        return "over" if "over" in before else "later"

    def _ready(self, job: Job) -> bool:
        return all(map(self._is_done, job.needs))

    def _is_done(self, name: str) -> bool:
        outcome = self._outcomes.read(name)
        return outcome is not None and outcome.status == "done"

    def _do(self, job: Job, claim: Claim, worker: Worker) -> None:
        before = self._outcomes.read(job.id)
        if before is not None and before.status == "done":  # while the claim was being made
            return

        def beat() -> None:
            # A file system that is out of reach for a while is no reason to stop.
            with suppress(OSError):
                if not claim.beat():
                    raise _LostClaimError

        self._say(job, "begins")
        task = task_of(job, self._config, self._out, self._test, self._budget(job))
        log = self._out / "logs" / f"{job.id}.log"
        try:
            told = worker.run(task, log, beat, HEARTBEAT_SECONDS)
        except _LostClaimError:
            self._say(job, "was taken over by another process, which took this one for dead")
            return
        outcome = _outcome(told, before, self._settings[job.id])
        self._outcomes.write(job.id, outcome)
        reason = f": {outcome.reason}" if outcome.reason else ""
        self._say(job, f"{outcome.status} after {outcome.seconds:.0f} s{reason}")
        with self._alone():
            self._write_tables()
        if self._stop is not None:
            raise self._interrupted()

    def _budget(self, job: Job) -> int | None:
        """Steps that fit in the seconds, where there are such."""
        if job.kind != "pretraining" or not job.needs:
            return None
        outcome = self._outcomes.read(job.needs[0])
        return None if outcome is None else outcome.steps

    def _known(self) -> dict[str, Outcome]:
        found = {job: self._outcomes.read(job) for job in self._jobs}
        return {job: outcome for job, outcome in found.items() if outcome is not None}

    def _check_same(self, known: Mapping[str, Outcome]) -> None:
        """Refuse to go on where something was run under other conditions."""
        other = [name for name, one in known.items() if one.settings != self._settings[name]]
        if other:
            raise ConfigError(
                f"{self._out}: {len(other)} jobs were run with other settings or other data than "
                f"those of this recipe: {', '.join(other[:3])}. Go on with the recipe in "
                f"{self._out / RECIPE_FILE}, or start anew in another folder."
            )

    def _interrupted(self) -> Interrupted:
        assert self._stop is not None
        return Interrupted(
            f"stopped by {self._stop.name}; what was done is in {self._out}. The same command "
            "with --resume goes on.",
            128 + self._stop,
        )

    def _say(self, job: Job, what: str) -> None:
        over = sum(outcome.status == "done" for outcome in self._known().values())
        print(f"voco: {over} of {len(self._jobs)}: {job.id} {what}", file=sys.stderr)  # noqa: T201


@contextmanager
def _given_back(claim: Claim) -> Iterator[None]:
    try:
        yield
    finally:
        claim.release()


def _open(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the folder, or agree to what lies there.

    Raises:
        UsageError: If it holds something and neither was asked for, or something else.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other.")
    here = (out / RECIPE_FILE).is_file()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; a folder is needed.")
    if not here and not resume and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: is not empty, and is no comparison. Choose another folder.")
    if here and not (resume or overwrite):
        raise UsageError(
            f"{out}: holds a comparison. --resume goes on with it, --overwrite removes it; or "
            "choose another folder."
        )
    if here and overwrite:
        held = Claims(out / "claims").held()
        if held:
            raise UsageError(
                f"{out}: {', '.join(held.values())} is working in it. Stop that first."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _settings(planned: Plan) -> dict[str, str]:
    """By job: a hash of all that its result depends on."""
    paths = dict.fromkeys(path for job in planned.jobs for path in (*job.data, *job.exclude))
    stores = {path: Store(path).digest for path in paths}
    found: dict[str, str] = {}
    for job in planned.jobs:  # what a job needs comes before it
        parts = [job.settings, *(stores[path] for path in (*job.data, *job.exclude))]
        parts += [found[need] for need in job.needs]
        found[job.id] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return found


def _known(out: Path, planned: Plan) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Outcomes, and who does what, of a folder that may not be there."""
    if not (out / RECIPE_FILE).is_file():
        return {}, {}
    outcomes = Outcomes(out / "outcomes")
    found = {job.id: outcomes.read(job.id) for job in planned.jobs}
    known = {job: outcome for job, outcome in found.items() if outcome is not None}
    return known, Claims(out / "claims").held()


def _outcome(told: Mapping[str, object], before: Outcome | None, settings: str) -> Outcome:
    """What became of a job, with what was spent on it before."""
    values = dict(told)
    for name in ("seconds", "cpu_seconds"):
        spent = 0.0 if before is None else getattr(before, name)
        values[name] = spent + float(str(values.get(name, 0.0)))
    attempts = 1 if before is None else before.attempts + (before.status == "failed")
    return Outcome.model_validate({**values, "settings": settings, "attempts": attempts})


def _row(place: Place) -> str:
    return " on ".join([place.method, place.backbone])
