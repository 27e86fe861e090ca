"""Runs under torchrun: the same trainings as one process of twice the batch does.

``torchrun --nproc_per_node=2 distributed.py STORE FOLDER``
"""

import sys
from pathlib import Path

import torch
from pretraining import recipe
from torch import nn

from voco.data.selection import split_cases
from voco.data.store import Store
from voco.data.windows import Share, Windows, WindowsConfig, window_batches
from voco.engine.launch import launch
from voco.engine.optimizer import build_optimizer
from voco.engine.run import open_run
from voco.engine.session import train
from voco.engine.settings import TrainingConfig
from voco.task import Outcome, Step, Task
from voco.workflows.pretrain import pretrain


class Brightness(Task[torch.Tensor]):
    """Predicts the mean of a volume to which noise was added; volumes do not see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GELU(), nn.Conv3d(4, 1, 3))

    def forward(self, batch: torch.Tensor, step: Step) -> Outcome:
        target = batch.mean(dim=(1, 2, 3, 4))
        noisy = batch + step.draws.normal(len(batch), *batch.shape[1:])
        error = self.network(noisy).mean(dim=(1, 2, 3, 4)) - target
        return Outcome({"square": (error**2).mean(), "size": error.abs().mean()}, {})


def train_brightness(store: Path, out: Path, batch_size: int, accumulate: int = 1) -> None:
    config = TrainingConfig.model_validate(
        {
            "steps": 5,
            "batch_size": batch_size,
            "log_every": 1,
            "optimizer": {"lr": 0.01, "accumulate": accumulate},
        }
    )
    fabric = launch()
    stores = [Store(store)]
    share = Share(batch_size, accumulate, fabric.global_rank, fabric.world_size)
    entries = split_cases(stores, 0.0, seed=0).train
    windows = Windows(stores, entries, WindowsConfig(), (8, 8, 8), config.intensity, 0, share)
    run = open_run(fabric, out, config, {})
    torch.manual_seed(0)
    task = Brightness()
    train(
        fabric,
        run,
        task,
        build_optimizer(config.optimizer, task),
        lambda done: window_batches(
            windows, fabric.device, 0, start=done * accumulate, stop=config.steps * accumulate
        ),
        config,
    )


def train_voco(store: Path, out: Path, batch_size: int, variant: str) -> None:
    method = {**recipe().method.model_dump(), "variant": variant}
    asked = {"window": [16, 16, 16], "voxels": 8, "validation": 2}
    config = recipe(
        method=method, batch_size=batch_size, log_every=1, holdout=0.25, probe=asked, probe_every=3
    )
    pretrain(config, [store], out, probe_data=[store])


def train_batch_norm(store: Path, out: Path, batch_size: int) -> None:
    """A network that normalises over the batch, encoder and decoder."""
    config = recipe(
        method={"name": "modelsgenesis", "crop": [16, 16, 16], "shuffle_blocks": 10},
        backbone={"name": "genesis_unet", "features": [4, 4, 6, 8]},
        batch_size=batch_size,
        log_every=1,
        holdout=0.25,
    )
    pretrain(config, [store], out)


if __name__ == "__main__":
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    train_brightness(store, folder / "brightness", batch_size=1)
    train_brightness(store, folder / "accumulated", batch_size=2, accumulate=2)
    for name in ("v1", "v2"):
        train_voco(store, folder / name, batch_size=1, variant=name)
    train_batch_norm(store, folder / "batch norm", batch_size=1)
