"""VoCo's views, batched on the device, against one pipeline of library transforms per crop."""

import torch
from torch import Tensor

from voco.backbones import UNetConfig
from voco.bench.harness import Subject
from voco.draws import Draws
from voco.method import Method
from voco.methods.voco import VoCoConfig
from voco.task import Step

_GRID, _CROP, _RESIZED, _QUERIES = (4, 4, 1), 96, 64, 2


def subjects() -> list[Subject]:
    """16 base and 2 random crops of 96 cubed, resampled to 64 cubed, augmented (variant v1)."""
    volume = torch.rand(1, 1, 4 * _CROP, 4 * _CROP, _CROP)
    method = VoCoConfig(variant="v1").build(UNetConfig(features=(8, 8, 8, 8, 8, 8)).build())
    plain = _plain_pipelines()

    def ours() -> Tensor:
        return _views(method, volume)

    return [
        Subject(
            name="views",
            what=f"16 base and {_QUERIES} random crops of {_CROP} cubed, resampled to "
            f"{_RESIZED} cubed, flips, turns, intensity shift",
            plain=lambda: [pipeline(volume[0]) for pipeline in plain],
            ours=ours,
            equal=lambda *_: "the same steps, other random numbers",
        )
    ]


def _views(method: Method, volume: Tensor) -> Tensor:
    return method.views(volume, Step(0, 1, Draws(0, 0)))[1]


def _plain_pipelines() -> list:
    """One pipeline for each crop, as loaders of this field build them."""
    # Importing MONAI takes seconds, and only this subject needs it.
    from monai.transforms.compose import Compose  # noqa: PLC0415
    from monai.transforms.croppad.array import SpatialCrop  # noqa: PLC0415
    from monai.transforms.intensity.array import RandShiftIntensity  # noqa: PLC0415
    from monai.transforms.spatial.array import RandFlip, RandRotate90, Resize  # noqa: PLC0415

    def pipeline(start: tuple[int, int, int]) -> Compose:
        stop = [first + _CROP for first in start]
        return Compose(
            [
                SpatialCrop(roi_start=start, roi_end=stop),
                Resize((_RESIZED,) * 3, mode="trilinear"),
                *(RandFlip(prob=0.2, spatial_axis=axis) for axis in range(3)),
                RandRotate90(prob=0.2, max_k=3),
                RandShiftIntensity(offsets=0.1, prob=0.1),
            ]
        )

    bases = [(x * _CROP, y * _CROP, 0) for x in range(_GRID[0]) for y in range(_GRID[1])]
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 3 * _CROP, (_QUERIES, 2), generator=generator).tolist()
    return [pipeline(start) for start in [*bases, *((x, y, 0) for x, y in places)]]
