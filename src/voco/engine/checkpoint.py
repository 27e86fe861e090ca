"""Checkpoints: the complete state of training, whole or not at all, and no pickle.

A checkpoint is a folder ``step-NNNNNNNN`` (so many optimizer steps are done)::

    task.safetensors       parameters and buffers of the task: student, teacher, queues
    optimizer.safetensors  moments, as PARAMETER:MOMENT
    state.json             step, optimizer settings, gradient scaler, run, sha256 of all of it

It is written under a hidden name, flushed to the disk, and renamed. What is not there when the
process dies is not missed: every random number of a step follows from the seed and its number.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from voco.data.store import write_atomically
from voco.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,})")
_FILES = ("task.safetensors", "optimizer.safetensors")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``checkpoints/`` of the run folder.
        digest: Of the recipe; a checkpoint of another one is refused.
        keep: How many of the last ones stay.
    """

    def __init__(self, folder: Path, digest: str, keep: int = 2) -> None:
        self.folder, self.digest, self.keep = folder, digest, keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that lie there, sound or not, in rising order."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return sorted(int(match.group(1)) for match in found if match)

    def clean(self) -> None:
        """Remove what killed processes left behind. No other process may be writing."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path)

    def save(self, step: int, task: nn.Module, optimizer: AdamW, scaler: dict[str, Any]) -> None:
        """Write a checkpoint and remove the oldest; one process only.

        Raises:
            CheckpointError: If it cannot be written; those that are there stay.
        """
        target = self._path(step)
        draft = self.folder / f".{target.name}.{os.getpid()}"
        try:
            draft.mkdir(parents=True)
            self._write(draft, step, task, optimizer, scaler)
            draft.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(
                f"{target}: cannot be written ({error}). The checkpoints before it are whole; "
                "make room, then go on with --resume."
            ) from None
        _flush(self.folder)
        self._prune()

    def _write(
        self,
        draft: Path,
        step: int,
        task: nn.Module,
        optimizer: AdamW,
        scaler: dict[str, Any],
    ) -> None:
        moments, groups = _optimizer_state(task, optimizer)
        for name, tensors in zip(_FILES, (_plain(task.state_dict()), moments), strict=True):
            save_file(tensors, draft / name)
        state = {
            "step": step,
            "digest": self.digest,
            "groups": groups,
            "scaler": scaler,
            "sha256": {name: _sha256(draft / name) for name in _FILES},
        }
        seal = _seal(state)
        write_atomically(
            draft / "state.json", json.dumps({**state, "seal": seal}, indent=1).encode()
        )
        for path in (*(draft / name for name in _FILES), draft):
            _flush(path)

    def newest(self) -> int | None:
        """The last sound checkpoint; damaged ones after it are named and moved out of the way.

        Raises:
            CheckpointError: If there are checkpoints, and all are damaged; or if the newest
                belongs to another recipe.
        """
        steps, damaged = self.steps(), []
        for step in reversed(steps):
            reason = _damage(self._path(step), step)
            if reason is None:
                self._set_aside(damaged, step)
                return step
            damaged.append(step)
            self._warn(step, reason)
        if steps:
            raise CheckpointError(
                f"{self.folder}: all checkpoints are damaged. Start anew with --overwrite, or in "
                "another folder."
            )
        return None

    def load(self, step: int, task: nn.Module, optimizer: AdamW) -> dict[str, Any]:
        """Put the state of a checkpoint into a task and its optimizer.

        Returns:
            The state of the gradient scaler.

        Raises:
            CheckpointError: If the checkpoint is of another recipe, or does not fit the task.
        """
        path = self._path(step)
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["digest"] != self.digest:
            raise CheckpointError(f"{path}: was written by a run of another recipe.")
        try:
            task.load_state_dict(load_file(path / _FILES[0]))
            _load_optimizer(task, optimizer, load_file(path / _FILES[1]), state["groups"])
        except (RuntimeError, KeyError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path}: does not fit {type(task).__name__}: {error}") from None
        return state["scaler"]

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _warn(self, step: int, reason: str) -> None:
        text = f"voco: {self._path(step)} is damaged ({reason}); trying the one before."
        print(text, file=sys.stderr)  # noqa: T201

    def _set_aside(self, damaged: list[int], step: int) -> None:
        # Kept for whoever wants to look; not counted among the last ones any more.
        for number in damaged:
            path = self._path(number)
            away = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(away, ignore_errors=True)
            path.rename(away)
        if damaged:
            print(f"voco: going on from step {step}.", file=sys.stderr)  # noqa: T201

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep]:
            path = self._path(step)
            # Hidden first: half a checkpoint must never look like one.
            old = path.with_name(f".{path.name}.old")
            path.rename(old)
            shutil.rmtree(old)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, sound or not."""
    return (path / _FILES[0]).is_file()


def read_task(path: Path) -> dict[str, Tensor]:
    """The tensors of the task in the folder of a checkpoint.

    Raises:
        CheckpointError: If it is damaged.
    """
    match = _NAME.fullmatch(path.name)
    damage = _damage(path, int(match.group(1))) if match else "the folder was renamed"
    if damage is not None:
        raise CheckpointError(f"{path}: damaged ({damage}). Use another checkpoint of the run.")
    return load_file(path / _FILES[0])


def _damage(path: Path, step: int) -> str | None:
    """What is wrong with a checkpoint."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.pop("seal") != _seal(state) or state["step"] != step:
            return "state.json was changed"
        for name, wanted in state["sha256"].items():
            if _sha256(path / name) != wanted:
                return f"the checksum of {name} does not match"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _plain(state: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, as safetensors wants them.

    Raises:
        CheckpointError: If something else than tensors is to be kept.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"'{name}' is {type(value).__name__}: only tensors can be kept in a checkpoint."
            )
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        plain[name] = tensor if whole and place not in seen else tensor.clone()
        seen.add(place)
    return plain


def _optimizer_state(
    task: nn.Module, optimizer: AdamW
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Moments by parameter name, and what else each group holds."""
    names: dict[Tensor, str] = {p: name for name, p in task.named_parameters()}
    moments = {
        f"{names[parameter]}:{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [names[parameter] for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return _plain(moments), groups


def _load_optimizer(
    task: nn.Module,
    optimizer: AdamW,
    moments: dict[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    names: dict[Tensor, str] = {p: name for name, p in task.named_parameters()}
    ours = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in groups]
    if ours != theirs:
        raise ValueError("the optimizer's groups of parameters differ.")
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.rpartition(":")
        state.setdefault(name, {})[moment] = value
    order = [name for group in ours for name in group]
    unknown = set(state) - set(order)
    if unknown:
        raise ValueError(f"moments of unknown parameters: {sorted(unknown)}.")
    start = 0
    numbered = []
    for group in groups:
        stop = start + len(group["params"])
        # JSON knows no tuples.
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}
        numbered.append({**settings, "params": list(range(start, stop))})
        start = stop
    indexed = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": indexed, "param_groups": numbered})


def _seal(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
