"""What a self-supervised pre-training method declares."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voco.backbone import Backbone, Part
from voco.config import Config
from voco.shapes import Boxes, Shape3, Volumes
from voco.task import Step, Task


class Panel(NamedTuple):
    """One small picture of what a method does, drawn by the report.

    Attributes:
        title: What is seen.
        image: A slice, from 0 (black) to 1 (white), first axis to the right, second upwards.
        rectangles: ``(x, y, width, height, text)`` in voxels of the image.
        bars: Names and one or two series of numbers, drawn beside each other instead of an image.
    """

    title: str
    image: Float[np.ndarray, "_ _"] | None = None
    rectangles: tuple[tuple[float, float, float, float, str], ...] = ()
    bars: dict[str, tuple[float, ...]] | None = None


class MethodConfig(Config, ABC):
    """Settings of a method. A subclass adds ``name: Literal[...]``, which selects it."""

    @abstractmethod
    def build(self, backbone: Backbone) -> "Method":
        """The method around a backbone.

        Raises:
            ConfigError: If the backbone does not fit the method; names those that do.
        """


class Method(Task[Volumes], ABC):
    """A pre-training task on unlabelled volumes.

    Attributes:
        window: Voxels of the volumes that the loader must deliver.
        trains_decoder: Whether the decoder is trained; its weights are then handed over too, unless
            :meth:`trained_parts` says otherwise.
    """

    window: Shape3
    trains_decoder: ClassVar[bool] = False

    @abstractmethod
    def views(self, volumes: Volumes, step: Step) -> tuple[Any, ...]:
        """What the networks see of the volumes: a named tuple, made where the volumes are.

        A function of the volumes and ``step.draws`` alone: same step, same views.
        """

    @abstractmethod
    def handover(self) -> Backbone:
        """The backbone whose weights go on."""

    def trained_parts(self) -> tuple[Part, ...]:
        """The parts of the backbone whose weights go on."""
        return ("encoder", "decoder") if self.trains_decoder else ("encoder",)

    def show(self, volumes: Volumes, step: Step) -> list[Panel]:
        """Pictures of the first views; by default the middle slice of everything image-like."""
        with torch.no_grad():
            views = self.views(volumes, step)
        names = getattr(views, "_fields", [str(i) for i in range(len(views))])
        return [
            Panel(f"{name} {index}" if len(slices) > 1 else name, image)
            for name, view in zip(names, views, strict=True)
            if isinstance(view, Tensor) and view.is_floating_point() and view.ndim >= 5
            for slices in [middle_slices(view)]
            for index, image in enumerate(slices)
        ]


def middle_slices(view: Tensor, most: int = 16) -> list[Float[np.ndarray, "_ _"]]:
    """The middle axial slice of the first channel of up to ``most`` volumes or crops."""
    flat = view.detach().float().cpu().reshape(-1, *view.shape[-4:])[:most]
    return [volume[0, :, :, volume.shape[-1] // 2].numpy() for volume in flat]


def boxes_panel(
    title: str,
    volume: Float[Tensor, "c x y z"],
    boxes: Boxes,
    names: Sequence[str],
    level: int,
) -> Panel:
    """An axial slice of a volume's first channel with the boxes that it meets.

    Args:
        title: What is seen.
        volume: The volume.
        boxes: Boxes in it.
        names: One for each box.
        level: Which slice: its z.
    """
    marks = [
        (float(x), float(y), float(x_stop - x), float(y_stop - y), name)
        for name, ((x, y, z), (x_stop, y_stop, z_stop)) in zip(names, boxes.tolist(), strict=True)
        if z <= level < z_stop
    ]
    return Panel(title, grey(volume[0, :, :, level].detach().float().cpu().numpy()), tuple(marks))


def pair_panels(
    volume: Float[Tensor, "c x y z"], boxes: Boxes, crops: Float[Tensor, "n c _ _ _"]
) -> list[Panel]:
    """A window with the boxes of its pairs of crops, and the crops as the network sees them.

    Args:
        volume: The window.
        boxes: Of the first crops of all pairs, then of the second ones.
        crops: The crops, in the same order.
    """
    pairs = len(boxes) // 2
    names = [f"pair {at % pairs}, {'first' if at < pairs else 'second'}" for at in range(2 * pairs)]
    level = int(boxes[0, :, 2].sum()) // 2
    title = "window with pairs of crops"
    return [
        boxes_panel(title, volume, boxes, names, level),
        *(
            Panel(name, grey(image))
            for name, image in zip(names, middle_slices(crops), strict=False)
        ),
    ]


def grey(image: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "_ _"]:
    """An image stretched to all from 0 (its least) to 1 (its greatest)."""
    low, high = image.min(), image.max()
    return (image - low) / max(high - low, 1e-8)
