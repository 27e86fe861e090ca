"""A comparison of seconds: two methods and scratch on scans with two balls in noise."""

import csv
from pathlib import Path

import blobs
import numpy as np
import pretraining

from voco.comparison.settings import ComparisonConfig, read_comparison
from voco.data.imageio import write_image
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows.prepare import prepare

LEARNT, UNSEEN = 4, 2


def store_of_scans(folder: Path) -> Path:
    """A store of files with labels and classes, the last ones of the split ``test``."""
    grid = Grid((24, 24, 24), np.diag([1.0, 1, 1, 1]))
    rows = [["image", "label", "split", "modality", "target"]]
    for number in range(LEARNT + UNSEEN):
        image, label = blobs.blob(number)
        split = "train" if number < LEARNT else "test"
        files = [folder / f"{kind}{number}.nii.gz" for kind in ("scan", "label")]
        kind = ("plain", "raised")[number % 2]
        image = blobs.raised(image) if number % 2 else image
        for file, array in zip(files, (image, label[None]), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            write_image(Volume(array, grid), file)
        rows.append([*map(str, files), split, "MR", kind])
    with (folder / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    prepare([folder / "list.csv"], folder / "store", workers=1)
    return folder / "store"


def protocol(store: Path, **changes) -> ComparisonConfig:
    """A recipe that takes seconds."""
    return read_comparison(raw_protocol(store, **changes), Path, "protocol")


def raw_protocol(store: Path, **changes) -> dict:
    """The same, as written."""
    voco = {"method": pretraining.FAST["method"]}
    volumefusion = {"method": {"name": "volumefusion", "window": [16, 16, 16]}}
    volumefusion["method"] |= {"crop": [16, 16, 16], "least_edge": 2}
    common = {key: pretraining.FAST[key] for key in ("intensity", "optimizer", "windows")}
    return {
        "methods": {"voco": voco, "fusion": volumefusion},
        "pretraining": {**common, "steps": 3, "batch_size": 2, "checkpoint_every": 1},
        "backbones": {"small": {**blobs.NETWORK, "features": [4, 8]}},
        "pretrain_data": str(store),
        "data": str(store),
        "finetuning": {
            "task": blobs.TASK,
            "intensity": pretraining.FAST["intensity"],
            "steps": 4,
            "batch_size": 2,
            "validation": 0,
            "workers": 0,
            "checkpoint_every": 1,
        },
        "labels": 2,
        "seeds": [0, 1],
        "against": "voco",
        **changes,
    }
