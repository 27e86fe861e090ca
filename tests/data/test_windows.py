import multiprocessing

import pytest
import torch
from blobs import blob_store
from hypothesis import given
from hypothesis import strategies as st

from voco.data.intensity import PercentileIntensity, WindowIntensity
from voco.data.loading import usable_cores
from voco.data.selection import Order, split_cases
from voco.data.store import Case, Store
from voco.data.windows import Share, Windows, WindowsConfig, box, window_batches
from voco.errors import ConfigError, StoreError

CPU = torch.device("cpu")
WINDOW = (10, 12, 14)
RAW = WindowIntensity(low=0, high=1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(blob_store(tmp_path_factory.mktemp("windows") / "store", 6))


def windows(*stores, window=WINDOW, seed=0, share=None, intensity=RAW, **config) -> Windows:
    entries = split_cases(stores, 0.0, seed=0).train
    share = share or Share(batch_size=2)
    return Windows(stores, entries, WindowsConfig(**config), window, intensity, seed, share)


def batches(made: Windows, stop=4, workers=0, start=0) -> list[torch.Tensor]:
    return list(window_batches(made, CPU, workers, start, stop))


def case(shape, foreground=None, spacing=(1.0, 1.0, 1.0), **facts) -> Case:
    affine = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    return Case(
        id="a",
        source="a",
        source_sha256="a",
        shape=shape,
        spacing_mm=spacing,
        affine=affine,
        source_shape=shape,
        source_affine=affine,
        source_orientation="RAS",
        foreground=foreground,
        **facts,
    )


sides = st.tuples(*[st.integers(1, 40)] * 3)
places = st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 3)


@given(shape=sides, window=sides, place=places)
def test_a_window_lies_in_the_volume_or_the_volume_in_the_window(shape, window, place):
    start, stop = box(case(shape), WindowsConfig(), window, torch.tensor(place))
    for first, last, side, size in zip(start, stop, shape, window, strict=True):
        assert last - first == size
        inside = first >= 0 and last <= side
        around = first <= 0 and last >= side
        assert inside if size <= side else around


@given(place=places)
def test_a_window_lies_in_the_foreground_where_it_fits(place):
    body = case((40, 40, 40), ((10, 12, 5), (30, 18, 40)))
    start, stop = box(body, WindowsConfig(), WINDOW, torch.tensor(place))
    assert 10 <= start[0] < stop[0] <= 30
    assert max(start[1] - 12, 18 - stop[1]) <= 0, "the foreground is smaller: all of it is seen"
    assert 0 <= min(start) < max(stop) <= 40, "there is no need to pad"


def test_every_place_of_a_box_is_reached():
    starts = {
        box(case((13, 12, 14)), WindowsConfig(), WINDOW, torch.tensor([p, 0, 0]))[0][0]
        for p in (0.0, 0.3, 0.6, 0.9)
    }
    assert starts == {0, 1, 2, 3}


def test_a_plane_keeps_the_length_of_voxels_along_x_in_z():
    flat = case((100, 80, 60), spacing=(1.0, 1.0, 5.0))
    start, stop = box(flat, WindowsConfig(fit="plane"), (50, 50, 50), torch.rand(3))
    # One voxel of the window is 2 mm along x, so 50 of them are 100 mm: 20 slices of 5 mm.
    assert [b - a for a, b in zip(start, stop, strict=True)] == [100, 80, 20]


def test_resize_shows_the_whole_volume(store):
    made = windows(store, fit="resize")
    found, stored = made.cut(0)
    whole = torch.from_numpy(store.read(found.id)).float()
    assert stored.shape == (1, *WINDOW)
    assert stored.float().mean() == pytest.approx(float(whole.mean()), abs=3)


def test_a_crop_is_the_stored_voxels(store):
    made = windows(store)
    found, stored = made.cut(3)
    whole = torch.from_numpy(store.read(found.id))[0]
    blocks = whole.unfold(0, 10, 1).unfold(1, 12, 1).unfold(2, 14, 1)
    assert (blocks == stored[0]).flatten(3).all(dim=3).any()


def test_what_lies_beside_a_small_volume_is_its_minimum(store):
    found, stored = windows(store, window=(40, 24, 24)).cut(0)
    whole = torch.from_numpy(store.read(found.id))
    columns = stored[0].flatten(1)
    beside = (columns == whole.min()).all(dim=1)
    assert beside.sum() == 16
    assert torch.equal(stored[0][~beside], whole[0])


def test_volumes_are_normalised_on_the_device(store):
    (volumes,) = batches(windows(store, intensity=PercentileIntensity()), stop=1)
    assert volumes.dtype == torch.float32
    assert 0 <= volumes.min() < volumes.max() <= 1
    first, _ = windows(store).cut(0)
    assert windows(store)[0].stored.dtype == torch.int16
    assert first.id in store.cases


