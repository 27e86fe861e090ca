"""Keep freed memory in the process, in large pages: on a CPU, memory is what a step waits for.

glibc gives large blocks back to the system as soon as they are freed, and every page of the next
tensor is then cleared and mapped again on first touch. A training step allocates gigabytes in
blocks of the same sizes over and over, so keeping them is safe and much faster. And Linux maps
memory in pages of 4 kB unless it is asked for larger ones (on systems whose
``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``), so that a processor spends a
tenth of a step looking up where they are.

Kept memory must fit again. torch asks for blocks that start at multiples of 64 bytes, so glibc
(2.36, where this was seen) takes 96 bytes more and cuts off what it does not need at both ends.
These scraps go to its caches of small blocks, from there to something small that lives on, and when
the large block is freed, its place is too short for another one of the same size. Of a step that
used 5.5 GB at most, 8.4 GB were touched; without these caches, 6.6. One of them can only be left
before a program begins, by its environment (:func:`leave_thread_cache`).

Values do not change by any of this.
"""

import contextlib
import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_MXFAST, _TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = 1, -1, -2, -4
"""Numbers of ``mallopt``'s parameters (glibc's malloc.h)."""

_NEVER = -1
"""As a size the largest there is; the largest ``int`` would be 2 GB, which a step has free."""

_PAD_BYTES = 64 << 20

_HUGEPAGE = 14
"""``MADV_HUGEPAGE`` (Linux's mman.h)."""

_PAGE_BYTES = 2 << 20
"""A large page of most processors; where theirs are larger, fewer are used."""

_STRICT = "2"
"""``vm.overcommit_memory`` of systems that count memory as used once it is asked for."""

_TUNABLES, _CACHED = "GLIBC_TUNABLES", "glibc.malloc.tcache_count"
"""What glibc reads as a program begins, and how many small blocks of a size a thread keeps."""


@cache
def keep_freed_pages() -> bool:
    """Tell glibc to keep freed memory; returns whether it could be told.

    For the whole process, from now on. Does nothing on other systems, and where another
    allocator is preloaded (``LD_PRELOAD``).
    """
    if not _glibc_allocates():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES), (_MXFAST, 0))
    return all(mallopt(number, value) == 1 for number, value in wanted)


@cache
def use_large_pages() -> bool:
    """Ask Linux for pages of 2 MB for all memory to come; returns whether it takes the wish.

    For what uses the same memory over and over, since a large page takes longer to get. It keeps
    freed memory (:func:`keep_freed_pages`): where that is not possible, this is not either.

    glibc takes memory from the end of what it has, and a wish holds for addresses. So addresses for
    most of the machine's memory are taken at once and handed back to glibc, which keeps them. That
    takes no memory; programs that show a process's addresses (``VIRT``) show them.
    """
    if not keep_freed_pages() or _read("/proc/sys/vm/overcommit_memory") == _STRICT:
        return False
    glibc = ctypes.CDLL(None)
    glibc.malloc.restype = ctypes.c_void_p
    glibc.malloc.argtypes = [ctypes.c_size_t]
    glibc.free.argtypes = [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 * 3
    block = glibc.malloc(size)
    if not block:  # a limit is set on addresses (ulimit -v)
        return False
    start = -(-block // _PAGE_BYTES) * _PAGE_BYTES
    length = (block + size - start) // _PAGE_BYTES * _PAGE_BYTES
    taken = glibc.madvise(start, length, _HUGEPAGE) == 0
    glibc.free(block)
    return taken and "[never]" not in _read("/sys/kernel/mm/transparent_hugepage/enabled")


def leave_thread_cache() -> None:
    """Start this program anew without glibc's cache of small blocks; nothing if that was done.

    For the beginning of a program: what it did so far is done once more. Where it cannot be
    started anew it goes on, with the cache. A cache that the environment sets stays as it is set.
    """
    if _glibc_allocates() and _CACHED not in os.environ.get(_TUNABLES, ""):
        with contextlib.suppress(OSError):
            os.execve(sys.executable, sys.orig_argv, environment(thread_cache=False))


def has_thread_cache() -> bool:
    """Whether glibc keeps small blocks for the threads of this process."""
    return _glibc_allocates() and f"{_CACHED}=0" not in os.environ.get(_TUNABLES, "").split(":")


def environment(*, thread_cache: bool) -> dict[str, str]:
    """This process's environment, for one with or without glibc's cache of small blocks."""
    given = os.environ.get(_TUNABLES, "").split(":")
    words = [word for word in given if word and not word.startswith(_CACHED)]
    if not thread_cache:
        words.append(f"{_CACHED}=0")
    others = {name: value for name, value in os.environ.items() if name != _TUNABLES}
    return others | ({_TUNABLES: ":".join(words)} if words else {})


@cache
def _glibc_allocates() -> bool:
    """Whether memory comes from glibc, and not from another allocator that is preloaded."""
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return False
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):  # musl does not know the name
        return False


def _read(path: str) -> str:
    """A setting of the system, or nothing if there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
