"""Whole training steps, the plain path's against ours, in turns and each in a process of its own.

Allocator and peak memory belong to a process, so each path gets a fresh one for every repeat; the
two alternate, and every ratio is that of neighbours in time.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from voco.bench.limits import Rates, need, rates
from voco.bench.plain_step import PlainSegmentation
from voco.bench.profiled import KINDS
from voco.bench.step_case import SMALL, StepCase
from voco.bench.step_path import (
    in_float64,
    load_ours,
    load_plain,
    our_task,
    plain_module,
    prepare,
)
from voco.engine.allocator import environment
from voco.errors import VocoError
from voco.tasks.segmentation import Segmentation

PARTS = ("forward", "backward", "step")
"""What ratios are given of; the step is all three parts."""

LEAST_PAIRS = 2
"""Pairs that are taken, if as many are asked for, however long they take: one has no spread."""

_LONGEST_S = 3600.0
"""Seconds after which a process is taken to hang; the longest step of the table takes minutes."""

_TYPES = {"float32": torch.float32, "bf16-mixed": torch.bfloat16}

LOSS_TOLERANCE = 1e-5
"""Largest difference of the two losses, relative to the loss, in float32."""

EXACT_TOLERANCE = 1e-6
"""Largest difference of losses and of gradients (length of the difference, relative to the
gradient) in float64. In float32 gradients are not held to a bound, since where float64 fits the
machine, either path's is further from its own in float64 than what is left between the two there:
see ``docs/performance.md``."""


class PathsDifferError(VocoError):
    """The plain path and ours do not compute the same."""


class PathFailedError(VocoError):
    """The process of a path died or hung."""


def measured(cases: Sequence[StepCase], repeats: int) -> dict[str, Any]:
    """What came out: how far the paths are apart in float64, and one row per case.

    A case one of whose paths dies is listed with the reason under ``failed``; the others go on.
    """
    rows, failed = [], {}
    for case in cases:
        try:
            rows.append(measure_case(case, repeats))
        except PathFailedError as error:
            failed[case.name] = str(error)
    return {
        "exact": {case.name: exactness(case) for case in SMALL},
        "rows": rows,
        "failed": failed,
    }


def measure_case(case: StepCase, repeats: int) -> dict[str, Any]:
    """Both paths in turns, as often as asked for, or until the case's time is over.

    What the machine does at that moment is measured beside them, since it changes within a run.

    Raises:
        PathsDifferError: If the losses differ by more than rounding does.
        PathFailedError: If a path's process dies or hangs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(case, folder)
        began, pairs = time.perf_counter(), []
        while another(len(pairs), repeats, time.perf_counter() - began, case.seconds):
            pairs.append((_process(folder, "plain"), _process(folder, "ours")))
        machine = rates(case.device, _TYPES[case.precision])
        plain, ours = pairs[0]
        differences = _differences(folder, plain, ours, case.precision)
        profile = (
            _process(folder, "profiled") if case.device == "cpu" and not case.compiled else None
        )
    return {
        **_row(case, pairs),
        **differences,
        "machine": asdict(machine),
        "needs": needs(case),
        "profile": profile,
    }


def another(taken: int, repeats: int, spent_s: float, limit_s: float) -> bool:
    """Whether one more pair is taken: the least number in any case, then while time is left."""
    if taken < min(repeats, LEAST_PAIRS):
        return True
    return taken < repeats and spent_s * (1 + 1 / taken) <= limit_s


