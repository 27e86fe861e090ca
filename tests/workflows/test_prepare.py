"""Scans into a store."""

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from voco.data.imageio import write_image
from voco.data.store import Store
from voco.errors import DataError, StoreError, UsageError
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows import prepare as workflow
from voco.workflows.prepare import prepare

REAL = Path(__file__).parents[2] / os.environ.get("VOCO_REAL_DATA", "../shared/data")


def write_scan(path, *, seed=0, shape=(24, 20, 16), label=None, array=None):
    """A CT-like scan (air, a body, bone) in LPS."""
    grid = Grid(shape, np.diag([-1.0, -1.0, 2.0, 1.0]))
    if array is None:
        array = np.full(shape, -1000, np.int16)
        body = array[4:-4, 4:-4, 2:-2]
        body[:] = np.random.default_rng(seed).integers(-100, 200, body.shape)
        array[8:12, 8:12, 4:8] = 700
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Volume(array[None], grid), path)
    if label is not None:
        mask = (array > 500).astype(np.uint8)
        label.parent.mkdir(parents=True, exist_ok=True)
        write_image(Volume(mask[None], grid), label)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for number in range(3):
        write_scan(
            folder / "imagesTr" / f"s{number}.nii.gz",
            seed=number,
            label=folder / "labelsTr" / f"s{number}.nii.gz" if number else None,
        )
    return folder


def lines_of(store):
    return [json.loads(line) for line in (store / "quality.jsonl").read_text().splitlines()]


def content_of(path):
    store = Store(path)
    return {
        name: (
            case.model_dump(exclude={"revision", "warnings"}),
            store.read(name).tobytes(),
            store.read_label(name).tobytes() if case.has_label else None,
        )
        for name, case in store.cases.items()
    }


