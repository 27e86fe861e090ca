"""Reading tensors from files, and nothing but tensors."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from voco.errors import WeightsError
from voco.weights.handover import WEIGHTS_FILE, handover_file, read_handover

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a run folder or of a weight file, by name, on the CPU.

    Reads safetensors, and files of ``torch.save`` as far as they hold nothing but tensors and
    plain values. A ``handover.json`` beside ``weights.safetensors`` must name its sha256.

    Raises:
        WeightsError: If the file is missing, damaged, not what ``handover.json`` describes, or of
            a kind that could run code when it is read.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"{file}: no such file. Name the folder of a finished run, or a weight file."
        )
    if file.suffix == ".safetensors":
        _check_digest(file)
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: damaged or incomplete ({error}).") from None
    if file.suffix in {".pt", ".pth", ".ckpt", ".bin"}:
        return _tensors_in(_unpickled(file), file)
    raise WeightsError(
        f"{file}: unknown kind of file. Weights are read from .safetensors, .pt, .pth, .ckpt "
        "and .bin."
    )


def unwrapped(tensors: Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
    """The prefix that wrapper classes put before every name, and the tensors without it."""
    stripped = ""
    while tensors:
        prefix = next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None)
        if prefix is None:
            break
        stripped += prefix
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return stripped, tensors


def few(names: Sequence[str], most: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _check_digest(file: Path) -> None:
    if handover_file(file) is None:
        return
    expected = read_handover(file).weights_sha256
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"{file}: its sha256 is {found}, but handover.json beside it describes {expected}. "
            "The file is incomplete or another one. Copy both files anew."
        )


def _unpickled(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{file}: damaged, or holds Python objects that could run code when read, and is "
            "therefore refused. If you trust it, load it with torch.load(..., weights_only=False) "
            "yourself and save its tensors with safetensors.torch.save_file."
        ) from None
    except Exception as error:  # noqa: BLE001 (a damaged file can provoke any)
        raise WeightsError(f"{file}: damaged or incomplete ({error}).") from None


def _tensors_in(content: object, file: Path) -> dict[str, Tensor]:
    """The one mapping of names to tensors, at the top or one level below."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file}: holds {type(content).__name__}, not tensors by name.")
    if _is_state(content):
        return {str(name): tensor for name, tensor in content.items()}
    found = [key for key, value in content.items() if _is_state(value)]
    if len(found) == 1:
        return {str(name): tensor for name, tensor in content[found[0]].items()}
    what = f"several sets of tensors ({found})" if found else "no set of tensors"
    raise WeightsError(
        f"{file}: {what} among its keys {few([str(key) for key in content])}. Save the one that "
        "is meant with safetensors.torch.save_file."
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def weights_digest(path: Path | None) -> str | None:
    """sha256 of a weight file, or of the one in a run folder; ``None`` where there is no file.

    A missing file is said properly when the weights are read.
    """
    if path is None:
        return None
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
