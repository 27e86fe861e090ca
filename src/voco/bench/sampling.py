"""A sample from the disk to crops on the device, against loading a float32 volume and cutting it.

What is compared is all that a training step waits for before crops are augmented. The plain way
loads the volume that preparing left (a ``.npy`` in the network's range) and cuts one crop after
the other with a transform of MONAI; ours is the loader of pre-training and the cut of all crops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voco.bench.ct import write_ct
from voco.bench.harness import Subject
from voco.data.intensity import WindowIntensity
from voco.data.loading import Share
from voco.data.selection import Entry
from voco.data.store import Store
from voco.data.windows import Windows, WindowsConfig, window_batches
from voco.geometry import boxes_at, crop, grid_boxes
from voco.shapes import Boxes, Shape3
from voco.workflows.prepare import prepare

CPU = torch.device("cpu")
QUERIES = 2

Crops = Float[Tensor, "n 1 x y z"]


@dataclass(frozen=True)
class Setting:
    """A loader of pre-training and the crops of its windows.

    Attributes:
        name: For the table.
        grid: Base crops along x, y and z.
        side: Voxels along each side of a crop.
        config: How windows are cut.
    """

    name: str
    grid: Shape3
    side: int
    config: WindowsConfig

    @property
    def window(self) -> Shape3:
        """Voxels of a window."""
        x, y, z = (self.side * cells for cells in self.grid)
        return (x, y, z)

    def boxes(self) -> Boxes:
        """The base crops and two others, somewhere."""
        size = (self.side, self.side, self.side)
        places = torch.rand(QUERIES, 3, generator=torch.Generator().manual_seed(0))
        return torch.cat([grid_boxes(self.grid, size), boxes_at(places, size, self.window)])


SETTINGS = (
    Setting("sample-crop", (3, 3, 1), 64, WindowsConfig(fit="crop", workers=0)),
    Setting("sample-resize", (4, 4, 1), 96, WindowsConfig(fit="resize", workers=0)),
)
"""The windows of v2, and those of v1: the whole body in one size."""


def subjects(folder: Path, shape: Shape3 = (240, 240, 400)) -> list[Subject]:
    """One subject per setting, on a torso at 1.5 mm."""
    store = small_store(folder, shape, 600.0)
    return [subject(store, folder, setting) for setting in SETTINGS]


def small_store(folder: Path, shape: Shape3, length_mm: float) -> Store:
    """A store of one CT, at the spacing that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    write_ct(folder / "ct.nii", shape, length_mm)
    prepare(folder / "ct.nii", folder / "store")
    return Store(folder / "store")


def subject(store: Store, folder: Path, setting: Setting) -> Subject:
    """Crops of one window of the only case of a store."""
    case = store.cases["ct"]
    windows = loader(store, setting)
    cache = folder / f"{setting.name}.npy"
    if setting.config.fit == "resize":
        # What preparing leaves on the plain way: the whole body, resampled once and for all.
        np.save(cache, next(window_batches(windows, CPU, 0, 0, 1))[0].numpy())
    else:
        low, width = WindowIntensity().low, WindowIntensity().high - WindowIntensity().low
        np.save(cache, ((store.read("ct") - np.float32(low)) / np.float32(width)).clip(0, 1))
    numbers = count()
    sizes = ["x".join(map(str, sides)) for sides in (setting.window, case.shape)]
    how = "resampled from" if setting.config.fit == "resize" else "anywhere in"
    return Subject(
        name=setting.name,
        what=f"{len(setting.boxes())} crops of {setting.side} cubed on the device, of a window of "
        f"{sizes[0]} {how} {sizes[1]} voxels",
        plain=plain(cache, setting),
        ours=lambda: ours(windows, setting, next(numbers)),
        equal=difference if setting.config.fit == "resize" else lambda *_: "other random places",
    )


def loader(store: Store, setting: Setting) -> Windows:
    """What pre-training reads from."""
    entries = [Entry(0, case) for case in store.cases.values()]
    share = Share(batch_size=1)
    return Windows([store], entries, setting.config, setting.window, WindowIntensity(), 0, share)


def plain(cache: Path, setting: Setting) -> Callable[[], Crops]:
    """Load, cut a window at a random place, cut its crops."""
    from monai.transforms.croppad.array import (  # noqa: PLC0415 (takes seconds)
        RandSpatialCrop,
        SpatialCrop,
    )

    window = RandSpatialCrop(setting.window, random_size=False)
    crops = [SpatialCrop(roi_start=start, roi_end=stop) for start, stop in setting.boxes().tolist()]

    def sample() -> Crops:
        volume = window(np.load(cache))
        return torch.stack([torch.as_tensor(cut(volume)) for cut in crops]).to(CPU)

    return sample


def ours(windows: Windows, setting: Setting, number: int) -> Crops:
    """A micro-batch of the loader, and its crops."""
    volumes = next(window_batches(windows, CPU, 0, number, number + 1))
    return crop(volumes, setting.boxes()[None])[0]


def difference(first: Crops, second: Crops) -> str:
    """The largest one."""
    return f"same crops, largest difference {float((first - second).abs().max()):.0e}"
