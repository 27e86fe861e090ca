"""One way through a training step, in a process of its own: allocator and peak memory are those.

``python -m voco.bench.step_path FOLDER plain|ours REPEATS`` reads ``case.json``, warms up with
steps that change nothing, then takes ``REPEATS`` steps, and prints one line of JSON. The gradients
of the first go to ``plain.safetensors`` or ``ours.safetensors``. ``FOLDER profiled 1`` watches one
step of ours instead, and prints the seconds of every kind of operator.
"""

import json
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voco.bench.plain_step import (
    PlainEmbedder,
    PlainSegmentation,
    PlainViews,
    PlainVoCo,
    plain_optimizer,
)
from voco.bench.profiled import profiled
from voco.bench.step_case import StepCase
from voco.data.patches import Patches
from voco.draws import Draws
from voco.engine.allocator import use_large_pages
from voco.engine.compiling import compiled
from voco.engine.optimizer import OptimizerConfig, build_optimizer
from voco.methods.voco import VoCo
from voco.task import Step, Task
from voco.tasks.segmentation import Segmentation, SegmentationConfig

_LR = 1e-4


class Way(ABC):
    """A step in three parts that are timed each."""

    module: nn.Module
    optimizer: torch.optim.AdamW
    batch: Any

    @abstractmethod
    def forward(self) -> Tensor:
        """The loss."""

    @abstractmethod
    def update(self) -> None:
        """All that follows the gradients."""

    @abstractmethod
    def warm(self) -> None:
        """Do once what a first step does more of than those that follow."""


class Ours(Way):
    """What ``voco pretrain`` and ``voco finetune`` do."""

    def __init__(self, task: Task[Any], batch: Any, case: StepCase) -> None:  # noqa: ANN401
        self.module = self._task = task.to(case.device)
        self.batch = batch
        self.optimizer = build_optimizer(OptimizerConfig(lr=_LR), task)
        self._step = Step(0, 1, Draws(0, 0))
        if case.compiled:
            self._passes = ExitStack()  # for as long as there are steps to take
            self._passes.enter_context(compiled(task))

    def forward(self) -> Tensor:
        """The sum of the losses."""
        return torch.stack(list(self.module(self.batch, self._step).losses.values())).sum()

    def update(self) -> None:
        """Clip, optimizer, teacher."""
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._task.before_step(self._step)

    def warm(self) -> None:
        """Two whole steps: memory is taken in the first, and a little more in the second."""
        for _ in range(2):
            self.forward().backward()
            self.update()


class Plain(Way):
    """What a user without this project would do."""

    def __init__(self, module: nn.Module, batch: tuple[Any, ...], case: StepCase) -> None:
        self.module, self.batch = module.to(case.device), batch
        trained = [tensor for tensor in module.parameters() if tensor.requires_grad]
        self.optimizer = plain_optimizer(trained, _LR)

    def forward(self) -> Tensor:
        """The loss."""
        return self.module(*self.batch)

    def update(self) -> None:
        """Clip, optimizer, teacher."""
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.module, PlainVoCo):
            self.module.follow()

    def warm(self) -> None:
        """Forward and backward on few crops: all memory is given back after each step anyway."""
        if isinstance(self.module, PlainVoCo):
            self.module.student(self.batch[0].bases[0, :2]).sum().backward()
        else:
            self.forward().backward()
        self.update()


def our_task(case: StepCase) -> Task[Any]:
    """The task of a case, with weights from a seed."""
    torch.manual_seed(0)
    backbone = case.backbone_config().build(case.classes or 1)
    if case.classes is None:
        return case.method_config().build(backbone)
    config = SegmentationConfig(
        roi=(case.side, case.side, case.side),
        flip_probability=0,
        scale_probability=0,
        shift_probability=0,
    )
    return Segmentation(config, backbone)


def our_batch(case: StepCase, task: Task[Any]) -> Any:  # noqa: ANN401 (what the task takes)
    """Random voxels, and random labels in blocks."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(task, VoCo):
        # Blurred, since crops of even noise look alike, and what tells them apart is then rounding.
        coarse = torch.rand(case.volumes, 1, 12, 12, 6, generator=generator)
        volumes = nn.functional.interpolate(coarse, task.window, mode="trilinear")
        return volumes.to(case.device)
    crops = torch.rand(case.volumes, 1, 1, *(case.side,) * 3, generator=generator)
    coarse = torch.randint(0, case.classes or 1, (case.volumes, 1, 8, 8, 8), generator=generator)
    labels = nn.functional.interpolate(coarse.float(), (case.side,) * 3).long()
    return Patches(crops.to(case.device), labels.to(case.device))


def plain_module(case: StepCase) -> nn.Module:
    """The plain path's module, with weights that :func:`plain_weights` replaces."""
    if case.classes is not None:
        return PlainSegmentation(case.backbone_config().build(case.classes))
    config = case.method_config()
    chosen = config.choices()

    def embedder() -> PlainEmbedder:
        return PlainEmbedder(case.backbone_config().build(), chosen.hidden, chosen.width)

    return PlainVoCo(embedder, config.momentum)


