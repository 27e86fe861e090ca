"""VoCo's views, batched on the device, against one pipeline of library transforms per crop.

Each way runs in a process of its own, since ours is made in one that keeps freed memory.

``python -m voco.bench.views FOLDER plain|ours``
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from voco.backbones import UNetConfig
from voco.bench.apart import Apart, report
from voco.draws import Draws
from voco.engine.allocator import use_large_pages
from voco.methods.voco import VoCoConfig
from voco.shapes import Volumes
from voco.task import Step

_GRID, _CROP, _RESIZED, _QUERIES = (4, 4, 1), 96, 64, 2
_WARM_UP, _SAMPLES = 5, 25


def subject(folder: Path) -> Apart:
    """16 base and 2 random crops of 96 cubed, resampled to 64 cubed, augmented (variant v1)."""
    folder.mkdir(parents=True, exist_ok=True)
    return Apart(
        name="views",
        what=f"16 base and {_QUERIES} random crops of {_CROP} cubed, resampled to "
        f"{_RESIZED} cubed, flips, turns, intensity shift",
        module="voco.bench.views",
        folder=folder,
        equal=lambda _: "the same steps, other random numbers",
    )


def ours(volume: Volumes) -> Callable[[], Tensor]:
    """What a step of pre-training does with a volume before its networks see it."""
    method = VoCoConfig(variant="v1").build(UNetConfig(features=(8, 8, 8, 8, 8, 8)).build())
    total = _WARM_UP + _SAMPLES
    steps = (Step(number, total, Draws(0, number)) for number in range(total))
    return lambda: method.views(volume, next(steps))[1]


def plain(volume: Volumes) -> Callable[[], object]:
    """One pipeline for each crop, as loaders of this field build them."""
    # Importing MONAI takes seconds.
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
    pipelines = [pipeline(start) for start in [*bases, *((x, y, 0) for x, y in places)]]
    return lambda: [each(volume[0]) for each in pipelines]


def main(way: str) -> None:
    """One way, in this process: the median of many volumes."""
    if way != "plain":
        use_large_pages()
    volume = torch.rand(1, 1, 4 * _CROP, 4 * _CROP, _CROP)
    views = plain(volume) if way == "plain" else ours(volume)
    for _ in range(_WARM_UP):
        views()
    report(views, _SAMPLES)


if __name__ == "__main__":
    main(sys.argv[2])
