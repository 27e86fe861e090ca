"""Generate labelled synthetic torso CTs: NIfTI in the layout of the Medical Decathlon."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from voco.data.imageio import write_image
from voco.data.phantom import CLASSES, torso
from voco.data.store import write_atomically
from voco.errors import UsageError
from voco.geometry import Grid
from voco.progress import track
from voco.volume import Volume

_LPS_EVERY = 3
"""Every so many cases one is stored in LPS order, as DICOM converters do, the others in RAS."""


def phantom(
    out: Path,
    cases: int = 24,
    seed: int = 0,
    *,
    spacing_mm: float = 5.0,
    workers: int = -1,
    overwrite: bool = False,
) -> Path:
    """Write a folder of synthetic torso CTs with labels.

    ``imagesTr/torso_000.nii.gz`` (int16 HU), ``labelsTr/torso_000.nii.gz`` (uint8) and so on, and
    ``dataset.json``. Case 2, 5, 8, ... are stored with axes towards left, posterior and superior,
    the others towards right, anterior and superior: both are common, and readers must cope.
    A case depends on ``seed`` and its own number alone, not on how many there are, nor on workers.

    Args:
        out: Folder to write. Must not exist or be empty, unless ``overwrite``.
        cases: How many.
        seed: Same seed, same voxels.
        spacing_mm: Edge of a voxel, from 0.5 to 20 mm. Time and memory grow with its inverse cube:
            a case takes about a second at 5 mm, half a minute and 2.4 GB at 1.5 mm.
        workers: Processes; -1 for one per core.
        overwrite: Whether to replace what lies in ``out``.

    Returns:
        The folder.

    Raises:
        UsageError: If ``out`` holds something, or a number is out of range.
    """
    _check(cases, seed, spacing_mm, workers)
    out = Path(out)
    _make_room(out, overwrite=overwrite)
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = (joblib.delayed(_write)(out, seed, case, spacing_mm) for case in range(cases))
    processes = min(cases, joblib.effective_n_jobs(workers))
    done: Iterator[str] = joblib.Parallel(n_jobs=processes, return_as="generator")(jobs)  # pyright: ignore[reportAssignmentType]
    names = list(track(done, "phantom", cases))
    write_atomically(out / "dataset.json", json.dumps(_description(names, seed), indent=2).encode())
    return out


def _check(cases: int, seed: int, spacing_mm: float, workers: int) -> None:
    if cases < 1:
        raise UsageError(f"cases = {cases}: must be at least 1.")
    if seed < 0:
        raise UsageError(f"seed = {seed}: must be at least 0.")
    if not 0.5 <= spacing_mm <= 20:
        raise UsageError(f"spacing_mm = {spacing_mm}: must be from 0.5 to 20 (mm).")
    if workers < 1 and workers != -1:
        raise UsageError(f"workers = {workers}: must be at least 1, or -1 for one per core.")


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Refuse what must not be overwritten; of what may be, remove only what this command writes."""
    if out.is_file():
        raise UsageError(f"{out}: is a file. Name a folder.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out}: is not empty. Name another folder, or say --overwrite.")
    (out / "dataset.json").unlink(missing_ok=True)
    for folder in ("imagesTr", "labelsTr"):
        for file in (out / folder).glob("torso_*.nii.gz"):
            file.unlink()


def _write(out: Path, seed: int, case: int, spacing_mm: float) -> str:
    name = f"torso_{case:03d}.nii.gz"
    made = torso(seed, case, spacing_mm)
    for folder, volume in (("labelsTr", made.label), ("imagesTr", made.image)):
        stored = _to_lps(volume) if case % _LPS_EVERY == _LPS_EVERY - 1 else volume
        write_image(stored, out / folder / name)
    return name


def _to_lps(volume: Volume) -> Volume:
    """The same voxels in the same place, in another order in memory."""
    x, y, _ = volume.grid.shape
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = x - 1, y - 1
    array = np.ascontiguousarray(volume.array[:, ::-1, ::-1])
    return Volume(array, Grid(volume.grid.shape, volume.grid.affine @ flip))


def _description(names: list[str], seed: int) -> dict[str, Any]:
    return {
        "name": "Torso phantoms",
        "description": f"Synthetic torso CTs with labels, made by 'voco phantom --seed {seed}'",
        "reference": "voco",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in CLASSES.items()},
        "numTraining": len(names),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
        "test": [],
    }
