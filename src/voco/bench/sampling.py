"""A sample from the disk to crops on the device, against loading a float32 volume and cutting it.

What is compared is all that a training step waits for before crops are augmented. The plain way
loads the volume that preparing left (a ``.npy`` in the network's range) and cuts one crop after
the other with a transform of MONAI; ours is the loader of pre-training and the cut of all crops.
Each runs in a process of its own, since ours is one that keeps freed memory, as training does.

``python -m voco.bench.sampling FOLDER plain|ours``; ``parts`` in their place prints where the
seconds of ours go.
"""

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voco.bench.apart import Apart, report, said, timed
from voco.bench.ct import write_ct
from voco.data.intensity import WindowIntensity
from voco.data.loading import Share
from voco.data.resampling import interpolated
from voco.data.selection import Entry
from voco.data.store import Store
from voco.data.windows import Windows, WindowsConfig, window_batches
from voco.engine.allocator import use_large_pages
from voco.errors import VocoError
from voco.geometry import boxes_at, crop, grid_boxes
from voco.shapes import Boxes, Shape3
from voco.workflows.prepare import prepare

CPU = torch.device("cpu")
_ENDLESS = 1 << 30
_WARM_UP, _SAMPLES = 5, 25

PARTS = ("reading", "resampling", "to the network's range", "cutting")
"""What a sample is made of, in its order."""

Crops = Float[Tensor, "n 1 x y z"]


@dataclass(frozen=True)
class Setting:
    """A loader of pre-training and the crops of its windows.

    Attributes:
        name: For the table.
        grid: Base crops along x, y and z.
        side: Voxels along each side of a crop.
        others: Crops at other places in the window.
        config: How windows are cut.
    """

    name: str
    grid: Shape3
    side: int
    others: int
    config: WindowsConfig

    @property
    def window(self) -> Shape3:
        """Voxels of a window."""
        x, y, z = (self.side * cells for cells in self.grid)
        return (x, y, z)

    def boxes(self) -> Boxes:
        """The base crops and the others; none where the window is the only crop."""
        if self.grid == (1, 1, 1) and not self.others:
            return torch.zeros(0, 2, 3, dtype=torch.int64)
        size = (self.side, self.side, self.side)
        places = torch.rand(self.others, 3, generator=torch.Generator().manual_seed(0))
        return torch.cat([grid_boxes(self.grid, size), boxes_at(places, size, self.window)])


SETTINGS = (
    Setting("sample", (1, 1, 1), 96, 0, WindowsConfig(fit="crop", workers=0)),
    Setting("sample-v2", (3, 3, 1), 64, 2, WindowsConfig(fit="crop", workers=0)),
    Setting("sample-v1", (4, 4, 1), 96, 2, WindowsConfig(fit="resize", workers=0)),
)
"""A crop per volume, as most methods take it; VoCo's windows in v2; and in v1, where the whole body
is brought to one size."""


def subjects(folder: Path, shape: Shape3 = (240, 240, 400)) -> list[Apart]:
    """One subject per setting, on a torso at 1.5 mm."""
    store = small_store(folder, shape, 600.0)
    return [subject(store, folder / setting.name, setting) for setting in SETTINGS]