def exactness(case: StepCase) -> dict[str, float]:
    """How far both paths are apart in float64, on the CPU.

    Args:
        case: Of a small network.

    Raises:
        PathsDifferError: If losses or gradients differ by more than the last digits.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(case, folder, double=True)
        plain, ours = in_float64(load_plain(case, folder)), in_float64(load_ours(case))
    return compared(plain, ours, (EXACT_TOLERANCE, EXACT_TOLERANCE))


def _process(folder: Path, which: str) -> dict[str, Any]:
    """One path in a process of its own."""
    command = [sys.executable, "-m", "voco.bench.step_path", str(folder), which, "1"]
    variables = environment(thread_cache=which == "plain")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=variables, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired as error:
        raise PathFailedError(f"the {which} path took more than {_LONGEST_S:.0f} s.") from error
    if done.returncode:
        raise PathFailedError(f"the {which} path failed ({done.returncode}): {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(case: StepCase, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": case.name,
        "what": case.what,
        "backbone": case.backbone,
        "device": case.device,
        "precision": case.precision,
        "compiled": case.compiled,
        "trained_parameters": pairs[0][1]["trained"],
        "large_pages": pairs[0][1]["large_pages"],
        "repeats": len(pairs),
    }
    for part in (*PARTS, "processor"):
        row[part] = ratios([(_seconds(plain, part), _seconds(ours, part)) for plain, ours in pairs])
    row["peak_bytes"] = ratios([(float(a["peak_bytes"]), float(b["peak_bytes"])) for a, b in pairs])
    return row


def _seconds(result: dict[str, Any], part: str) -> float:
    if part == "step":
        return sum(statistics.median(result[each]) for each in ("forward", "backward", "update"))
    return statistics.median(result[part])


def ratios(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of both sides, and the median, least and largest of the ratios of the pairs."""
    every = [plain / ours for plain, ours in pairs]
    return {
        "plain": statistics.median(plain for plain, _ in pairs),
        "ours": statistics.median(ours for _, ours in pairs),
        "ratio": statistics.median(every),
        "low": min(every),
        "high": max(every),
    }


def _differences(
    folder: Path, plain: dict[str, Any], ours: dict[str, Any], precision: str
) -> dict[str, float]:
    return compared(
        (plain["loss"], load_file(folder / "plain.safetensors")),
        (ours["loss"], load_file(folder / "ours.safetensors")),
        (LOSS_TOLERANCE if precision == "float32" else math.inf, math.inf),
    )


Gradients = dict[str, torch.Tensor]


def compared(
    plain: tuple[float, Gradients], ours: tuple[float, Gradients], limits: tuple[float, float]
) -> dict[str, float]:
    """How far losses and gradients are apart.

    Args:
        plain: Loss and gradients by name.
        ours: The same.
        limits: The most that both may be.

    Returns:
        ``loss_difference``, relative to the loss, and ``gradient_difference``, the length of the
        difference relative to that of the gradient.

    Raises:
        PathsDifferError: If they train other parameters, or differ by more.
    """
    (one, theirs), (other, own) = plain, ours
    if set(theirs) != set(own):
        raise PathsDifferError(f"trained by one path alone: {sorted(set(theirs) ^ set(own))}.")
    apart = sum(float((theirs[name] - own[name]).double().square().sum()) for name in own)
    length = sum(float(tensor.double().square().sum()) for tensor in theirs.values())
    found = {
        "loss_difference": abs(one - other) / abs(one),
        "gradient_difference": (apart / length) ** 0.5,
    }
    if any(value > most for value, most in zip(found.values(), limits, strict=True)):
        raise PathsDifferError(f"the two paths do not give the same: {found}, allowed {limits}.")
    return found


def needs(case: StepCase) -> dict[str, dict[str, int]]:
    """Arithmetic and traffic of the networks' passes on both paths, on tensors without storage.

    Forward and backward, and the teacher's forward pass; not the loss and the optimizer, which
    need next to no arithmetic.
    """
    count = case.volumes
    if case.classes is None:
        count *= case.queries + math.prod(case.grid)
    crops = torch.empty(count, 1, *(case.side,) * 3, device="meta")
    sides = {"plain": plain_module(case).to("meta"), "ours": our_task(case).to("meta")}
    return {
        name: asdict(need(lambda m=module: _passes(m, crops))) for name, module in sides.items()
    }


