"""Where training runs: the CPU, one GPU, or all that ``torchrun`` started."""

import atexit
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from voco.engine.allocator import use_large_pages
from voco.engine.settings import Precision as PrecisionName


class Mixed(MixedPrecision):
    """Autocast that leaves the batch alone: augmentations and targets see float32 voxels."""

    def convert_input(self, data: Any) -> Any:  # noqa: ANN401 (a batch is anything)
        """The data as they are; autocast itself casts at each operator."""
        return data


def launch(precision: PrecisionName = "float32") -> Fabric:
    """A launched Fabric: several processes where ``torchrun`` started some, else one.

    Uses the GPU if there is one. ``torchrun`` is recognised by its environment; nothing in the
    environment is changed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu":
        use_large_pages()
    several = TorchElasticEnvironment.detect() and world > 1
    fabric = Fabric(
        accelerator=device,
        devices=here if several else 1,
        num_nodes=world // here if several else 1,
        strategy="ddp" if several else "auto",
        # Named, because a Slurm allocation would otherwise be taken for a launcher.
        plugins=[
            _precision(precision, device),
            TorchElasticEnvironment() if several else LightningEnvironment(),
        ],
    )
    fabric.launch()
    if several:
        # Fabric sees to this for NCCL alone; threads of gloo must not outlive the program either.
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Part from the other processes; nothing, if that was done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _precision(name: PrecisionName, device: str) -> Precision:
    if name == "float32":
        return Precision()
    return Mixed("bf16-mixed" if name == "bf16-mixed" else "16-mixed", device)
