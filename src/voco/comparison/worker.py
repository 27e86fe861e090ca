"""A process that does jobs, each in a process of its own.

Each job is a fork of a process that has imported everything and computed nothing: it starts at
once, its memory and its time are its own, and whatever becomes of it (even a kill for want of
memory) is told and hurts no other. The one that forks must be a program of its own, as forking
after threads or a GPU were used is not safe:

    python -m voco.comparison.worker

It reads one JSON object per job from its standard input (``task``, and ``log``, the file that
takes all that the job prints) and writes two to its standard output: ``process``, the number of
the forked process, and when that has ended what it came to. At the end of its input the job is
asked to stop and the program ends.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from voco.comparison.jobs import Task, do
from voco.config import parse
from voco.errors import Interrupted, VocoError

_PATIENCE_SECONDS = 0.1
"""Between two looks whether a job has ended."""


class Worker:
    """The program above, seen from the process that has jobs to give.

    Its processes are of a session of their own, so that signals reach a job through here alone.
    """

    def __init__(self) -> None:
        self._program: subprocess.Popen[bytes] | None = None
        self._job: int | None = None
        self._unread = b""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def process(self) -> int:
        """The number of the program's process, which ends after the job that it does."""
        return self._started().pid

    def run(
        self, task: Task, log: Path, beat: Callable[[], None], every_seconds: float
    ) -> dict[str, Any]:
        """Have a job done.

        Args:
            task: The job.
            log: What it prints goes here.
            beat: Called again and again while it runs; what it raises ends the job at once.
            every_seconds: How often.

        Returns:
            ``status``, ``reason``, ``seconds``, ``cpu_seconds``, and what the job tells.
        """
        program = self._started()
        assert program.stdin is not None
        order = {"task": task.model_dump(mode="json"), "log": str(log)}
        try:
            program.stdin.write(json.dumps(order).encode() + b"\n")
            program.stdin.flush()
            self._job = int(self._answer(program, beat, every_seconds)["process"])
            return self._answer(program, beat, every_seconds)
        except (EOFError, BrokenPipeError):
            self._end()
            reason = "the program that does the jobs was killed, most likely for want of memory"
            return {"status": "failed", "reason": reason}
        finally:
            self._job = None

    def signal(self, number: int) -> bool:
        """Pass a signal on to the job that is being done; false if there is none."""
        if self._job is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._job, number)
        return True

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._program is None:
            self._unread = b""
            self._program = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        return self._program

    def _answer(
        self, program: "subprocess.Popen[bytes]", beat: Callable[[], None], every_seconds: float
    ) -> dict[str, Any]:
        assert program.stdout is not None
        source = program.stdout.fileno()
        while b"\n" not in self._unread:
            if select.select([source], [], [], every_seconds)[0]:
                # Not by readline, which may take a second answer along and hide it from select.
                read = os.read(source, 1 << 16)
                if not read:
                    raise EOFError
                self._unread += read
                continue
            try:
                beat()
            except BaseException:
                self.signal(signal.SIGKILL)
                self._end()
                raise
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _end(self) -> None:
        if self._program is not None:
            for stream in (self._program.stdin, self._program.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._program.wait()
            self._program = None


def main() -> None:
    """Do jobs until the input ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray word must not look like an answer
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _import_all()
    # Its only threads are those of the linear algebra, which sees to itself in a fork.
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    while line := sys.stdin.readline():
        order = json.loads(line)
        _tell(answers, _forked(parse(Task, order["task"], "job"), Path(order["log"]), answers))


def _import_all() -> None:
    """What every job would import when it comes to it: seconds, in each of them."""
    import torch.utils.tensorboard  # noqa: F401, PLC0415

    import voco.figures  # noqa: F401, PLC0415
    from voco.evaluation.surface import areas_mm2  # noqa: PLC0415

    areas_mm2((1.0, 1.0, 1.0))


def _forked(task: Task, log: Path, answers: int) -> dict[str, Any]:
    """What a job came to that was done in a fork of this process."""
    receiver, sender = os.pipe()
    began = time.monotonic()
    process = os.fork()
    if not process:
        os.close(receiver)
        _child(task, log, sender)
    os.close(sender)
    _tell(answers, {"process": process})
    # A word from it could fill the pipe, but it says one short line, at the very end.
    status, usage = _awaited(process)
    with os.fdopen(receiver, encoding="utf-8") as stream:
        said = stream.read()
    times = {
        "seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    return {**(json.loads(said) if said else _killed(status, log)), **times}


def _awaited(process: int) -> tuple[int, Any]:
    """Wait until a process ends; tell it to stop when nobody is left who wants to know."""
    asked = False
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return status, usage
        ready = not asked and select.select([sys.stdin], [], [], _PATIENCE_SECONDS)[0]
        if asked:
            time.sleep(_PATIENCE_SECONDS)
        elif ready:  # nothing is sent while a job runs, so this is the end of the input
            os.kill(process, signal.SIGTERM)
            asked = True


def _killed(status: int, log: Path) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        reason = "its process was killed, most likely for want of memory"
    else:
        how = f"signal {-code}" if code < 0 else f"status {code}"
        reason = f"its process ended with {how} and told nothing; see {log}"
    return {"status": "failed", "reason": reason}


def _child(task: Task, log: Path, sender: int) -> None:
    """Do the job, tell what came of it, end."""
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _stop)
    answer = json.dumps(_attempt(task))
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(sender, "w", encoding="utf-8") as stream:
        stream.write(answer)
    os._exit(0)  # what this process shares with the one that forked it is not its own to end


def _attempt(task: Task) -> dict[str, Any]:
    try:
        return {"status": "done", **do(task)}
    except KeyboardInterrupt:
        return {"status": "interrupted"}
    except VocoError as error:
        traceback.print_exc()
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped", 128 + number)


def _tell(answers: int, answer: dict[str, Any]) -> None:
    # If nobody is left to read it, the input has ended as well, and all stops on account of that.
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
