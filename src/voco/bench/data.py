"""The store against the float32 caches that are usual: bytes, and the time to a crop."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from voco.bench.harness import Subject
from voco.data.imageio import write_image
from voco.data.phantom import torso
from voco.data.store import Store
from voco.errors import UsageError
from voco.shapes import Shape3
from voco.workflows.prepare import prepare

CROP: Shape3 = (96, 96, 96)
SPACING_MM = (1.5, 1.5, 1.5)


class Scans:
    """CT to measure on, prepared at 1.5 mm.

    Real scans if ``VOCO_BENCH_CT`` names a folder of them, else one generated torso, which has
    less texture than a real one and so compresses a little better.
    """

    def __init__(self, folder: Path) -> None:
        real = os.environ.get("VOCO_BENCH_CT")
        self.kind = "real CT" if real else "generated torso"
        source = Path(real) if real else _generated(folder / "scans")
        prepare([source], folder / "store", spacing_mm=SPACING_MM)
        self.store = Store(folder / "store")
        if not self.store.cases:
            raise UsageError(f"{source}: no scan could be taken; see {folder / 'store'}.")
        largest = max(self.store.cases.values(), key=lambda case: int(np.prod(case.shape)))
        self.case = largest.id
        self.npy = folder / "whole.npy"
        np.save(self.npy, self.store.read(self.case).astype(np.float32))

    def bytes_per_voxel(self) -> list[dict[str, Any]]:
        """One row per scan, and one for all."""
        cases = self.store.cases.values()
        sizes = {case.id: self._bytes(case.id) for case in cases}
        voxels = {case.id: int(np.prod(case.shape)) * len(case.channels) for case in cases}
        rows = [_row(case.id, case.shape, sizes[case.id], voxels[case.id]) for case in cases]
        total = _row(
            f"all {len(sizes)}, {self.kind}", None, sum(sizes.values()), sum(voxels.values())
        )
        return [*rows, total]

    def subjects(self) -> list[Subject]:
        """A random crop: the chunks under it, against loading the whole float32 volume."""
        case = self.store.cases[self.case]
        sizes = [min(side, room) for side, room in zip(CROP, case.shape, strict=True)]
        generator = np.random.default_rng(0)

        def box() -> tuple[Shape3, Shape3]:
            start = [
                int(generator.integers(n - s + 1)) for n, s in zip(case.shape, sizes, strict=True)
            ]
            stop = [a + s for a, s in zip(start, sizes, strict=True)]
            return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])

        part, whole = ("x".join(map(str, shape)) for shape in (sizes, case.shape))
        return [
            Subject(
                name="crop",
                what=f"a random crop of {part} of {whole} voxels ({self.kind})",
                plain=lambda: np.load(self.npy)[_cut(box())],
                ours=lambda: self.store.read(self.case, box()),
                equal=lambda *_: self._same(box()),
            )
        ]

    def _same(self, box: tuple[Shape3, Shape3]) -> str:
        plain = np.load(self.npy)[_cut(box)]
        largest = float(np.abs(plain - self.store.read(self.case, box)).max())
        return f"same crop, largest difference {largest:g} HU"

    def _bytes(self, case: str) -> int:
        return (self.store.path / "images" / f"{case}.b2nd").stat().st_size


def _cut(box: tuple[Shape3, Shape3]) -> tuple[slice, ...]:
    return (slice(None), *(slice(a, b) for a, b in zip(*box, strict=True)))


def _generated(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_image(torso(seed=0, spacing_mm=SPACING_MM[0]).image, folder / "torso.nii.gz")
    return folder


def _row(name: str, shape: Shape3 | None, size: int, voxels: int) -> dict[str, Any]:
    return {
        "case": name,
        "voxels": "x".join(map(str, shape)) if shape else str(voxels),
        "bytes_per_voxel": size / voxels,
        "float32_over_store": 4 * voxels / size,
    }
