"""Who does which job, agreed upon through files alone: safe on a file system that many share.

A claim on a job is a file ``JOB.NUMBER.claim`` that could be made because it was not there (the
one thing that file systems promise to do for one process only). Its owner touches it every now
and then; one that was not touched for long is stale, and whoever wants the job makes the claim of
the next higher number. A claim is held by whoever, after making it, sees no other beside it but
those that he found stale; otherwise he takes his own back. So two processes may both give way to
each other, but never both go ahead.

All times are those of the file system, so clocks of machines need not agree. A process that died
on the same machine is known to be dead at once.
"""

import json
import os
import platform
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 20.0
"""How often an owner touches its claim."""

STALE_SECONDS = 600.0
"""A claim that was not touched for so long is of a dead process. Far above the heartbeat, since
network file systems may tell times that are a minute old."""

_NAME = re.compile(r"(.+)\.(\d+)\.claim")


@dataclass(frozen=True)
class Claim:
    """A job that is ours, until it is given back."""

    file: Path
    token: str

    def beat(self) -> bool:
        """Say that we are alive; false if another has taken the job over meanwhile."""
        if _token(self.file) != self.token or _numbers(self.file)[-1] != _number(self.file):
            return False
        os.utime(self.file)
        return True

    def release(self) -> None:
        """Give the job back; also removes stale claims below."""
        if _token(self.file) != self.token:
            return
        for number in _numbers(self.file):
            if number <= _number(self.file):
                _numbered(self.file, number).unlink(missing_ok=True)


class Claims:
    """The claims in a folder.

    Args:
        folder: Where; made if it is not there.
        stale_seconds: After how long without a sign a claim counts as left behind.
    """

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self._folder, self._stale_seconds = folder, stale_seconds
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, job: str, helper: int | None = None) -> Claim | None:
        """Claim a job; ``None`` if another process has it.

        Args:
            job: Its name.
            helper: A process that does the job for this one: as long as it lives, the job is held.
        """
        there = self._claims(job)
        if any(not self._stale(file) for file in there.values()):
            return None
        claim = Claim(self._folder / f"{job}.{max(there, default=0) + 1}.claim", _new_token())
        if not _make(claim, helper):
            return None
        others = {n: f for n, f in self._claims(job).items() if f != claim.file}
        if others.keys() <= there.keys() and all(map(self._stale, others.values())):
            return claim
        claim.file.unlink(missing_ok=True)
        return None

    def held(self) -> dict[str, str]:
        """Jobs that are being done, and where."""
        found: dict[str, str] = {}
        for file in sorted(self._folder.glob("*.claim")):
            match = _NAME.fullmatch(file.name)
            if match and not self._stale(file):
                found[match[1]] = str(_content(file).get("host", "somewhere"))
        return found

    def _claims(self, job: str) -> dict[int, Path]:
        numbers = _numbers(self._folder / f"{job}.0.claim")
        return {number: self._folder / f"{job}.{number}.claim" for number in numbers}

    def _stale(self, file: Path) -> bool:
        content = _content(file)
        if content.get("machine") == _machine():
            # Whatever the time: it lives, or it does not. (A stopped one lives.)
            return not any(_alive(*each) for each in content["processes"])
        try:
            touched = file.stat().st_mtime
        except FileNotFoundError:  # given back meanwhile
            return True
        return self._now() - touched > self._stale_seconds

    def _now(self) -> float:
        """The time as the file system has it."""
        file = self._folder / f".clock.{_new_token()}"
        file.touch()
        try:
            return file.stat().st_mtime
        finally:
            file.unlink(missing_ok=True)


def _make(claim: Claim, helper: int | None) -> bool:
    """Write the file of a claim, unless it is there."""
    processes = [os.getpid(), *([] if helper is None else [helper])]
    content = {
        "token": claim.token,
        "host": platform.node(),
        "machine": _machine(),
        "processes": [(process, _began(process)) for process in processes],
    }
    try:
        # Whoever reads it before it is written knows at least that it was made just now.
        with claim.file.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(content))
    except FileExistsError:
        return False
    return True


def _content(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _token(file: Path) -> str | None:
    return _content(file).get("token")


def _number(file: Path) -> int:
    match = _NAME.fullmatch(file.name)
    assert match
    return int(match[2])


def _numbered(file: Path, number: int) -> Path:
    match = _NAME.fullmatch(file.name)
    assert match
    return file.with_name(f"{match[1]}.{number}.claim")


def _numbers(file: Path) -> list[int]:
    """The numbers of all claims on the job of a claim."""
    match = _NAME.fullmatch(file.name)
    assert match
    names = [_NAME.fullmatch(name) for name in os.listdir(file.parent)]  # noqa: PTH208 (fresh)
    return sorted(int(found[2]) for found in names if found and found[1] == match[1])


def _new_token() -> str:
    return secrets.token_hex(8)


def _machine() -> str:
    """Where process numbers mean the same: a boot of a machine, and a container in it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _alive(process: int, began: str | None) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _began(process) == began


def _began(process: int) -> str | None:
    """When a process was started: numbers are used again. ``None`` where nobody tells."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