def test_whoever_prepares_goes_on_with_as_many_threads_as_before(scans, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        prepare(scans, tmp_path / "store", workers=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_scans_become_cases_in_ras_at_the_spacing_asked_for(scans, tmp_path):
    report = prepare(scans, tmp_path / "store", spacing_mm=2.0, workers=1)
    assert (report.taken, report.refused, report.skipped, report.complete) == (3, 0, 0, True)
    store = Store(tmp_path / "store")
    assert len(store.cases) == 3
    case = next(case for case in store.cases.values() if case.has_label)
    assert case.modality == "CT"
    assert case.grid.orientation == "RAS"
    assert case.shape == (12, 10, 16)
    assert case.spacing_mm == (2.0, 2.0, 2.0)
    assert case.source_orientation == "LPS"
    assert (case.scale, case.offset) == ((1.0,), (0.0,))
    assert case.statistics[0].minimum == -1000
    assert case.classes == {0: "background", 1: "1"}
    assert store.read_label(case.id).shape == case.shape
    assert case.class_voxels[1] == np.count_nonzero(store.read_label(case.id))


def test_processes_make_what_one_process_makes(scans, tmp_path):
    prepare(scans, tmp_path / "one", workers=1)
    prepare(scans, tmp_path / "two", workers=2)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert content_of(one.path) == content_of(two.path)
    assert list(one.cases) == list(two.cases)
    assert one.digest == two.digest


def test_a_bad_scan_is_refused_with_its_reason_and_the_rest_is_taken(scans, tmp_path):
    whole = (scans / "imagesTr" / "s1.nii.gz").read_bytes()
    bad = scans / "imagesTr" / "s9.nii.gz"
    bad.write_bytes(whole[: len(whole) // 2])
    report = prepare(scans, tmp_path / "store", workers=2)
    assert (report.taken, report.refused, report.complete) == (3, 1, False)
    refused = [line for line in lines_of(report.store) if line["status"] == "refused"]
    assert [line["source"] for line in refused] == [str(bad)]
    assert "cut off" in refused[0]["reason"]
    assert set(refused[0]) == {"source", "status", "reason", "case", "warnings"}
    assert str(bad) in str(report)


def test_running_again_changes_nothing(scans, tmp_path):
    store = tmp_path / "store"
    prepare(scans, store, workers=1)
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    again = prepare(scans, store, workers=1)
    assert (again.taken, again.skipped) == (0, 3)
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before


def test_sources_are_added_and_keep_what_is_there(scans, tmp_path):
    first, second = scans / "imagesTr" / "s1.nii.gz", tmp_path / "more" / "s1.nii.gz"
    write_scan(second, seed=8)
    store = tmp_path / "store"
    prepare(first, store, workers=1)
    before = content_of(store)
    report = prepare(second, store, workers=1)
    assert report.taken == 1
    after = content_of(store)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2
    assert len(lines_of(store)) == 2


def test_a_name_does_not_depend_on_what_is_added_later(tmp_path):
    names = {}
    for place in ("b", "a", "c"):
        write_scan(tmp_path / place / "ct.nii.gz", seed=ord(place))
        prepare(tmp_path / place, tmp_path / "store", workers=1)
        cases = Store(tmp_path / "store").cases.values()
        names |= {case.source: names.get(case.source, case.id) for case in cases}
        assert {case.source: case.id for case in cases} == names
    assert len(set(names.values())) == 3
    assert names[str(tmp_path / "b" / "ct.nii.gz")] == "ct"
    assert all(re.fullmatch(r"ct(-[0-9a-f]{8})?", name) for name in names.values())


def test_sources_of_one_name_are_told_apart_in_one_run_too(tmp_path):
    for place in ("a", "b"):
        write_scan(tmp_path / place / "ct.nii.gz", seed=ord(place))
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "store", workers=1)
    assert len(Store(tmp_path / "store").cases) == 2


def test_the_same_scan_under_two_names_is_said(tmp_path):
    write_scan(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "scans" / "b.nii.gz").write_bytes((tmp_path / "scans" / "a.nii.gz").read_bytes())
    prepare(tmp_path / "scans", tmp_path / "store", workers=1)
    warnings = {line["case"]: line["warnings"][0] for line in lines_of(tmp_path / "store")}
    assert warnings == {"a": "the same files as case b", "b": "the same files as case a"}


def test_a_changed_source_is_made_anew_and_said(scans, tmp_path):
    store = tmp_path / "store"
    prepare(scans, store, workers=1)
    before = content_of(store)
    write_scan(scans / "imagesTr" / "s0.nii.gz", seed=77)
    report = prepare(scans, store, workers=1)
    assert (report.taken, report.remade, report.skipped) == (1, 1, 2)
    changed = [name for name, content in content_of(store).items() if content != before[name]]
    assert len(changed) == 1
    line = next(line for line in lines_of(store) if line["case"] == changed[0])
    assert line["warnings"][0] == "made anew: its source changed"


def test_a_changed_label_makes_the_case_anew(scans, tmp_path):
    prepare(scans, tmp_path / "store", workers=1)
    label = scans / "labelsTr" / "s1.nii.gz"
    label.write_bytes((scans / "labelsTr" / "s2.nii.gz").read_bytes()[:0])
    report = prepare(scans, tmp_path / "store", workers=1)
    assert report.refused == 1


def test_a_source_that_turns_bad_leaves_the_store_and_comes_back_when_mended(scans, tmp_path):
    store, file = tmp_path / "store", scans / "imagesTr" / "s1.nii.gz"
    prepare(scans, store, workers=1)
    before = content_of(store)
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    report = prepare(scans, store, workers=1)
    assert (report.refused, report.skipped) == (1, 2)
    assert len(Store(store).cases) == 2
    assert "left the store" in str(lines_of(store))
    file.write_bytes(whole)
    assert prepare(scans, store, workers=1).remade == 1
    assert content_of(store) == before


def test_another_preprocessing_is_refused_unless_made_anew(scans, tmp_path):
    store = tmp_path / "store"
    prepare(scans, store, spacing_mm=2.0, workers=1)
    with pytest.raises(StoreError, match="--overwrite"):
        prepare(scans, store, spacing_mm=3.0, workers=1)
    report = prepare(scans, store, spacing_mm=3.0, workers=1, overwrite=True)
    assert report.taken == 3
    assert {case.spacing_mm[2] for case in Store(store).cases.values()} == {32 / 11}


def test_another_modality_makes_cases_anew(scans, tmp_path):
    prepare(scans, tmp_path / "store", workers=1)
    report = prepare(scans, tmp_path / "store", workers=1, modality="MR")
    assert report.remade == 3
    assert {case.modality for case in Store(tmp_path / "store").cases.values()} == {"MR"}


def test_what_a_list_states_is_brought_up_to_date_without_touching_voxels(scans, tmp_path):
    listing = tmp_path / "cases.csv"
    image = scans / "imagesTr" / "s0.nii.gz"
    for split in ("train", "test"):
        listing.write_text(f"image,split\n{image},{split}\n")
        report = prepare(listing, tmp_path / "store", workers=1)
        (case,) = Store(tmp_path / "store").cases.values()
        assert case.split == split
    assert (report.taken, report.skipped) == (0, 1)


def test_a_folder_of_something_else_is_left_alone(scans, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("42")
    with pytest.raises(UsageError, match="something else"):
        prepare(scans, tmp_path / "mine", overwrite=True)


def test_overwriting_removes_nothing_but_the_store(scans, tmp_path):
    store = tmp_path / "store"
    prepare(scans, store, workers=1)
    (store / "notes.txt").write_text("mine")
    prepare(scans / "imagesTr" / "s0.nii.gz", store, workers=1, overwrite=True)
    assert (store / "notes.txt").read_text() == "mine"
    assert len(Store(store).cases) == 1
    assert len(list((store / "images").iterdir())) == 1


def test_nothing_found_and_nothing_there_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing that could be a scan"):
        prepare(tmp_path / "empty", tmp_path / "store")
    with pytest.raises(DataError, match="no such"):
        prepare(tmp_path / "missing", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_shards_make_together_what_one_run_makes(scans, tmp_path):
    prepare(scans, tmp_path / "whole", workers=1)
    reports = [prepare(scans, tmp_path / "parts", shard=(n, 2), workers=1) for n in (1, 2)]
    assert sum(report.taken for report in reports) == 3
    assert content_of(tmp_path / "parts") == content_of(tmp_path / "whole")
    assert len(lines_of(tmp_path / "parts")) == 3
    final = prepare(scans, tmp_path / "parts", workers=1)
    assert (final.taken, final.skipped) == (0, 3)
    assert content_of(tmp_path / "parts") == content_of(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("*-of-*"))


def test_a_shard_that_cannot_be_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match="1 <= i <= n"):
        prepare(scans, tmp_path / "store", shard=(0, 2))
    with pytest.raises(UsageError, match="cannot overwrite"):
        prepare(scans, tmp_path / "store", shard=(1, 2), overwrite=True)


def test_foreground_cuts_to_the_body(scans, tmp_path):
    prepare(scans, tmp_path / "store", foreground=True, workers=1)
    for case in Store(tmp_path / "store").cases.values():
        assert case.shape == (16, 12, 12)
        assert case.foreground == ((0, 0, 0), case.shape)


def test_the_page_shows_cases_and_refusals_and_needs_nothing_else(scans, tmp_path):
    (scans / "imagesTr" / "empty<b>.nii.gz").write_bytes(b"")
    prepare(scans, tmp_path / "store", workers=1)
    page = (tmp_path / "store" / "quality.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "an empty file" in page
    assert "empty<b>" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?:|<script", page)


def die(job, store):
    """Taking one of the scans kills its process, as the kernel does when memory runs out."""
    from voco.data.intake import take

    if "s1" in job.key:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(job, store)


def test_a_scan_that_kills_its_process_is_refused_and_the_rest_is_taken(
    scans, tmp_path, monkeypatch
):
    monkeypatch.setattr(workflow, "take_next", die)
    report = workflow.prepare(scans, tmp_path / "store", workers=2)
    assert (report.taken, report.refused) == (2, 1)
    assert "process was killed" in report.refusals[0][1]


def test_a_killed_run_resumes_to_what_an_uninterrupted_one_makes(tmp_path):
    scans = tmp_path / "scans"
    for number in range(8):
        write_scan(
            scans / "imagesTr" / f"s{number}.nii.gz",
            seed=number,
            shape=(60, 60, 40),
            label=scans / "labelsTr" / f"s{number}.nii.gz",
        )
    store = tmp_path / "killed"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["voco.workflows.prepare"])
    settings = {"spacing_mm": 1.5, "workers": 1}
    done = 0
    for delay in (0.0, 0.004, 0.011):
        process = context.Process(target=prepare, args=(scans, store), kwargs=settings)
        process.start()
        # Until one more case is finished, and then somewhere in the middle of the next.
        while process.is_alive() and _finished(store) <= done:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert _finished(store) > done
        done = _finished(store)
        assert all(Store(store).read(case) is not None for case in Store(store).cases)
    report = prepare(scans, store, spacing_mm=1.5, workers=1)
    assert report.skipped >= done
    prepare(scans, tmp_path / "whole", spacing_mm=1.5, workers=1)
    assert content_of(store) == content_of(tmp_path / "whole")
    left = {file.name for file in store.rglob("*") if file.is_file()}
    assert left == {file.name for file in (tmp_path / "whole").rglob("*") if file.is_file()}


def _finished(store):
    return len(Store(store).cases) if (store / "store.json").exists() else 0


@pytest.mark.realdata
def test_real_scans_take_little_space_and_keep_hu(tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"no real scans at {REAL}")
    places = [REAL / "sts" / "ct" / f"STS_0{n}_ct.nii.gz" for n in ("02", "04", "24")]
    mr = REAL / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    report = prepare([*places, mr], tmp_path / "store", spacing_mm=1.5, workers=1)
    assert report.complete
    store = Store(tmp_path / "store")
    files = [store.image_file(case).stat().st_size for case in store.cases]
    voxels = sum(np.prod(case.shape) for case in store.cases.values())
    assert sum(files) / voxels < 1.2
    scans = [case for case in store.cases.values() if case.modality == "CT"]
    assert len(scans) == 3
    assert all(case.scale == (1.0,) for case in scans)
