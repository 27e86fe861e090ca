import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from voco.bench import step
from voco.bench.plain_step import plain_loss
from voco.bench.profiled import KINDS
from voco.bench.step import PathsDifferError, another, compared, exactness, page, ratios
from voco.bench.step_case import StepCase, cases
from voco.bench.step_path import load_ours, load_plain, prepare, run, watched
from voco.errors import UsageError
from voco.methods.voco import prediction_loss, regularization_loss, similarity

TINY = StepCase(
    name="tiny",
    backbone={"name": "resenc_unet", "features": (4, 8), "blocks": (1, 1)},
    side=8,
    volumes=2,
)


def test_the_plain_loss_is_voco_v1s():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, count, 5, generator=generator) for count in (3, 4, 3, 4)]
    queries, bases, taught_queries, taught_bases = (row.double() for row in rows)
    overlap = torch.rand(2, 3, 4, generator=generator).double() * (torch.arange(4) > 1)
    predicted = similarity(queries, taught_bases) + similarity(taught_queries, bases)
    expected = prediction_loss(predicted / 2, overlap, "v1") + regularization_loss(bases, "v1")
    plain = plain_loss(queries, bases, taught_queries, taught_bases, overlap)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("case", [TINY, replace(TINY, classes=3)], ids=["voco", "segmentation"])
def test_both_paths_give_the_same_loss_and_gradients(tmp_path, case):
    prepare(case, tmp_path)
    losses = []
    for name, way in (("plain", load_plain(case, tmp_path)), ("ours", load_ours(case))):
        result = run(way, case, 1, tmp_path / name)
        assert result["peak_bytes"] > 0
        losses.append(result["loss"])
    gradients = [load_file(tmp_path / name) for name in ("plain", "ours")]
    assert len(gradients[0]) > 5
    plain, ours = zip(losses, gradients, strict=True)
    assert compared(plain, ours, (1e-5, 1e-4))["gradient_difference"] < 1e-4


@pytest.mark.parametrize("case", [TINY, replace(TINY, classes=3)], ids=["voco", "segmentation"])
def test_both_paths_give_the_same_to_the_last_digits_of_float64(case):
    assert exactness(case)["gradient_difference"] < 1e-6


def test_a_watched_step_changes_as_much_as_one_that_is_not(tmp_path):
    prepare(TINY, tmp_path)
    seen, unseen = load_ours(TINY), load_ours(TINY)
    seconds = watched(seen, TINY)
    assert all(seconds[kind] > 0 for kind in ("convolutions", "optimizer and teacher"))
    run(unseen, TINY, 1, None)
    for one, other in zip(seen.module.parameters(), unseen.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_paths_that_differ_are_an_error():
    gradient = {"weight": torch.ones(3)}
    limits = (1e-5, 1e-3)
    assert compared((1.0, gradient), (1.0, gradient), limits)["gradient_difference"] == 0
    with pytest.raises(PathsDifferError, match="do not give the same"):
        compared((1.0, gradient), (1.0, {"weight": torch.tensor([1.0, 1.0, 1.1])}), limits)
    with pytest.raises(PathsDifferError, match="do not give the same"):
        compared((1.0, gradient), (1.001, gradient), limits)
    with pytest.raises(PathsDifferError, match=r"one path alone: \['bias'\]"):
        compared((1.0, gradient), (1.0, {**gradient, "bias": torch.ones(1)}), limits)


def test_a_ratio_is_that_of_neighbours_in_time():
    found = ratios([(10.0, 2.0), (30.0, 10.0), (8.0, 2.0)])
    assert found == {"plain": 10.0, "ours": 2.0, "ratio": 4.0, "low": 3.0, "high": 5.0}


def test_two_pairs_are_taken_however_long_they_take_and_more_while_time_is_left():
    assert another(0, 1, 0.0, 10.0)
    assert not another(1, 1, 1.0, 10.0)
    assert another(1, 3, 99.0, 10.0)
    assert not another(2, 3, 99.0, 10.0)
    assert another(2, 3, 6.0, 10.0)
    assert not another(2, 3, 7.0, 10.0)
    assert not another(3, 3, 1.0, 10.0)


def test_the_tables_show_ratios_and_the_distance_to_the_limit():
    pair = ratios([(10.0, 2.0)])
    needs = {
        "flops": 10**12,
        "touched": 10**9,
        "operators": 7,
        "flops_of": {"convolutions": 9 * 10**11},
    }
    row = {
        "name": "tiny",
        "what": "a step",
        "precision": "float32",
        "repeats": 1,
        "machine": {"convolution": 1e12, "product": 1e12, "copy": 1e10},
        "loss_difference": 0.0,
        "gradient_difference": 1e-6,
    }
    row |= dict.fromkeys(("forward", "backward", "step"), pair)
    row |= {"peak_bytes": ratios([(4e9, 1e9)]), "needs": {"plain": needs, "ours": needs}}
    row["profile"] = dict.fromkeys(KINDS, 0.5) | {"convolutions": 1.5}
    exact = {"tiny": {"loss_difference": 1e-9, "gradient_difference": 2e-8}}
    results = {"exact": exact, "rows": [row], "failed": {"other": "the plain path\nfailed"}}
    text = "\n".join(page(json.loads(json.dumps(results))))
    assert "Not measured, `other`: the plain path failed" in text
    assert "5.00 (5.00 to 5.00)" in text
    assert "4.0 → 1.0 (0.25)" in text
    assert "apart 1e-09 and 2e-08 (`tiny`)" in text
    assert "| `tiny` | ours | 1.00 | 1 | 7 | 1000 | 1.00 | 10.0 | 0.10 | 2.00 | 50% |" in text
    assert "| `tiny` | 4.50 | 1.50 (33%), 600 | 0.50 (11%) |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_not_replaced():
    with pytest.raises(UsageError, match="there is no CUDA device here"):
        cases(small=True, device="cuda", compiled=False)


def test_a_path_that_dies_or_hangs_is_named_and_the_other_cases_are_measured(monkeypatch):
    dies, hangs, works = (replace(TINY, name=name) for name in ("dies", "hangs", "works"))
    start = subprocess.run

    def broken(command, **given):
        name = json.loads((Path(command[3]) / "case.json").read_text())["name"]
        if name == dies.name:
            command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), 11)"]
        if name == hangs.name:
            command = [sys.executable, "-c", "import time; time.sleep(60)"]
            given["timeout"] = 0.5
        return start(command, **given)

    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(step, "SMALL", ())
    found = step.measured([dies, hangs, works], 1)
    assert [row["name"] for row in found["rows"]] == ["works"]
    assert "the plain path failed (-11)" in found["failed"]["dies"]
    assert "took more than" in found["failed"]["hangs"]


def test_names_of_cases_are_unlike():
    for small in (True, False):
        names = [case.name for case in cases(small=small, device="cpu", compiled=False)]
        assert len(set(names)) == len(names)