def test_no_more_processes_load_than_there_are_cores(store):
    before = {child.pid for child in multiprocessing.active_children()}
    stream = window_batches(windows(store), CPU, usable_cores() + 2, 0, 4)
    next(stream)
    started = {child.pid for child in multiprocessing.active_children()} - before
    assert 1 <= len(started) <= usable_cores()
    stream.close()


def test_neither_workers_nor_a_later_start_change_a_batch(store):
    straight = batches(windows(store))
    assert all(map(torch.equal, straight, batches(windows(store), workers=2)))
    assert all(map(torch.equal, straight[3:], batches(windows(store), start=3)))


def test_another_seed_gives_other_windows(store):
    assert not torch.equal(batches(windows(store))[0], batches(windows(store, seed=1))[0])


def test_processes_and_micro_batches_share_out_the_batch_of_one():
    whole = Share(batch_size=8)
    parts = [Share(batch_size=4, accumulate=2, rank=rank, world=2) for rank in (0, 1)]
    for step in range(3):
        numbers = [i for micro in (0, 1) for part in parts for i in part.samples(2 * step + micro)]
        assert numbers == list(whole.samples(step))


def test_every_case_is_seen_once_before_any_is_seen_again(store):
    order = Order(split_cases([store], 0.0, seed=0).train, "case", seed=5)
    rounds = [[order[number].case.id for number in range(i, i + 6)] for i in (0, 6, 12)]
    assert all(sorted(one) == sorted(store.cases) for one in rounds)
    assert rounds[0] != rounds[1]


def test_stores_take_turns_if_asked_to(store, tmp_path):
    small = Store(blob_store(tmp_path / "small", 2))
    entries = split_cases([store, small], 0.0, seed=0).train
    order = Order(entries, "store", seed=0)
    picked = [order[number] for number in range(24)]
    assert all({a.store, b.store} == {0, 1} for a, b in zip(picked[::2], picked[1::2], strict=True))
    assert {entry.case.id for entry in picked if entry.store == 0} == set(store.cases)


def split_store(path, **facts) -> Store:
    """Cases whose facts are given one by one."""
    store = Store(blob_store(path, len(next(iter(facts.values())))))
    for number, one in enumerate(list(store.cases.values())):
        update = {name: values[number] for name, values in facts.items()} | {"revision": 1}
        store.add([one.model_copy(update=update)])
    return store


def test_validation_is_looked_at_and_test_is_left_alone(tmp_path):
    store = split_store(tmp_path / "a", split=["train", None, "validation", "test"])
    split = split_cases([store], 0.0, seed=0)
    assert [entry.case.split for entry in split.train] == ["train", None]
    assert [entry.case.split for entry in split.held_out] == ["validation"]


def test_a_patient_of_the_test_cases_is_not_trained_on(tmp_path):
    store = split_store(tmp_path / "a", split=["test", None, None], group=["p", "p", "q"])
    assert [entry.case.group for entry in split_cases([store], 0.0, seed=0).train] == ["q"]


def test_groups_stay_whole_and_a_larger_holdout_contains_a_smaller(tmp_path):
    store = split_store(tmp_path / "a", group=[f"patient {i // 2}" for i in range(12)])
    held = []
    for share in (0.2, 0.5):
        split = split_cases([store], share, seed=3)
        groups = {entry.case.group for entry in split.held_out}
        assert not groups & {entry.case.group for entry in split.train}
        assert len(split.held_out) == 2 * len(groups) == 12 * round(share * 6) / 6
        held.append(groups)
    assert held[0] < held[1]


def test_no_case_to_train_on_is_an_error(tmp_path):
    store = split_store(tmp_path / "a", split=["test", "test"])
    with pytest.raises(StoreError, match="no case to train on: there are 2 cases"):
        split_cases([store], 0.0, seed=0)


def test_stores_of_different_channels_are_refused_by_name(store, tmp_path):
    other = Store(blob_store(tmp_path / "two", 1, channels=2))
    with pytest.raises(ConfigError, match="channels") as error:
        split_cases([store, other], 0.0, seed=0)
    assert str(store.path) in str(error.value)
    assert str(other.path) in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_reaches_the_user_as_one_sentence(tmp_path, workers):
    store = Store(blob_store(tmp_path / "a", 1))
    file = store.image_file("blob0")
    content = bytearray(file.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    file.write_bytes(content)
    with pytest.raises(StoreError) as error:
        batches(windows(store), stop=1, workers=workers)
    assert "blob0.b2nd: damaged" in str(error.value)
    assert "Traceback" not in str(error.value)
