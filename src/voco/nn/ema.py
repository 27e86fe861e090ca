"""Teachers: copies of a network that follow it as an exponential moving average."""

import copy
import math
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def teacher_of(student: ModuleT, *, copied: bool = True) -> ModuleT:
    """A frozen network of the student's form.

    Args:
        student: The network to follow.
        copied: Whether the teacher starts as the student. If not, it starts elsewhere: the
            student's numbers in a random order within each tensor (torch's current seed), which
            for numbers drawn alike and independently is another draw of the same start.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)  # noqa: FBT003 (torch's signature)
    if not copied:
        for tensor in teacher.parameters():
            order = torch.randperm(tensor.numel()).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``, for all that is trained.

    Buffers stay the teacher's own.
    """
    ours, theirs = _pairs(teacher, student)
    # A third of the time of a loop over tensors.
    torch._foreach_lerp_(ours, theirs, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


def rising(momentum: float, progress: float) -> float:
    """How much of a teacher stays where that rises to 1 along half a cosine over the run.

    Args:
        momentum: What stays in the first step.
        progress: How much of the run is done, from 0 to 1.
    """
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def distance(teacher: nn.Module, student: nn.Module) -> Float[Tensor, ""]:
    """Length of the difference of the two sets of weights, relative to the student's length."""
    ours, theirs = _pairs(teacher, student)
    apart = [(own - other).norm() for own, other in zip(ours, theirs, strict=True)]
    length = torch.stack([other.norm() for other in theirs]).norm()
    return torch.stack(apart).norm() / length.clamp(min=1e-12)


def _pairs(teacher: nn.Module, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        (own.detach(), other.detach())
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True)
        if other.requires_grad
    ]
    return [own for own, _ in pairs], [other for _, other in pairs]
