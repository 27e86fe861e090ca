import numpy as np
import pytest
import torch

from voco.data.intensity import WindowIntensity
from voco.data.labelled import Labelled
from voco.data.loading import Share
from voco.data.patches import (
    CropSamples,
    CropSettings,
    VolumeSamples,
    case_at,
    class_numbers,
    class_voxels,
    fitted,
    patch_batches,
    volume_batches,
)
from voco.data.store import Case, ChannelStatistics, Preprocessing, Store
from voco.errors import DataError, StoreError

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics(minimum=-1000, maximum=400, mean=0, std=1, percentiles={})


def labelled_store(path, shapes, values=(0, 205, 420)):
    """Air with one box of 40 HU per label value, smaller for higher values."""
    store = Store.create(path, Preprocessing())
    for number, shape in enumerate(shapes):
        label = np.zeros(shape, np.int16)
        for place, value in enumerate(values[1:]):
            label[2 + 6 * place : 6 + 4 * place, 2:5, 2:4] = value
        image = np.where(label > 0, 40, -1000).astype(np.int16)[None]
        found, counts = np.unique(label, return_counts=True)
        case = Case(
            id=f"case{number}",
            source="made",
            source_sha256="0",
            shape=shape,
            spacing_mm=(1, 1, 1),
            affine=np.eye(4).tolist(),
            source_shape=shape,
            source_affine=np.eye(4).tolist(),
            source_orientation="RAS",
            modality="CT",
            statistics=(STATISTICS,),
            classes={value: f"structure {value}" for value in values},
            class_voxels=dict(zip(found.tolist(), counts.tolist(), strict=True)),
            target="ill" if number % 2 else "well",
        )
        store.write(case, image, label)
        store.add([case])
    return [Labelled(store, case) for case in store.cases.values()]


@pytest.fixture
def cases(tmp_path):
    return labelled_store(tmp_path / "store", [(20, 16, 12), (18, 14, 10), (16, 16, 16)])


def crops(cases, *, seed=3, batch_size=2, **changes):
    settings = {"roi": (8, 8, 8), "crops": 2, "positive_share": 0.5} | changes
    return CropSamples(
        CropSettings(values=(0, 205, 420), **settings),
        cases,
        WindowIntensity(),
        seed,
        Share(batch_size),
    )


def test_a_sample_depends_on_seed_and_number_alone(cases):
    first, again = crops(cases), crops(cases)
    list(map(again.sample, range(5)))
    for one, other in zip(first.sample(7), again.sample(7), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.sample(7).stored, crops(cases, seed=4).sample(7).stored)


def test_loader_processes_do_not_change_the_batches(cases):
    results = [list(patch_batches(crops(cases), CPU, workers, 0, 3)) for workers in (0, 2)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.crops, other.crops)
        assert torch.equal(one.labels, other.labels)


def test_a_run_taken_up_goes_on_with_the_same_crops(cases):
    whole = list(patch_batches(crops(cases), CPU, 0, 0, 4))
    rest = list(patch_batches(crops(cases), CPU, 0, 2, 4))
    assert all(torch.equal(a.crops, b.crops) for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_an_error_a_user_can_read(cases, workers):
    for one in cases:
        (one.store.path / "images" / f"{one.case.id}.b2nd").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"^[^\n]*damaged[^\n]*$"):
        list(patch_batches(crops(cases), CPU, workers, 0, 2))


def test_every_case_comes_once_before_any_comes_again(cases):
    for turn in range(4):
        names = {case_at(cases, 0, 3 * turn + place).case.id for place in range(3)}
        assert names == {"case0", "case1", "case2"}


def test_processes_and_micro_batches_share_out_the_samples_of_a_step():
    whole = [number for index in (2, 3) for number in Share(8).samples(index)]
    shared = [
        number
        for index in range(4, 8)
        for rank in range(2)
        for number in Share(4, 2, rank, 2).samples(index)
    ]
    assert shared == whole == list(range(16, 32))


def test_positive_crops_show_every_structure_alike(cases):
    dataset = crops(cases, positive_share=1.0, crops=1, roi=(3, 3, 3))
    middles = [int(dataset.sample(number).truth[0, 1, 1, 1]) for number in range(300)]
    assert 0 not in middles
    assert 110 < middles.count(1) < 190


def test_image_and_label_of_a_crop_belong_together(cases):
    batch = next(patch_batches(crops(cases, batch_size=3), CPU, 0, 0, 1))
    assert batch.crops.shape == (3, 2, 1, 8, 8, 8)
    assert batch.labels.shape == (3, 2, 8, 8, 8)
    inside = (40 + 175) / 425
    assert torch.allclose(batch.crops[:, :, 0], (batch.labels > 0).float() * inside)


def test_a_volume_smaller_than_the_crop_lies_in_its_middle(cases):
    sample = crops(cases, roi=(24, 20, 18)).sample(0)
    one = case_at(cases, 3, 0)
    room = [(big - small + 1) // 2 for big, small in zip((24, 20, 18), one.case.shape, strict=True)]
    inside = tuple(slice(low, low + side) for low, side in zip(room, one.case.shape, strict=True))
    whole = torch.from_numpy(one.store.read(one.case.id))
    assert torch.equal(sample.stored[0][(slice(None), *inside)], whole)
    assert int(sample.stored[0, 0, 0, 0, 0]) == -1000
    assert int(sample.truth[0, 0, 0, 0]) == 0


def test_label_values_become_class_numbers():
    label = np.array([[[0, 420], [205, 0]]], np.int16)
    assert class_numbers(label, (0, 205, 420), "a").tolist() == [[[0, 2], [1, 0]]]


def test_a_label_value_that_is_no_class_is_an_error_that_names_the_case():
    with pytest.raises(DataError, match=r"'heart7'.*\[421\]"):
        class_numbers(np.full((1, 1, 1), 421, np.int16), (0, 205, 420), "heart7")


def test_centres_lie_in_their_structure():
    label = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint8)
    found = class_voxels(label, seed=1)
    assert set(found) == {1, 2}
    for value, rows in found.items():
        assert len(np.unique(rows, axis=0)) == 1024
        assert (label[tuple(rows.T)] == value).all()


def test_whole_volumes_come_with_their_class(cases):
    samples = VolumeSamples(
        ("ill", "well"), (8, 8, 8), "resize", cases, WindowIntensity(), 0, Share(3)
    )
    batch = next(volume_batches(samples, CPU, 0, 0, 1))
    assert batch.volumes.shape == (3, 1, 8, 8, 8)
    targets = [case_at(cases, 0, number).case.target for number in range(3)]
    assert [("ill", "well")[number] for number in batch.classes] == targets


def test_cutting_a_volume_keeps_its_middle_and_pads_the_rest():
    stored = np.arange(6, dtype=np.int16).reshape(1, 6, 1, 1)
    cut = fitted(stored, (4, 3, 1), "crop", np.array([-9], np.int16))
    assert cut[0, :, 1, 0].tolist() == [1, 2, 3, 4]
    assert (cut[0, :, [0, 2], 0] == -9).all()


def test_the_loader_leaves_torchs_own_generator_alone(cases):
    before = torch.random.get_rng_state()
    list(patch_batches(crops(cases), CPU, 1, 0, 2))
    assert torch.equal(before, torch.random.get_rng_state())
