"""The run folder: what makes a run repeatable, and what refuses to mix two of them up."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from voco.config import flat, read_yaml, to_yaml
from voco.data.store import write_atomically
from voco.engine.allocator import (
    has_thread_cache,
    keep_freed_pages,
    use_large_pages,
)
from voco.engine.compiling import check_compiler
from voco.engine.settings import TrainingConfig
from voco.engine.trackers import check_trackers
from voco.errors import ConfigError, UsageError, VocoError

FREE = frozenset(
    {
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "probe",
        "probe_every",
        "trackers",
        "workers",
        "windows.workers",
    }
)
"""Settings, or whole sections of them, that may change when a run is resumed: the weights do not
depend on them."""

_PACKAGES = (
    "voco",
    "torch",
    "monai",
    "lightning-fabric",
    "numpy",
    "scipy",
    "blosc2",
    "safetensors",
)

_MEMORY = ("keeps_freed_pages", "large_pages", "thread_cache")
"""How memory is taken: speed depends on it, not a bit of any value."""

_DRAFT = re.compile(r"\.[a-z]+\.(yaml|json|jsonl|safetensors)\.\d+")
"""Names under which files are written before they are renamed."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Run:
    """A run folder that is ready to be trained in.

    Attributes:
        path: The folder.
        digest: Of the recipe without :data:`FREE` settings.
        resumed: Whether the folder was there and is gone on with.
    """

    path: Path
    digest: str
    resumed: bool

    @property
    def log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training states."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether all is done: the hand-over is written last."""
        return (self.path / "handover.json").exists()


def open_run(
    fabric: Fabric,
    path: Path,
    config: TrainingConfig,
    facts: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Make a run folder, or take up an old one. All processes call this.

    Args:
        fabric: Its first process writes.
        path: The folder.
        config: The resolved recipe.
        facts: What the run depends on beside the recipe (digests of stores, of weights); plain
            values. Kept in ``environment.json``, and compared when the run is resumed.
        resume: Go on with a run of the same recipe and facts. Where there is none yet, start.
        overwrite: Remove the run that lies there.

    Raises:
        UsageError: If the folder is not empty and neither was asked for, or is not a run; if a
            tracker, or what is to compile networks, is not installed.
        ConfigError: If recipe or facts differ from those of the run to be resumed; names them.
    """
    facts = {**facts, "processes": fabric.world_size}
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other.")
    check_trackers(config.trackers)
    if config.compiled:
        check_compiler(fabric.device)

    def open_here() -> bool:
        return _open(path, config, facts, fabric, resume=resume, overwrite=overwrite)

    resumed = first_does(fabric, open_here)
    return Run(path, digest(config), resumed)


def first_does(fabric: Fabric, action: Callable[[], Answer]) -> Answer:
    """Let the first process do something, and give its answer, or its error, to all."""
    answer: Any = None
    error: VocoError | OSError | None = None
    if fabric.is_global_zero:
        try:
            answer = action()
        except (VocoError, OSError) as caught:
            error = caught
    answer, error = fabric.broadcast((answer, error))
    if error is not None:
        raise error
    return answer


def digest(config: TrainingConfig) -> str:
    """Short hash of a recipe without the settings that may change (:data:`FREE`)."""
    fixed = {key: value for key, value in flat(config.model_dump(mode="json")) if not _free(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE


def _open(
    path: Path,
    config: TrainingConfig,
    facts: Mapping[str, Any],
    fabric: Fabric,
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    _sweep(path)
    is_run = (path / "environment.json").is_file()
    # A recipe alone is a run that was killed while it began.
    if path.is_dir() and not is_run and any(file.name != "recipe.yaml" for file in path.iterdir()):
        raise UsageError(f"{path}: is not empty, and is not a run. Choose another folder.")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; a folder is needed.")
    if is_run and resume:
        _compare(path, config, facts)
        if (path / "handover.json").exists():
            print(f"voco: {path} is finished; nothing to do.", file=sys.stderr)  # noqa: T201
        else:
            _note_resumption(path, fabric)
        return True
    if is_run and not overwrite:
        raise UsageError(
            f"{path}: holds a run. --resume goes on with it, --overwrite removes it; or choose "
            "another folder."
        )
    if is_run:
        _empty(path)
    if resume:
        print(f"voco: no run in {path} yet; starting one.", file=sys.stderr)  # noqa: T201
    path.mkdir(parents=True, exist_ok=True)
    environment = {**environment_of(fabric), "seed": config.seed, **facts}
    write_atomically(path / "recipe.yaml", to_yaml(config).encode())
    # Last: only a folder that has it is a run.
    write_atomically(path / "environment.json", json.dumps(environment, indent=2).encode())
    return False


def _sweep(path: Path) -> None:
    """Remove drafts of files that killed processes left behind."""
    for file in path.glob(".*"):
        if _DRAFT.fullmatch(file.name):
            file.unlink()


def _empty(path: Path) -> None:
    """Remove what is in a run folder; what makes it one last, so that it can be tried again."""
    mark = path / "environment.json"
    for file in path.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file != mark:
            file.unlink()
    mark.unlink()


def _compare(path: Path, config: TrainingConfig, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another recipe, other data or other weights."""
    old = dict(flat(read_yaml(path / "recipe.yaml")))
    new = dict(flat(config.model_dump(mode="json")))
    lines = [
        f"  {key}: the run has {old.get(key)!r}, asked for is {new.get(key)!r}"
        for key in {**old, **new}
        if not _free(key) and old.get(key) != new.get(key)
    ]
    known = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    plain = json.loads(json.dumps(facts))
    lines += [
        f"  {key}: the run has {known.get(key)!r}, now it is {value!r}"
        for key, value in plain.items()
        if known.get(key) != value
    ]
    if lines:
        differences = "\n".join(lines)
        hint = (
            " (The learning rate follows the number of steps: to train longer, start a new run "
            "with --weights.)"
            if old.get("steps") != new.get("steps")
            else ""
        )
        raise ConfigError(
            f"{path}: cannot be resumed, because this would be another run:\n{differences}\n"
            f"Resume it with what it has, or start anew in another folder.{hint}"
        )


def _note_resumption(path: Path, fabric: Fabric) -> None:
    """Keep in ``environment.json`` what has changed since the run began."""
    file = path / "environment.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    now = environment_of(fabric)
    changed = {
        key: value
        for key, value in json.loads(json.dumps(now)).items()
        if known.get(key) != value and key != "host"
    }
    known["resumed"] = [*known.get("resumed", []), {"host": now["host"], **changed}]
    write_atomically(file, json.dumps(known, indent=2).encode())
    if names := ", ".join(key for key in changed if key not in _MEMORY):
        text = f"voco: other {names} than when the run began: the last bits may differ."
        print(text, file=sys.stderr)  # noqa: T201


def environment_of(fabric: Fabric) -> dict[str, Any]:
    """Versions and hardware: what the last bits of a result depend on, beside the recipe."""
    on_gpu = fabric.device.type == "cuda"
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "platform": platform.platform(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(fabric.device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **dict(zip(_MEMORY, _memory(on_gpu=on_gpu), strict=True)),
    }


def _memory(*, on_gpu: bool) -> tuple[bool, bool, bool]:
    """As :data:`_MEMORY` names them; whoever uses a GPU is left with what the system does."""
    return (
        not on_gpu and keep_freed_pages(),
        not on_gpu and use_large_pages(),
        has_thread_cache(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _commit() -> str | None:
    """The commit of the program, if it runs from a git checkout."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
