"""Reading tensors from files, and nothing but tensors."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from voco.engine.checkpoint import is_checkpoint
from voco.errors import WeightsError
from voco.weights.handover import WEIGHTS_FILE, handover_file, read_handover

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""


_LEFTOVERS = re.compile(
    r"argparse\.Namespace"
    r"|numpy\.(_?core\.)?(multiarray\.(scalar|_reconstruct)|dtype|ndarray)"
    r"|numpy\.dtypes\.\w+"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path"
    r"|torch\.optim\.[\w.]+"
    r"|torch\.(cuda\.)?amp\.grad_scaler\.\w+"
    r"|torch\.torch_version\.TorchVersion"
    r"|collections\.defaultdict"
    r"|builtins\.(dict|list|set|tuple|int|float|complex|slice)"
)
"""Objects that training programs leave in checkpoints beside the tensors. They are not made: an
empty object that ignores everything is put in their place, and nothing of theirs is imported."""


@dataclass(frozen=True)
class Content:
    """What a weight file holds.

    Attributes:
        tensors: By name, on the CPU.
        key: Under which key of the file they were; empty if at the top.
        facts: Plain values that lay beside them.
        unread: Objects beside them that were not made, by the names of their classes.
        about: What voco wrote into the file's header, if it wrote the file.
        before_monai_1_5: Whether the file is certainly older than MONAI 1.5.
    """

    tensors: dict[str, Tensor]
    key: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    before_monai_1_5: bool = False


class _StandIn:
    """Takes the place of an object that is not wanted; does nothing, whatever is done to it."""

    def __init__(self, *_: object) -> None: ...

    def __new__(cls, *_: object) -> "_StandIn":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


def _mapping(*_: object) -> dict[Any, Any]:
    """Takes the place of a mapping, which torch goes on to fill."""
    return {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a run folder or of a weight file (:func:`read_content`).

    Raises:
        WeightsError: As :func:`read_content`.
    """
    return read_content(path).tensors


def read_content(path: Path) -> Content:
    """The tensors of a run folder or of a weight file, and what lies beside them.

    Reads safetensors, and files of ``torch.save`` as far as they hold tensors, plain values, and
    what training programs leave behind (optimizers, options, numbers of numpy), which is passed
    over. A ``handover.json`` beside ``weights.safetensors`` must name its sha256.

    Raises:
        WeightsError: If the file is missing, damaged, not what ``handover.json`` describes, or of
            a kind that could run code when it is read.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"{file}: no such file. Name the folder of a finished run, one of a run's "
            "checkpoints/step-NNNNNNNN, or a weight file."
        )
    if file.suffix == ".safetensors":
        _check_digest(file)
        try:
            return Content(safetensors.torch.load_file(file), about=_header(file))
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: damaged or incomplete ({error}).") from None
    if file.suffix in {".pt", ".pth", ".ckpt", ".bin"}:
        return _content(file)
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


def _header(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get("voco", "{}")
    try:
        about = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return about if isinstance(about, dict) else {}


def _content(file: Path) -> Content:
    unread = _leftovers(file)
    key, tensors, facts = _tensors_in(_unpickled(file, unread), file)
    return Content(tensors, key, facts, unread, before_monai_1_5=_before_monai_1_5(file))


def _leftovers(file: Path) -> tuple[str, ...]:
    """Classes of the objects in a file that are passed over.

    Raises:
        WeightsError: If it also names something that is not known to be harmless.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # noqa: BLE001 (a damaged file can provoke any; reading it says which)
        return ()
    strange = sorted(name for name in named if not _LEFTOVERS.fullmatch(name))
    if strange:
        raise WeightsError(_dangerous(file, f" ({few(strange)})"))
    return tuple(sorted(named))


def _dangerous(file: Path, what: str = "") -> str:
    return (
        f"{file}: damaged, or holds Python objects{what} that could run code when read, and is "
        "therefore refused. If you trust it, load it with torch.load(..., weights_only=False) "
        "yourself and save its tensors with safetensors.torch.save_file."
    )


def _unpickled(file: Path, unread: Sequence[str]) -> object:
    # One class for each name: torch looks a class up by its name, and by itself.
    stand_ins: list[Any] = [
        (_mapping if name == "collections.defaultdict" else type("Unread", (_StandIn,), {}), name)
        for name in unread
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(_dangerous(file)) from None
    except Exception as error:  # noqa: BLE001 (a damaged file can provoke any)
        raise WeightsError(f"{file}: damaged or incomplete ({error}).") from None


def _before_monai_1_5(file: Path) -> bool:
    """Whether a file was written by torch before 2.1; MONAI 1.5 asks for 2.4.

    From 2.1 on torch notes the order of bytes in the archive.
    """
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return not any(name.endswith("/byteorder") for name in archive.namelist())


def _tensors_in(content: object, file: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The one mapping of names to tensors, at the top or one level below; its key, and the rest."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file}: holds {type(content).__name__}, not tensors by name.")
    if _is_state(content):
        return "", {str(name): tensor for name, tensor in content.items()}, {}
    found = [key for key, value in content.items() if _is_state(value)]
    if len(found) == 1:
        tensors = {str(name): tensor for name, tensor in content[found[0]].items()}
        return str(found[0]), tensors, _plain(content)
    what = f"several sets of tensors ({found})" if found else "no set of tensors"
    raise WeightsError(
        f"{file}: {what} among its keys {few([str(key) for key in content])}. Save the one that "
        "is meant with safetensors.torch.save_file."
    )


def _plain(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What can be shown: numbers, texts, and mappings of them."""
    shown: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, str | int | float | bool):
            shown[str(key)] = value
        elif isinstance(value, Mapping) and not _is_state(value) and (inner := _plain(value)):
            shown[str(key)] = inner
    return shown


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def weights_digest(path: Path | None) -> str | None:
    """sha256 of a weight file, or of the one in a run folder; ``None`` where there is no file.

    Of a checkpoint it is that of ``state.json``, which holds those of the other files. A
    missing file is said properly when the weights are read.
    """
    if path is None:
        return None
    file = path
    if path.is_dir():
        file = path / ("state.json" if is_checkpoint(path) else WEIGHTS_FILE)
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
