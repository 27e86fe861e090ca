"""The plain paths and ours make the same, on what is small enough for a test."""

import numpy as np
import pytest
import torch

from voco.bench import memory, metrics, predicting, preparing, sampling
from voco.bench.apart import measure_apart
from voco.bench.ct import ct
from voco.data.store import Preprocessing, Store
from voco.data.windows import WindowsConfig


def test_the_ct_is_one():
    scan = ct((24, 20, 16), 100.0)
    assert scan.array.dtype == np.int16
    assert scan.grid.orientation == "LPS"
    assert scan.array.min() == -1024
    assert (np.abs(scan.array) < 200).mean() > 0.1


def test_the_same_mask_is_predicted(tmp_path, capsys):
    subject = predicting.subject(tmp_path, (40, 40, 30), 300.0, roi=16, spacing_mm=12.0)
    for way in ("plain", "ours"):
        predicting.main(tmp_path, way)
    masks = [np.load(tmp_path / f"{way}.npy") for way in ("plain", "ours")]
    assert masks[0].shape == (40, 40, 30)
    assert len(np.unique(masks[0])) > 5
    assert (masks[0] == masks[1]).mean() > 0.999
    assert "same class on" in subject.equal(tmp_path)
    assert '"peak_bytes"' in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_the_same_body_is_prepared(tmp_path):
    subject = preparing.subject(tmp_path, (48, 40, 40), 200.0)
    preparing.plain(tmp_path / "ct.nii.gz", tmp_path / "plain.npy")
    store = Store.create(tmp_path / "store", preparing.PREPROCESSING)
    assert store.preprocessing == Preprocessing(spacing_mm=(1.5, 1.5, 1.5), foreground=True)
    outcome = preparing.ours(tmp_path / "ct.nii.gz", store.path)
    store.add([outcome.case])
    means = preparing.means(tmp_path)
    assert means[0] == pytest.approx(means[1], abs=0.01)
    assert "voxels" in subject.equal(tmp_path)


def test_the_same_metrics_are_measured():
    (subject,) = metrics.subjects(600.0, 8.0)
    first, second = subject.plain(), subject.ours()
    assert len(first) == 3 * 13
    assert np.allclose(first, second, atol=1e-6, equal_nan=True)
    assert "39 values" in subject.equal(first, second)


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_the_same_crops_are_on_the_device(tmp_path, fit):
    store = sampling.small_store(tmp_path, (16, 16, 8), 300.0)
    config = WindowsConfig(fit=fit, foreground=False, workers=0)
    setting = sampling.Setting("x", (2, 2, 1), 8, 2, config)  # the window is the whole volume
    sampling.leave(store, tmp_path, setting)
    first = sampling.plain(tmp_path / "volume.npy", setting)()
    second = sampling.ours(sampling.loader(store, setting), setting)()
    assert first.shape == (6, 1, 8, 8, 8)
    assert torch.allclose(first, second, atol=1e-6)
    assert first.std() > 0


def test_samples_are_timed_in_processes_that_leave_the_same_crops(tmp_path):
    (_, _, subject) = sampling.subjects(tmp_path, (40, 40, 20))
    timing = measure_apart(subject, 1)
    assert timing.plain_seconds > 0 < timing.ours_seconds
    assert timing.equal == "same crops, largest difference 0e+00"


def test_the_parts_of_a_sample_are_those_that_it_has(tmp_path):
    store = sampling.small_store(tmp_path, (40, 40, 20), 300.0)
    found = {each.name: sampling.parts(store, each) for each in sampling.SETTINGS}
    have = {name: {part for part, spent in row.items() if spent} for name, row in found.items()}
    whole = set(sampling.PARTS)
    assert have["sample-v1"] == whole
    assert have["sample-v2"] == whole - {"resampling"}
    assert have["sample"] == whole - {"resampling", "cutting"}
    lines = sampling.page({"x": dict.fromkeys(sampling.PARTS, 0.0015)})
    assert lines[-1] == "| `x` | 1.5 | 1.5 | 1.5 | 1.5 | 6.0 |"


def test_what_the_loader_holds_is_watched_over_many_steps(tmp_path):
    store = sampling.small_store(tmp_path, (24, 24, 24), 300.0)
    row = memory.watch(store, 0, 600)
    assert row["steps"] == 600
    assert row["first_bytes"] > 0
    assert "| 0 | 600 |" in memory.page([row])[-1]
