"""What is set holds for a whole process, so every test asks one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from voco.engine.allocator import environment, has_thread_cache

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = ENABLED.read_text() if ENABLED.exists() else "[never]"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's and Linux's memory")

TUNABLES = environment(thread_cache=False)["GLIBC_TUNABLES"]

START = """
import ctypes, os, random, resource, sys
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
    assert int(said(code, GLIBC_TUNABLES=TUNABLES)) < 100  # of 32768


CROWD = """
keep_freed_pages()
heap = lambda: kilobytes("VmSize", "/proc/self/status")
before, draw = heap(), random.Random(0)
small, blocks = [], []
for _ in range(20_000):  # like a step: blocks of a few sizes come and go, small things stay
    blocks.append(torch.empty(draw.choice([1, 2, 3]) << 20, dtype=torch.uint8))
    small += [torch.empty(0) for _ in range(3)]
    if len(blocks) > 100:
        del blocks[draw.randrange(100)]
print(heap() - before)
"""


def test_without_the_cache_of_small_blocks_a_block_fits_where_one_of_its_size_was():
    used = 100 * 2 * 1024  # kB; with the cache, glibc 2.36 takes 10 to 100 times as much
    assert used < int(said(CROWD, GLIBC_TUNABLES=TUNABLES)) < 5 * used


def test_a_program_starts_anew_without_the_cache_once():
    code = """
from voco.engine.allocator import has_thread_cache, leave_thread_cache
print("begun", flush=True)
leave_thread_cache()
print(has_thread_cache(), sys.argv)
"""
    assert said(code).split("\n") == ["begun", "begun", "False ['-c']"]


def test_a_cache_that_the_user_sets_stays():
    code = """
from voco.engine.allocator import has_thread_cache, leave_thread_cache
leave_thread_cache()
print(has_thread_cache(), os.environ["GLIBC_TUNABLES"])
"""
    set_by_user = "glibc.malloc.tcache_count=3"
    assert said(code, GLIBC_TUNABLES=set_by_user) == f"True {set_by_user}"


def test_where_the_program_cannot_start_anew_it_goes_on():
    code = """
from voco.engine.allocator import has_thread_cache, leave_thread_cache
sys.executable = "/nonexistent/python"
leave_thread_cache()
print(has_thread_cache())
"""
    assert said(code) == "True"


def test_the_command_line_runs_without_the_cache():
    code = """
import atexit, runpy
atexit.register(lambda: print(os.environ["GLIBC_TUNABLES"]))
sys.argv = ["voco", "--version"]
runpy.run_module("voco", run_name="__main__")
"""
    assert said(code).split("\n")[1:] == ["glibc.malloc.tcache_count=0"]


def test_other_settings_of_glibc_are_kept(monkeypatch):
    other = "glibc.malloc.check=1"
    monkeypatch.setenv("GLIBC_TUNABLES", f"{other}:glibc.malloc.tcache_count=0")
    assert not has_thread_cache()
    assert environment(thread_cache=False) == dict(os.environ)
    assert environment(thread_cache=True) == {**os.environ, "GLIBC_TUNABLES": other}


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