def plain_batch(batch: Any, task: Task[Any]) -> tuple[Any, ...]:  # noqa: ANN401
    """The same crops, ready-made: the plain path is spared the making of views."""
    if isinstance(task, VoCo):
        return (PlainViews(*task.views(batch, Step(0, 1, Draws(0, 0)))),)
    return batch.crops.flatten(0, 1), batch.labels.flatten(0, 1)


def plain_name(name: str) -> str:
    """The plain path's name of one of our parameters."""
    return name.replace("backbone.network.", "network.")


def prepare(case: StepCase, folder: Path, *, double: bool = False) -> None:
    """Write what both paths read: the case, and what the plain one starts from.

    Args:
        case: The case.
        folder: Where to.
        double: Whether the crops are made in float64.
    """
    folder.joinpath("case.json").write_text(json.dumps(vars(case)))
    task = our_task(case).to(case.device)
    weights = {plain_name(name): tensor for name, tensor in task.named_parameters()}
    save_file({name: tensor.cpu() for name, tensor in weights.items()}, folder / "weights")
    batch = our_batch(case, task)
    tensors = _flat(plain_batch(_doubled(batch) if double else batch, task))
    save_file({str(n): t.cpu().contiguous() for n, t in enumerate(tensors)}, folder / "batch")


def _flat(batch: Iterable[Any]) -> list[Tensor]:
    return [t for part in batch for t in (part if isinstance(part, tuple) else (part,))]


def load_plain(case: StepCase, folder: Path) -> Plain:
    """The plain path, with the weights and crops of ours."""
    module = plain_module(case)
    weights = load_file(folder / "weights")
    for name, tensor in module.named_parameters():
        tensor.data.copy_(weights[name])
    read = load_file(folder / "batch")
    tensors = [read[str(number)].to(case.device) for number in range(len(read))]
    batch = (PlainViews(*tensors),) if case.classes is None else tuple(tensors)
    return Plain(module, batch, case)


def load_ours(case: StepCase) -> Ours:
    """Our path."""
    task = our_task(case)
    task.to(case.device)
    return Ours(task, our_batch(case, task), case)


def in_float64(path: Way) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients in float64, where nothing but rounding of the last digits may differ."""
    path.module.double()
    path.batch = _doubled(path.batch)
    loss = path.forward()
    loss.backward()
    return float(loss.detach()), _gradients(path.module)


def _doubled(batch: Any) -> Any:  # noqa: ANN401 (any nest of tensors)
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    parts = [_doubled(part) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def run(path: Way, case: StepCase, repeats: int, gradients: Path | None) -> dict[str, Any]:
    """Seconds of every part of every step, the first loss, and the largest memory."""
    _still(path)
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "update": [], "processor": []}
    losses = []
    for number in range(repeats):
        cpu = time.process_time()
        with _precision(case):
            loss, seconds = _timed(path.forward, case)
        parts["forward"].append(seconds)
        parts["backward"].append(_timed(loss.backward, case)[1])
        cpu = time.process_time() - cpu
        losses.append(float(loss.detach()))
        if number == 0 and gradients is not None:
            save_file(_gradients(path.module), gradients)
        more = time.process_time()
        parts["update"].append(_timed(path.update, case)[1])
        parts["processor"].append(cpu + time.process_time() - more)
    trained = sum(t.numel() for t in path.module.parameters() if t.requires_grad)
    return {**parts, "loss": losses[0], "peak_bytes": peak_bytes(case), "trained": trained}


def watched(path: Way, case: StepCase) -> dict[str, float]:
    """Seconds of every kind of operator in one step."""
    _still(path)

    def step() -> None:
        with _precision(case):
            loss = path.forward()
        loss.backward()
        path.update()

    return profiled(step)


def _still(path: Way) -> None:
    """A step at learning rate 0."""
    groups = path.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    path.warm()
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def _timed(work: Any, case: StepCase) -> tuple[Any, float]:  # noqa: ANN401
    if case.device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    out = work()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return out, time.perf_counter() - began


def _precision(case: StepCase) -> Any:  # noqa: ANN401 (a context)
    mixed = case.precision == "bf16-mixed"
    return torch.autocast(case.device, torch.bfloat16) if mixed else nullcontext()


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        plain_name(name): tensor.grad.cpu().contiguous()
        for name, tensor in module.named_parameters()
        if tensor.grad is not None
    }


def peak_bytes(case: StepCase) -> int:
    """The most memory this process held: on the GPU, or in all."""
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's number may be that of the process that started this one
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, which: str, repeats: int) -> None:
    """Run one path and print what it took."""
    values = json.loads(folder.joinpath("case.json").read_text())
    case = StepCase(**{**values, "grid": tuple(values["grid"])})
    large = which != "plain" and case.device == "cpu" and use_large_pages()
    path = load_plain(case, folder) if which == "plain" else load_ours(case)
    if which == "profiled":
        print(json.dumps(watched(path, case)))  # noqa: T201 (its output)
        return
    gradients = folder / f"{which}.safetensors"
    result = run(path, case, repeats, None if gradients.exists() else gradients)
    print(json.dumps({**result, "large_pages": large}))  # noqa: T201 (its output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
