"""A CT on disk to voxels that training reads, against a chain of library transforms.

One core each. The plain way leaves a float32 ``.npy`` in the network's range; ours is what
``voco prepare`` does with a scan: read, check, resample, cut to the body, statistics, compress.
Both prepare it several times over, as one prepares many scans in a process.

``python -m voco.bench.preparing FOLDER plain|ours``
"""

import sys
from pathlib import Path

import numpy as np
import torch

from voco.bench.apart import Apart, report
from voco.bench.ct import write_ct
from voco.data.intake import Job, Outcome
from voco.data.source import Source
from voco.data.store import Preprocessing, Store
from voco.shapes import Shape3
from voco.workflows.prepare import take_next

LOW_HU, HIGH_HU = -175.0, 250.0
SPACING_MM = (1.5, 1.5, 1.5)
_SCANS = 3

PREPROCESSING = Preprocessing(spacing_mm=SPACING_MM, foreground=True)


def subject(folder: Path, shape: Shape3 = (512, 512, 600), length_mm: float = 600.0) -> Apart:
    """A CT of the torso as ``.nii.gz``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_ct(folder / "ct.nii.gz", shape, length_mm)
    write_ct(folder / "small.nii.gz", (16, 16, 16), 80.0)
    size = "x".join(map(str, shape))
    return Apart(
        name="prepare",
        what=f"a CT of {size} voxels (.nii.gz) prepared at {SPACING_MM[0]} mm, on one core",
        module="voco.bench.preparing",
        folder=folder,
        equal=difference,
        most=3,
    )


def plain(scan: Path, out: Path) -> None:
    """MONAI's transforms one after the other, and the result as it is."""
    from monai.transforms.compose import Compose  # noqa: PLC0415 (takes seconds)
    from monai.transforms.croppad.array import CropForeground  # noqa: PLC0415
    from monai.transforms.intensity.array import ScaleIntensityRange  # noqa: PLC0415
    from monai.transforms.io.array import LoadImage  # noqa: PLC0415
    from monai.transforms.spatial.array import Orientation, Spacing  # noqa: PLC0415
    from monai.transforms.utility.array import EnsureChannelFirst  # noqa: PLC0415

    chain = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            Spacing(SPACING_MM, mode="bilinear"),
            ScaleIntensityRange(LOW_HU, HIGH_HU, 0.0, 1.0, clip=True),
            CropForeground(allow_smaller=True),
        ]
    )
    np.save(out, np.asarray(chain(scan)))


def ours(scan: Path, store: Path) -> Outcome:
    """What a worker of ``voco prepare`` does with a scan."""
    name = scan.name.removesuffix(".nii.gz")
    return take_next(Job(Source(id=name, images=(scan,)), str(scan), name, scan), store)


def means(folder: Path) -> tuple[float, float]:
    """Mean of the voxels that are neither air nor fat, in the network's range, plain and ours."""
    made = np.load(folder / "plain.npy")
    stored = Store(folder / "store").read("ct").astype(np.float32)
    scaled = ((stored - LOW_HU) / (HIGH_HU - LOW_HU)).clip(0, 1)
    return float(made[made > 0].mean()), float(scaled[scaled > 0].mean())


def difference(folder: Path) -> str:
    """What both prepared volumes say about the body; they are cut by different rules."""
    first, second = means(folder)
    return f"cut by different rules; mean of the voxels within the window {first:.4f}, {second:.4f}"


def main(folder: Path, way: str) -> None:
    """One way, in this process."""
    torch.set_num_threads(1)
    if way == "plain":
        plain(folder / "small.nii.gz", folder / "small.npy")
        report(lambda: plain(folder / "ct.nii.gz", folder / "plain.npy"), _SCANS)
        return
    store = Store.create(folder / "store", PREPROCESSING)
    ours(folder / "small.nii.gz", store.path)
    outcome = report(lambda: ours(folder / "ct.nii.gz", store.path), _SCANS)
    if outcome.case is None:
        raise RuntimeError(outcome.reason)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
