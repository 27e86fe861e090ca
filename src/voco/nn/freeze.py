"""Freezing what a loss does not reach."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze_unreached(module: ModuleT, use: Callable[[ModuleT], Tensor]) -> None:
    """Freeze every parameter on which what is used of a module does not depend.

    Found by a pass through a copy without storage (torch's meta device), so it costs neither
    memory nor time.

    Args:
        module: Whose parameters.
        use: How the module is used; gives a tensor on the meta device.
    """
    probe = copy.deepcopy(module).to("meta").eval()
    output = use(probe)
    trained = {name: tensor for name, tensor in probe.named_parameters() if tensor.requires_grad}
    reached = torch.autograd.grad(output.sum(), list(trained.values()), allow_unused=True)
    for name, gradient in zip(trained, reached, strict=True):
        if gradient is None:
            module.get_parameter(name).requires_grad_(False)  # noqa: FBT003 (torch's signature)
