"""SIGTERM and Ctrl-C: finish the step, write a checkpoint, stop."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes a signal instead of dying by it, while the context lasts.

    A second Ctrl-C is taken at its word and stops at once. (Not under ``torchrun``, which sends
    signals on to processes that have them already.) Outside the main thread, where Python allows
    no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "Interruption":
        if dist.is_initialized():
            # Its own group on the CPU: agreeing must not wait for the GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            # None: a handler that was not set by Python, and cannot be set by it again.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def requested(self) -> signal.Signals | None:
        """The signal that any process has got; the same answer in all. All must ask together."""
        number = self.signal or 0
        if self._group is not None:
            flag = torch.tensor(int(number))
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            number = int(flag)
        return signal.Signals(number) if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT and self._group is None:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = signal.Signals(number)
            if os.environ.get("RANK", "0") == "0":
                text = f"\n{self.signal.name}: finishing this step, then writing a checkpoint.\n"
                os.write(sys.stderr.fileno() if _has_file(sys.stderr) else 2, text.encode())


def _has_file(stream: Any) -> bool:  # noqa: ANN401 (notebooks replace stderr by all sorts)
    try:
        stream.fileno()
    except (AttributeError, OSError):
        return False
    return True
