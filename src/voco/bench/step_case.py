"""What a training step is measured on."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from voco.backbone import BackboneConfig
from voco.backbones import BackboneSettings
from voco.errors import UsageError
from voco.methods.voco import VoCoConfig
from voco.shapes import Shape3

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class StepCase:
    """A step of VoCo v1 on random voxels, or of a segmentation.

    Attributes:
        name: For the table and for comparing with other runs.
        backbone: Settings.
        grid: Base crops along x, y and z.
        queries: Random crops of a volume.
        volumes: Volumes in a batch; crops, of a segmentation.
        side: Voxels along each side of a crop.
        classes: Of a segmentation; ``None`` pre-trains.
        seconds: How long repeating may go on.
        device: Where.
        precision: Of the network, on both paths; losses are float32 always.
        compiled: Whether ours goes through ``torch.compile``.
    """

    name: str
    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "swin_unetr"})
    grid: Shape3 = (2, 2, 1)
    queries: int = 1
    volumes: int = 1
    side: int = 64
    classes: int | None = None
    seconds: float = 50.0
    device: Device = "cpu"
    precision: Literal["float32", "bf16-mixed"] = "float32"
    compiled: bool = False

    @property
    def what(self) -> str:
        """In a phrase."""
        if self.classes is not None:
            return f"segmentation, {self.volumes} crops of {self.side} cubed"
        bases = self.grid[0] * self.grid[1] * self.grid[2]
        each = f"{bases} base and {self.queries} random crops of {self.side} cubed"
        return f"VoCo v1, {each}" + (f", {self.volumes} volumes" if self.volumes > 1 else "")

    def backbone_config(self) -> BackboneConfig:
        """Settings of the backbone."""
        return TypeAdapter(BackboneSettings).validate_python(self.backbone)

    def method_config(self) -> VoCoConfig:
        """Settings of the method."""
        crop = (self.side, self.side, self.side)
        return VoCoConfig(variant="v1", grid=self.grid, crop=crop, query_count=self.queries)


_SWIN = {"name": "swin_unetr", "feature_size": 48, "use_v2": True}

YARDSTICK = StepCase(
    name="yardstick",
    backbone={**_SWIN, "use_checkpoint": True},
    grid=(4, 4, 1),
    queries=2,
    seconds=1000.0,
)
"""What the targets are stated for; activations are recomputed, since memory is one of them."""

FULL = (
    YARDSTICK,
    replace(YARDSTICK, name="yardstick-bf16", precision="bf16-mixed"),
    StepCase(name="unet", backbone={"name": "unet"}),
    StepCase(name="resenc_unet", backbone={"name": "resenc_unet"}, seconds=110.0),
    StepCase(name="unetr", backbone={"name": "unetr", "size": (64, 64, 64)}),
    StepCase(name="genesis_unet", backbone={"name": "genesis_unet"}, seconds=110.0),
    StepCase(name="swin_unetr-24", backbone={**_SWIN, "feature_size": 24}, seconds=120.0),
    StepCase(
        name="finetune-swin_unetr",
        backbone=_SWIN,
        volumes=1,
        side=96,
        classes=14,
        seconds=150.0,
    ),
    StepCase(
        name="finetune-resenc_unet",
        backbone={"name": "resenc_unet"},
        side=96,
        classes=14,
        seconds=80.0,
    ),
)
"""The whole table."""

SMALL = (
    StepCase(name="small-swin_unetr", backbone={**_SWIN, "feature_size": 12}, grid=(2, 1, 1)),
    StepCase(
        name="small-unet",
        backbone={"name": "unet", "features": (8, 8, 16, 32, 64, 8)},
        side=32,
    ),
    StepCase(
        name="small-finetune-resenc_unet",
        backbone={"name": "resenc_unet", "features": (8, 16, 32), "blocks": (1, 2, 2)},
        volumes=2,
        side=32,
        classes=5,
    ),
)
"""The same in seconds, to try it out."""


ON_GPU = (
    replace(YARDSTICK, name="yardstick-2", volumes=2, seconds=90.0),
    *(replace(case, seconds=40.0) for case in FULL if case.precision == "float32"),
)
"""The table of a GPU: the yardstick at the batch it is stated for there, and all others."""


def cases(*, small: bool, device: Device, compiled: bool) -> tuple[StepCase, ...]:
    """What is measured on a device; on a GPU in bf16 with float32 losses, and in float32.

    Raises:
        UsageError: If the device is not there: nothing is measured on another in its place.
    """
    if device == "cpu":
        chosen = SMALL if small else FULL
    elif not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device here, so steps on a GPU are not measured. Leave out "
            "--device cuda to measure them on the CPU."
        )
    else:
        table = SMALL if small else ON_GPU
        chosen = (*(replace(case, precision="bf16-mixed") for case in table), table[0])
    return tuple(replace(case, device=device, compiled=compiled) for case in chosen)