def small_store(folder: Path, shape: Shape3, length_mm: float) -> Store:
    """A store of one CT, at the spacing that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    write_ct(folder / "ct.nii", shape, length_mm)
    prepare(folder / "ct.nii", folder / "store")
    return Store(folder / "store")


def subject(store: Store, folder: Path, setting: Setting) -> Apart:
    """Crops of one window of the only case of a store; its folder is named as the setting."""
    folder.mkdir(parents=True, exist_ok=True)
    leave(store, folder, setting)
    sizes = ["x".join(map(str, sides)) for sides in (setting.window, store.cases["ct"].shape)]
    resized = setting.config.fit == "resize"
    return Apart(
        name=setting.name,
        what=f"{max(1, len(setting.boxes()))} crops of {setting.side} cubed on the device, of a "
        f"window of {sizes[0]} {'resampled from' if resized else 'anywhere in'} {sizes[1]} voxels",
        module="voco.bench.sampling",
        folder=folder,
        equal=difference if resized else lambda _: "other random places",
    )


def leave(store: Store, folder: Path, setting: Setting) -> None:
    """Write what preparing leaves on the plain way: a volume in the network's range."""
    if setting.config.fit == "resize":  # the whole body, resampled once and for all
        volume = next(window_batches(loader(store, setting), CPU, 0, 0, 1))[0].numpy()
    else:
        low, width = WindowIntensity().low, WindowIntensity().high - WindowIntensity().low
        volume = ((store.read("ct") - np.float32(low)) / np.float32(width)).clip(0, 1)
    np.save(folder / "volume.npy", volume)


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
        if not crops:
            return torch.as_tensor(volume)[None].to(CPU)
        return torch.stack([torch.as_tensor(cut(volume)) for cut in crops]).to(CPU)

    return sample


def ours(windows: Windows, setting: Setting) -> Callable[[], Crops]:
    """The next micro-batch of the loader, and its crops."""
    volumes, boxes = window_batches(windows, CPU, 0, 0, _ENDLESS), setting.boxes()

    def sample() -> Crops:
        return crop(next(volumes), boxes[None])[0] if len(boxes) else next(volumes)

    return sample


def parts(store: Store, setting: Setting) -> dict[str, float]:
    """Seconds of each part of our sample, each taken many times by itself: their medians."""
    windows, boxes, numbers = loader(store, setting), setting.boxes(), itertools.count()
    packed = windows[0]
    if isinstance(packed, VocoError):
        raise packed
    volumes, case = packed.unpack(CPU), windows.cut(0)[0]
    body = torch.from_numpy(store.read(case.id, case.foreground))
    resized = setting.config.fit == "resize"
    resampling = _median(lambda: interpolated(body, setting.window)) if resized else 0.0
    seconds = (
        _median(lambda: windows.cut(next(numbers))) - resampling,
        resampling,
        _median(lambda: packed.unpack(CPU)),
        _median(lambda: crop(volumes, boxes[None])) if len(boxes) else 0.0,
    )
    return dict(zip(PARTS, seconds, strict=True))


def _median(work: Callable[[], object]) -> float:
    return statistics.median([timed(work)[1] for _ in range(_WARM_UP + _SAMPLES)][_WARM_UP:])


def parts_of_all(folder: Path) -> dict[str, dict[str, float]]:
    """Where the seconds of the subjects that are in a folder go, by their names."""
    names = [setting.name for setting in SETTINGS]
    return {name: said("voco.bench.sampling", str(folder / name), "parts") for name in names}


def page(found: dict[str, dict[str, float]]) -> list[str]:
    """The parts as a table."""
    return [
        f"| our sample, ms | {' | '.join(PARTS)} | together |",
        "|---" * (len(PARTS) + 2) + "|",
        *(_parts_line(name, [1e3 * row[part] for part in PARTS]) for name, row in found.items()),
    ]


def _parts_line(name: str, values: Sequence[float]) -> str:
    cells = [f"{value:.1f}" if value else "" for value in values]
    return f"| `{name}` | {' | '.join(cells)} | {sum(values):.1f} |"


def difference(folder: Path) -> str:
    """The largest one of the crops that both took last."""
    first, second = (np.load(folder / f"{way}.npy") for way in ("plain", "ours"))
    return f"same crops, largest difference {float(np.abs(first - second).max()):.0e}"


def main(folder: Path, way: str) -> None:
    """One way, in this process: the median of many samples."""
    setting = next(each for each in SETTINGS if each.name == folder.name)
    if way == "plain":
        sample = plain(folder / "volume.npy", setting)
    else:
        use_large_pages()
        if way == "parts":
            print(json.dumps(parts(Store(folder.parent / "store"), setting)))  # noqa: T201
            return
        sample = ours(loader(Store(folder.parent / "store"), setting), setting)
    for _ in range(_WARM_UP):
        sample()
    np.save(folder / f"{way}.npy", report(sample, _SAMPLES).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
