"""What is set holds for a whole process, so every test asks one of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = ENABLED.read_text() if ENABLED.exists() else "[never]"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's and Linux's memory")

START = """
import ctypes, os, resource
import torch
from voco.engine.allocator import keep_freed_pages, use_large_pages

def kilobytes(name, path="/proc/self/smaps_rollup"):
    return next(int(row.split()[1]) for row in open(path) if row.startswith(name))
"""


def said(code: str, **variables: str) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path), **variables},
    )
    return done.stdout.strip()


def test_freed_memory_stays_however_much_it_is():
    code = """
assert keep_freed_pages()
before = kilobytes("VmSize", "/proc/self/status")
three_gigabytes = torch.empty(3 << 28)  # never touched, so it takes none
del three_gigabytes
print(kilobytes("VmSize", "/proc/self/status") - before)
"""
    assert int(said(code)) > 2_900_000


def test_memory_that_was_freed_is_not_faulted_in_again():
    code = """
assert keep_freed_pages()
for _ in range(8):  # small blocks settle between large ones
    torch.ones(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(said(code)) < 100  # of 32768


@pytest.mark.skipif("[never]" in PAGES, reason="this system has no large pages")
def test_memory_comes_in_large_pages():
    code = """
assert use_large_pages()
tensor = torch.ones(1 << 26)
print(kilobytes("AnonHugePages"))
"""
    assert int(said(code)) > 200_000  # of 262144


def test_asking_for_large_pages_takes_no_memory():
    code = """
before = kilobytes("Rss")
use_large_pages()
print(kilobytes("Rss") - before)
"""
    assert int(said(code)) < 20_000


def test_a_limit_on_addresses_is_no_error():
    code = """
import resource
limit = (kilobytes("VmSize", "/proc/self/status") + 1_000_000) * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(use_large_pages(), float(torch.ones(1 << 20).sum()))
"""
    assert said(code) == "False 1048576.0"


def test_another_allocator_is_left_alone():
    library = "/nonexistent/libtcmalloc.so"  # the loader warns of it and goes on
    assert said("print(keep_freed_pages(), use_large_pages())", LD_PRELOAD=library) == "False False"
