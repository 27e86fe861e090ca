"""Volumes and targets in one ``.npz``, as the MedMNIST collection has them.

Arrays ``train_images``, ``val_images``, ``test_images`` hold ``(n, x, y, z)`` numbers, and
``train_labels``, ... one class number for each (Yang et al., Scientific Data 10:41, 2023). The
file says nothing about spacing, so 1 mm is assumed and a warning says so.
"""

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from voco.data.scan import MINIMUM_SIDE, Scan, checked_volume
from voco.data.source import Found, Refused, Source
from voco.errors import DataError

SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Prefix of an array's name to the split it stands for."""

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class _Member(NamedTuple):
    stream: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


def find_volumes(path: Path) -> Found:
    """Each volume in an ``.npz`` as a case with a target and a split."""
    try:
        with zipfile.ZipFile(path) as archive:
            prefixes = [p for p in SPLITS if f"{p}_images.npy" in archive.namelist()]
        sources = [source for prefix in prefixes for source in _sources(path, prefix)]
    except _DAMAGED as error:
        return [], [Refused(path, f"damaged, or not an .npz ({error})")]
    except DataError as error:
        return [], [Refused(path, str(error))]
    if not prefixes:
        names = ", ".join(f"{prefix}_images" for prefix in SPLITS)
        return [], [Refused(path, f"none of the arrays {names} (as MedMNIST has them)")]
    return sources, []


def read_volume(path: Path, member: str) -> Scan:
    """Read one volume; touches only the part of the file up to it.

    Args:
        path: The ``.npz``.
        member: Prefix and index, such as ``train/12``.

    Raises:
        DataError: If it is damaged.
    """
    prefix, index = member.split("/")
    try:
        # A stream's position is shared with forked processes, so each process has its own.
        array = _open(path, f"{prefix}_images.npy", path.stat().st_mtime_ns, os.getpid())
        shape = array.shape[1:]
        size = int(np.prod(shape)) * array.dtype.itemsize
        array.stream.seek(array.start + int(index) * size)
        content = array.stream.read(size)
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged ({error}).") from None
    if len(content) != size:
        raise DataError(f"{path}: cut off within volume {member}.")
    voxels = np.frombuffer(content, array.dtype).reshape(1, *shape)
    volume, notes = checked_volume(voxels, np.eye(4), f"{path}, {member}")
    return Scan(volume, warnings=(*notes, "no spacing in the file; taken as 1 mm"))


def _sources(path: Path, prefix: str) -> list[Source]:
    member = _open(path, f"{prefix}_images.npy", path.stat().st_mtime_ns, os.getpid())
    if len(member.shape) != 4 or min(member.shape[1:]) < MINIMUM_SIDE:
        size = " x ".join(map(str, member.shape))
        raise DataError(f"{prefix}_images has {size} numbers; expected volumes (n, x, y, z)")
    with np.load(path, allow_pickle=False) as arrays:
        key = f"{prefix}_labels"
        targets = arrays[key].reshape(len(arrays[key]), -1) if key in arrays else None
    if targets is not None and targets.shape != (member.shape[0], 1):
        raise DataError(f"{key} has {targets.shape} numbers; expected one for each volume")
    return [
        Source(
            id=f"{path.stem}-{prefix}-{index:05d}",
            images=(path,),
            split=SPLITS[prefix],
            target=None if targets is None else int(targets[index, 0]),
            member=f"{prefix}/{index}",
        )
        for index in range(member.shape[0])
    ]


@lru_cache(maxsize=4)
def _open(path: Path, name: str, _changed: int, _process: int) -> _Member:
    """An array in the archive as a stream: its numbers may not fit into memory."""
    stream = zipfile.ZipFile(path).open(name)  # noqa: SIM115  # stays open for the next volume
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran or dtype.hasobject:
        raise DataError(f"{name}: stored in Fortran order or as objects; expected plain numbers")
    return _Member(stream, stream.tell(), shape, dtype)
