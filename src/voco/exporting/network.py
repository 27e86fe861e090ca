"""What is exported: a network with its weights, and what it gives for a volume."""

from pathlib import Path

import torch
from torch import Tensor, nn

from voco.embedding import deepest
from voco.errors import UsageError
from voco.shapes import Shape3, Volumes
from voco.tasks.classification import Classification
from voco.tasks.segmentation import Segmentation
from voco.weights import Handover, build_backbone, read_handover, read_tensors, untrained
from voco.weights.trained import build_task, fill

_SIZE: Shape3 = (96, 96, 96)
"""Voxels of a volume where neither the network nor a task says how many."""


class HandedOn(nn.Module):
    """A network as a run hands it on: prepared volumes in, what it was trained for out.

    Args:
        handover: What the network is.
        source: Where that is from; named in errors.

    Attributes:
        handover: What the network is.
        backbone: The network, with random weights until :meth:`fill`.
        task: What it was fine-tuned for, around the backbone; ``None`` if it was not.
    """

    def __init__(self, handover: Handover, source: Path) -> None:
        super().__init__()
        self.handover = handover
        self.backbone = build_backbone(handover)
        self.task: Segmentation | Classification | None = None
        if handover.kind != "pretraining":
            with torch.enable_grad():  # a task follows gradients to see what it reaches
                self.task = build_task(handover, self.backbone, source)

    def fill(self, tensors: dict[str, Tensor], source: Path) -> "HandedOn":
        """Copy the run's tensors in, every one accounted for; gives itself, ready to use.

        Raises:
            WeightsError: If a tensor is missing, unknown, or does not fit.
        """
        fill(self.handover, self.backbone, self.task, tensors, source)
        return self.eval()

    def forward(self, volumes: Volumes) -> Tensor | list[Tensor]:
        """Logits of a segmentation, scores of a classification, or levels of features.

        A network that was only pre-trained gives what was trained of it: the levels of its
        encoder, finest first; or, where the transformer alone was trained, its last map.
        """
        if isinstance(self.task, Classification):
            return self.task.scores(volumes)
        if self.task is not None:
            return self.backbone(volumes)
        if "encoder" in self.handover.trained:
            return self.backbone.encode(volumes)
        return [deepest(self.backbone, volumes)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is given, in order."""
        if isinstance(self.task, Classification):
            return ("scores",)
        if self.task is not None:
            return ("logits",)
        strides = self.backbone.strides
        if "encoder" in self.handover.trained:
            return tuple(f"level{n}_stride{stride}" for n, stride in enumerate(strides))
        return (f"tokens_stride{strides[-1]}",)

    @property
    def untrained(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that no training has changed."""
        return untrained(self.backbone, self.handover.trained)

    def size(self, wanted: Shape3 | None = None) -> Shape3:
        """Voxels of a volume that the network takes, along x, y and z.

        Args:
            wanted: What was asked for. Else it is the only size that the network takes, or that of
                the task, or 96 x 96 x 96.

        Raises:
            UsageError: If the task is about volumes of another size.
            ConfigError: If the network cannot take it.
        """
        task = self.task
        if isinstance(task, Classification):
            if wanted not in (None, task.config.size):
                raise UsageError(
                    f"--size {wanted}: this network classifies volumes of {task.config.size} "
                    "voxels and no others. Leave --size out."
                )
            return task.config.size
        own = task.config.roi if task is not None else (self.backbone.fixed_size or _SIZE)
        size = wanted or own
        self.backbone.check_size(size)
        return size


def read_network(path: Path) -> HandedOn:
    """The network of a run folder or a weight file with its ``handover.json``, filled.

    Raises:
        WeightsError: If a file is missing, damaged, or does not fit the other.
    """
    return HandedOn(read_handover(path), path).fill(read_tensors(path), path)
