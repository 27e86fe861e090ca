"""Keep freed memory in the process: on a CPU, asking for it anew is what costs.

glibc gives large blocks back to the system as soon as they are freed, and every page of the next
tensor is then cleared and mapped again on first touch. A training step allocates gigabytes in
blocks of the same sizes over and over, so keeping them is safe and much faster. Values do not
change by it.
"""

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of ``mallopt``'s parameters (glibc's malloc.h)."""

_NEVER = 2**31 - 1
_PAD_BYTES = 64 << 20


@cache
def keep_freed_pages() -> bool:
    """Tell glibc to keep freed memory; returns whether it could be told.

    For the whole process, from now on. Does nothing on other systems, and where another
    allocator is preloaded (``LD_PRELOAD``).
    """
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(mallopt(number, value) == 1 for number, value in wanted)
