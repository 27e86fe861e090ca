"""Everything that is measured, in one process run, and the tables of it."""

import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from voco.bench import loss, memory, metrics, predicting, preparing, sampling, step, views
from voco.bench.against import against as beside
from voco.bench.against import read_results
from voco.bench.apart import Apart, measure_apart
from voco.bench.data import Scans
from voco.bench.harness import Subject, Timing, measure
from voco.bench.step_case import Device, StepCase, cases
from voco.data.store import write_atomically
from voco.errors import UsageError

SUBJECTS = (
    "store",
    "prepare",
    "sample",
    "memory",
    "loss",
    "views",
    "step",
    "predict",
    "metrics",
)
"""What can be measured."""


def bench(
    names: Sequence[str],
    out: Path,
    *,
    repeats: int = 5,
    against: Path | None = None,
    small: bool = False,
    device: Device = "cpu",
    compiled: bool = False,
) -> str:
    """Measure, write ``performance.json`` and ``performance.md``, and return the latter.

    Args:
        names: Of :data:`SUBJECTS`; all of them if empty.
        out: Folder to write.
        repeats: Alternations of the plain path and ours.
        against: The ``performance.json`` of an earlier run, to set ratios beside its ratios.
        small: Take training steps of small networks, which need seconds.
        device: Where training steps are taken.
        compiled: Whether our training steps go through ``torch.compile``.

    Raises:
        UsageError: If a name is unknown, ``repeats`` is below 1, or ``against`` is no such file.
    """
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        raise UsageError(f"unknown: {', '.join(unknown)}. Allowed are: {', '.join(SUBJECTS)}.")
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}.")
    older = None if against is None else read_results(against)
    chosen = names or SUBJECTS
    steps = cases(small=small, device=device, compiled=compiled) if "step" in chosen else ()
    with tempfile.TemporaryDirectory() as folder:
        results = _measured(chosen, Path(folder), repeats, steps)
    out.mkdir(parents=True, exist_ok=True)
    page = _page(results)
    if older is not None:
        page += "\n" + "\n".join(beside(results, older)) + "\n"
    write_atomically(out / "performance.json", json.dumps(results, indent=2).encode())
    write_atomically(out / "performance.md", page.encode())
    return page


def _measured(
    names: Sequence[str], folder: Path, repeats: int, steps: Sequence[StepCase]
) -> dict[str, Any]:
    subjects: list[Subject] = []
    results: dict[str, Any] = {"machine": _machine()}
    if "store" in names:
        scans = Scans(folder)
        results["store"] = scans.bytes_per_voxel()
        subjects += scans.subjects()
    if "loss" in names:
        subjects += loss.subjects()
    if "metrics" in names:
        subjects += metrics.subjects()
    apart: list[Apart] = []
    if "views" in names:
        apart.append(views.subject(folder / "views"))
    if "sample" in names:
        apart += sampling.subjects(folder / "sample")
    if "prepare" in names:
        apart.append(preparing.subject(folder / "prepare"))
    if "predict" in names:
        apart.append(predicting.subject(folder / "predict"))
    timings = [measure(subject, repeats) for subject in subjects]
    timings += [measure_apart(subject, repeats) for subject in apart]
    results["timings"] = [timing.row() for timing in timings]
    if "sample" in names:
        results["sample"] = sampling.parts_of_all(folder / "sample")
    if "memory" in names:
        results["memory"] = memory.rows(folder / "memory")
    if steps:
        results["step"] = step.measured(steps, repeats)
    return results


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def _page(results: dict[str, Any]) -> str:
    lines = []
    if results["timings"]:
        lines += ["| what | plain, s | voco, s | ratio (range) | equal? |", "|---|---|---|---|---|"]
        timings = [Timing(**row) for row in results["timings"]]
        lines += map(_timing_row, timings)
        if held := [timing for timing in timings if timing.ours_bytes]:
            lines += ["", "| peak memory of a process | plain, GB | voco, GB | ratio |"]
            lines += ["|---|---|---|---|", *map(_bytes_row, held)]
    if "sample" in results:
        lines += ["", *sampling.page(results["sample"])]
    if "memory" in results:
        lines += ["", *memory.page(results["memory"])]
    if "store" in results:
        lines += ["", "| scan at 1.5 mm | voxels | bytes per voxel | float32 / store |"]
        lines += ["|---|---|---|---|", *map(_store_row, results["store"])]
    if "step" in results:
        lines += ["", *step.page(results["step"])]
    return "\n".join(lines).strip() + "\n"


def _timing_row(timing: Timing) -> str:
    spread = f"{timing.ratio_low:.1f} to {timing.ratio_high:.1f}, {timing.repeats} pairs"
    return (
        f"| {timing.what} | {timing.plain_seconds:.3g} | {timing.ours_seconds:.3g} "
        f"| {timing.ratio:.1f} ({spread}) | {timing.equal} |"
    )


def _bytes_row(timing: Timing) -> str:
    plain, ours = timing.plain_bytes / 1e9, timing.ours_bytes / 1e9
    return f"| {timing.name} | {plain:.2f} | {ours:.2f} | {plain / ours:.1f} |"


def _store_row(row: dict[str, Any]) -> str:
    return (
        f"| {row['case']} | {row['voxels']} | {row['bytes_per_voxel']:.2f} "
        f"| {row['float32_over_store']:.1f} |"
    )
