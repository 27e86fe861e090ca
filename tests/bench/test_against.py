import json

import pytest

from voco.bench.against import against, read_results
from voco.errors import UsageError


def results(loss, step):
    each = {"ratio": step}
    row = {"name": "unet", "device": "cpu", "precision": "float32", "compiled": False}
    row |= dict.fromkeys(("forward", "backward", "step", "peak_bytes"), each)
    return {"timings": [{"name": "loss", "ratio": loss}], "step": {"rows": [row]}}


def test_a_ratio_is_set_beside_its_older_one():
    table = against(results(12.0, 5.0), results(6.0, 4.0))
    assert "| loss | 6.00 | 12.00 | 2.00 |" in table
    assert "| unet (cpu, float32): step | 4.00 | 5.00 | 1.25 |" in table


def test_what_the_older_file_lacks_is_left_out():
    table = against(results(12.0, 5.0), {"timings": [{"name": "loss", "ratio": 6.0}]})
    assert len(table) == 3


def test_nothing_in_common_is_said():
    assert against(results(1.0, 1.0), {"timings": []}) == [
        "Nothing that was measured here is in the older file."
    ]


@pytest.mark.parametrize("content", ["no json", "[1]", json.dumps({"timings": [{}]})])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    file = tmp_path / "old.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"old\.json is not a performance\.json"):
        read_results(file)
