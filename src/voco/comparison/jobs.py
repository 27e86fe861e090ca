"""Doing one job, in the process that calls it."""

import itertools
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from voco.comparison.plan import Job
from voco.comparison.settings import ComparisonConfig, UnseenScans
from voco.config import Config
from voco.engine.log import read_log
from voco.errors import DataError
from voco.recipes import FinetuneConfig, PretrainConfig
from voco.workflows.evaluate import evaluate
from voco.workflows.finetune import finetune
from voco.workflows.predict import predict
from voco.workflows.pretrain import pretrain

_WARM_UP, _MEASURED = 3, 10
"""Steps that are run to measure a budget: the first, which are slower, and those that count."""


class Task(Config):
    """A job as it is handed to the process that does it."""

    kind: str
    pretraining: PretrainConfig | None = None
    finetuning: FinetuneConfig | None = None
    data: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    """Stores whose test cases a pre-training must not see."""
    folder: str
    """Where it writes."""
    weights: str | None = None
    """What fine-tuning starts from."""
    test: UnseenScans
    seconds: float | None = None
    """Budget to measure."""
    tolerance_mm: float
    keep: str


def task_of(
    job: Job, config: ComparisonConfig, out: Path, test: UnseenScans, steps: int | None
) -> Task:
    """What a process must know to do a job.

    Args:
        job: The job.
        config: The comparison.
        out: Its folder.
        test: What is predicted and measured.
        steps: What its budget allows, where there is one.
    """
    recipe: dict[str, Any] = {}
    if isinstance(job.config, FinetuneConfig):
        recipe["finetuning"] = job.config
        before = [need.removesuffix("--pretraining") for need in job.needs]
        recipe["weights"] = str(out / "pretraining" / before[0]) if before else None
    else:
        changes = {} if steps is None else {"steps": steps}
        recipe["pretraining"] = job.config.model_copy(update=changes)
    return Task(
        kind=job.kind,
        data=job.data,
        exclude=job.exclude,
        folder=str(out / job.folder),
        test=test,
        seconds=job.seconds,
        tolerance_mm=config.tolerance_mm,
        keep=config.keep,
        **recipe,
    )


def do(task: Task) -> dict[str, Any]:
    """Do a job, going on with what was done of it before.

    Returns:
        Fields of its :class:`~voco.comparison.outcomes.Outcome`.

    Raises:
        VocoError: If it cannot be done; says why.
    """
    folder = Path(task.folder)
    if task.kind == "budget":
        return _measure_budget(task, folder)
    if task.kind == "pretraining":
        assert task.pretraining is not None
        pretrain(task.pretraining, task.data, folder, resume=True, exclude=task.exclude)
        facts = _training_facts(folder)
        _tidy(folder, task.keep)
        return facts
    return _finetune(task, folder)


def _finetune(task: Task, folder: Path) -> dict[str, Any]:
    assert task.finetuning is not None
    run = finetune(task.finetuning, task.data, task.weights, folder / "run", resume=True)
    facts = _training_facts(run)
    predictions = predict(
        run, task.test.images, folder / "masks", modality=task.test.modality, overwrite=True
    )
    measured = evaluate(
        predictions.folder,
        task.test.references,
        folder / "evaluation",
        tolerance_mm=task.tolerance_mm,
        overwrite=True,
    )
    problems = [*predictions.failures, *measured.problems]
    if problems:
        # A mean over other cases than those of the other rows would be no comparison.
        raise DataError(
            f"{len(problems)} of the scans were not measured: "
            + "; ".join(f"{case}: {reason}" for case, reason in problems[:3])
        )
    _tidy(run, task.keep)
    if task.keep == "tables":
        shutil.rmtree(predictions.folder)
        (run / "weights.safetensors").unlink(missing_ok=True)
    return facts


def _measure_budget(task: Task, folder: Path) -> dict[str, Any]:
    """How many steps fit in the seconds: a short run with the same settings, then thrown away."""
    assert task.pretraining is not None
    assert task.seconds is not None
    steps = _WARM_UP + _MEASURED
    changes = {"steps": steps, "log_every": 1, "checkpoint_every": steps, "holdout": 0.0}
    short = task.pretraining.model_copy(update=changes)
    pretrain(short, task.data, folder, overwrite=folder.exists())
    seconds = [line["seconds"] for line in read_log(folder / "log.jsonl")]
    each = [after - before for before, after in itertools.pairwise(seconds)]
    fit = int(task.seconds / statistics.fmean(each[_WARM_UP - 1 :]))
    facts = _training_facts(folder)
    shutil.rmtree(folder)
    return {**facts, "steps": max(1, fit)}


def _training_facts(run: Path) -> dict[str, Any]:
    """What a finished run tells of itself."""
    log = read_log(run / "log.jsonl")
    environment = _json(run / "environment.json")
    accounting = _json(run / "weights.json").get("accounting") or {}
    cases = _json(run / "cases.json").get("train")
    data = _json(run / "handover.json").get("data", ())
    loaded, total = accounting.get("parameters", (0, 0))
    return {
        "steps": log[-1]["step"],
        "training_seconds": log[-1]["seconds"],
        "memory_bytes": log[-1]["memory_bytes"],
        "cases": sum(part["cases"] for part in data) if cases is None else len(cases),
        "device": environment.get("device", ""),
        "host": environment.get("host", ""),
        "loaded_share": loaded / total if total else None,
        "loaded_tensors": len(accounting["loaded"]) if accounting else None,
    }


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _tidy(run: Path, keep: str) -> None:
    """Remove the states of training, three times as large as the weights."""
    if keep != "all":
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
