import sys

import pytest

from voco.bench.apart import Apart, measure_apart, peak_bytes
from voco.bench.harness import summed_up

STAND_IN = """
import json, sys
plain = sys.argv[2] == "plain"
print("what a library has to say")
print(json.dumps({"seconds": 3.0 if plain else 1.5, "peak_bytes": 500 if plain else 100}))
"""


def test_each_way_runs_in_its_own_process_and_is_set_beside_the_other(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = []

    def equal(folder):
        seen.append(folder)
        return "the same"

    subject = Apart("x", "something", "stand_in", tmp_path, equal)
    timing = measure_apart(subject, 2)
    assert (timing.ratio, timing.repeats, timing.equal) == (2.0, 2, "the same")
    assert (timing.plain_bytes, timing.ours_bytes) == (500, 100)
    assert seen == [tmp_path]


def test_ratios_are_of_neighbours_not_of_medians():
    timing = summed_up("x", "", "", [(1.0, 1.0), (9.0, 3.0), (20.0, 10.0)])
    assert (timing.ratio_low, timing.ratio, timing.ratio_high) == (1.0, 2.0, 3.0)


@pytest.mark.skipif(sys.platform == "win32", reason="no such number there")
def test_peak_memory_is_at_least_what_is_held():
    before = peak_bytes()
    held = bytearray(b"x" * (before + (1 << 24)))
    assert peak_bytes() >= len(held)
