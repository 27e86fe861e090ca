"""Passes through networks by ``torch.compile``, while they are trained."""

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from voco.backbone import Backbone
from voco.errors import UsageError

_PASSES = ("encode", "encode_masked", "tokens", "decode", "decode_stages")
"""Of a backbone, as far as it has them."""


@contextmanager
def compiled(task: nn.Module) -> Generator[None]:
    """Let what is trained pass through compiled networks as long as this lasts.

    Parameters and their names stay as they are, and so does what is done in evaluation, whose
    shapes vary. Every shape is compiled for itself, when it first comes.

    Args:
        task: Its backbones are meant, wherever in it they are; losses and heads stay as they are.

    Raises:
        UsageError: If what torch compiles with is not there.
    """
    backbones = [module for module in task.modules() if isinstance(module, Backbone)]
    check_compiler(next(task.parameters()).device)
    ways = [(each, name) for each in backbones for name in _PASSES if hasattr(each, name)]
    for backbone, name in ways:
        vars(backbone)[name] = _in_training(backbone, getattr(backbone, name))
    try:
        yield
    finally:
        for backbone, name in ways:
            del vars(backbone)[name]


def _in_training(backbone: Backbone, way: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(way, dynamic=False)

    def chosen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the way has them)
        return (fast if backbone.training else way)(*args, **kwargs)

    return chosen


def check_compiler(device: torch.device) -> None:
    """Raise a UsageError if there is nothing to compile with for a device.

    What torch itself says of this comes in the middle of a step, below a page of its own.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        raise UsageError(
            "compiled: true needs triton on a GPU, and it is not installed. Run pip install "
            "triton, or leave compiled out of the recipe."
        )
    if device.type == "cpu" and os.name == "posix":
        wanted = os.environ.get("CXX") or ("clang++" if shutil.which("clang++") else "g++")
        if shutil.which(wanted) is None:
            raise UsageError(
                f"compiled: true needs a C++ compiler on a CPU, and there is no {wanted}. Install "
                "one (g++), name it in CXX, or leave compiled out of the recipe: it makes nothing "
                "faster on a CPU."
            )
