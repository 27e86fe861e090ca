"""The program: ``voco``, and ``python -m voco`` for launchers such as ``torchrun``."""

import sys

from voco.engine.allocator import leave_thread_cache


def run() -> int:
    """Run the command line of this process; returns the exit status."""
    leave_thread_cache()
    from voco.cli import main  # noqa: PLC0415 (nothing is done twice)

    return main()


if __name__ == "__main__":
    sys.exit(run())