def _passes(module: Any, crops: torch.Tensor) -> None:  # noqa: ANN401 (either path's module)
    if isinstance(module, PlainSegmentation | Segmentation):
        network = module.network if isinstance(module, PlainSegmentation) else module.backbone
        network(crops).sum().backward()
        return
    with torch.no_grad():
        module.teacher.pool(crops)
    module.student.pool(crops).sum().backward()


def page(results: dict[str, Any]) -> list[str]:
    """Tables of what :func:`measured` gave."""
    lines = [
        "| step | forward | backward | whole step | pairs | plain, s | voco, s | peak memory, GB "
        "| loss, gradient apart |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_ratio_line, results["rows"]),
        "",
        *(
            f"Not measured, `{name}`: {' '.join(why.split())}\n"
            for name, why in results["failed"].items()
        ),
        "In float64, small networks: losses and gradients apart "
        + ", ".join(
            f"{each['loss_difference']:.0e} and {each['gradient_difference']:.0e} (`{name}`)"
            for name, each in results["exact"].items()
        )
        + ".",
        "",
        "Rates are the machine's, measured right after the steps they stand beside. Arithmetic is "
        "counted as convolutions are defined; on a processor ours takes half of the products of "
        "fine ones, so it can be above the machine's rate.",
        "",
        "| step | path | TFLOP | GB touched | operators | a convolution's GFLOP/s | at that, s | "
        "a copy's GB/s | at that, s | took, s | of the arithmetic limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_need_line(row, side) for row in results["rows"] for side in ("plain", "ours")]
    if watched := [row for row in results["rows"] if row["profile"]]:
        lines += [
            "",
            "Our step once more, with a look at the clock around every operator: seconds, share, "
            "and the rate in GFLOP/s.",
            "",
            f"| step | all, s | {' | '.join(KINDS)} |",
            "|---" * (len(KINDS) + 2) + "|",
            *map(_profile_line, watched),
        ]
    return lines


def _profile_line(row: dict[str, Any]) -> str:
    seconds, flops = row["profile"], row["needs"]["ours"]["flops_of"]
    total = sum(seconds.values())
    cells = [
        f"{seconds[kind]:.2f} ({seconds[kind] / total:.0%})"
        + (
            f", {flops[kind] / seconds[kind] / 1e9:.0f}"
            if flops.get(kind) and seconds[kind]
            else ""
        )
        for kind in KINDS
    ]
    return f"| `{row['name']}` | {total:.2f} | {' | '.join(cells)} |"


def _ratio_line(row: dict[str, Any]) -> str:
    shares = " | ".join(
        f"{row[part]['ratio']:.2f} ({row[part]['low']:.2f} to {row[part]['high']:.2f})"
        for part in PARTS
    )
    memory = row["peak_bytes"]
    return (
        f"| `{row['name']}`: {row['what']} | {shares} | {row['repeats']} "
        f"| {row['step']['plain']:.2f} | {row['step']['ours']:.2f} "
        f"| {memory['plain'] / 1e9:.1f} → {memory['ours'] / 1e9:.1f} "
        f"({1 / memory['ratio']:.2f}) | {row['loss_difference']:.0e}, "
        f"{row['gradient_difference']:.0e} |"
    )


def _need_line(row: dict[str, Any], side: str) -> str:
    needs, took, machine = row["needs"][side], row["step"][side], Rates(**row["machine"])
    least, moving = needs["flops"] / machine.convolution, needs["touched"] / machine.copy
    return (
        f"| `{row['name']}` | {side} | {needs['flops'] / 1e12:.2f} | {needs['touched'] / 1e9:.0f} "
        f"| {needs['operators']} | {machine.convolution / 1e9:.0f} | {least:.2f} "
        f"| {machine.copy / 1e9:.1f} | {moving:.2f} | {took:.2f} | {least / took:.0%} |"
    )
