"""Onto the store's grid and back."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.data.foreground import body_box
from voco.data.preprocess import (
    from_ras,
    prepare_volume,
    ras_grid,
    resample,
    restore_labels,
    restore_maps,
    to_ras,
)
from voco.data.resampling import resized, resized_labels
from voco.data.store import Preprocessing
from voco.geometry import Grid
from voco.volume import Volume

ORIENTATIONS = [
    "".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)
]


def grid_of(orientation, shape, spacing_mm=(1.0, 1.0, 1.0), origin_mm=(5.0, -7.0, 11.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        world = next(number for number, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[world, axis] = spacing_mm[axis] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def world_ramp(grid, slope=(2.0, -3.0, 5.0), start=10.0):
    index = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    values = np.asarray(slope) @ world + start
    return Volume(values.reshape(1, *grid.shape), grid)


def one_hot(label, classes):
    return torch.stack([torch.from_numpy((label == number) * 1.0) for number in range(classes)])


def dice(first, second):
    return 2 * np.sum(first & second) / (np.sum(first) + np.sum(second))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_ras_keeps_every_voxel_at_its_place_in_the_world(orientation):
    volume = world_ramp(grid_of(orientation, (3, 4, 5), (0.5, 1.0, 2.0)))
    upright = to_ras(volume)
    assert upright.grid.orientation == "RAS"
    assert np.allclose(upright.array, world_ramp(upright.grid).array)
    assert np.array_equal(from_ras(upright.array, volume.grid), volume.array)


def test_an_oblique_scan_is_turned_but_not_interpolated():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    grid = Grid((4, 5, 6), turn @ grid_of("LPS", (4, 5, 6)).affine)
    upright = to_ras(world_ramp(grid))
    assert upright.grid.orientation == "RAS"
    assert np.allclose(upright.array, world_ramp(upright.grid).array)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 16)] * 3),
    old=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    new=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_a_linear_function_of_the_world_stays_itself_away_from_the_border(
    shape, old, new, orientation
):
    volume = to_ras(world_ramp(grid_of(orientation, shape, old)))
    result = resample(volume, new)
    expected = world_ramp(result.grid).array
    centres = [
        (np.arange(n) + 0.5) * m / n - 0.5
        for n, m in zip(result.grid.shape, volume.grid.shape, strict=True)
    ]
    reach = [max(1, m / n / 2) for n, m in zip(result.grid.shape, volume.grid.shape, strict=True)]
    inside = [
        (u >= r - 1) & (u <= m - r)
        for u, r, m in zip(centres, reach, volume.grid.shape, strict=True)
    ]
    inner = np.ix_([True], *inside)
    scale = np.abs(volume.array).max()
    assert np.allclose(result.array[inner], expected[inner], atol=2e-5 * scale)


def test_resampling_keeps_the_outer_edges_and_moves_the_first_centre_by_half_the_difference():
    volume = world_ramp(grid_of("RAS", (12, 12, 12)))
    result = resample(volume, (2.0, 3.0, 1.0))
    assert result.grid.shape == (6, 4, 12)
    assert np.allclose(result.grid.affine[:3, 3] - volume.grid.affine[:3, 3], [0.5, 1.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(
    old=st.tuples(*[st.integers(3, 12)] * 3),
    factors=st.tuples(*[st.floats(0.5, 3.0)] * 3),
    seed=st.integers(0, 99),
)
def test_down_to_half_size_resampling_is_plain_trilinear(old, factors, seed):
    new = tuple(max(1, -(-n // 2), round(n * f)) for n, f in zip(old, factors, strict=True))
    source = np.random.default_rng(seed).normal(size=(2, *old)).astype(np.float32)
    plain = F.interpolate(torch.from_numpy(source)[None], size=new, mode="trilinear")[0]
    for layout in (source, np.asfortranarray(source[0])[None]):
        result = resized(layout, new)
        assert np.allclose(result, plain[: len(layout)], atol=2e-5)


def test_below_half_size_no_voxel_of_an_image_is_skipped():
    spike = np.zeros((1, 9, 1, 1), np.float32)
    for place in range(9):
        spike[:] = 0
        spike[0, place] = 1
        assert resized(spike, (3, 1, 1)).sum() > 0.1


def test_slabs_do_not_show(monkeypatch):
    source = np.random.default_rng(0).normal(size=(1, 17, 9, 8)).astype(np.float32)
    label = np.random.default_rng(0).integers(0, 4, (17, 9, 8)).astype(np.uint8)
    at_once = resized(source, (5, 7, 11)), resized_labels(label, (23, 7, 11))
    monkeypatch.setattr("voco.data.resampling._SLAB_VOXELS", 1)
    assert np.array_equal(resized(source, (5, 7, 11)), at_once[0])
    assert np.array_equal(resized_labels(label, (23, 7, 11)), at_once[1])


def test_a_label_takes_the_largest_share_not_a_mean_of_class_numbers():
    label = np.array([0, 0, 2, 2, 2, 2], np.uint8).reshape(6, 1, 1)
    result = resized_labels(label, (4, 1, 1)).ravel()
    # Centres lie at 0.25, 1.75, 3.25 and 4.75: the second is three quarters inside class 2.
    assert result.tolist() == [0, 2, 2, 2]


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(3, 9)] * 3), seed=st.integers(0, 99))
def test_a_label_is_the_same_however_it_lies_in_memory(shape, seed):
    label = np.random.default_rng(seed).integers(0, 300, shape).astype(np.int16)
    new = (shape[0] + 2, shape[1] - 1, shape[2] * 2)
    first = resized_labels(label, new)
    assert first.dtype == np.int16
    assert np.array_equal(first, resized_labels(np.asfortranarray(label), new))


def blob(shape):
    centre = (np.asarray(shape) - 1)[:, None, None, None] / 2
    squares = ((np.indices(shape) - centre) / np.maximum(centre, 1)) ** 2
    distance = squares.sum(axis=0)
    return (distance < 0.8).astype(np.uint8) + (distance < 0.4).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    seed=st.integers(0, 99),
)
def test_the_logits_of_a_label_at_its_own_spacing_come_back_as_that_label(orientation, shape, seed):
    random = np.random.default_rng(seed)
    grid = grid_of(orientation, shape, (0.7, 1.0, 3.0))
    image = Volume(random.integers(-1000, 1000, (1, *shape)).astype(np.int16), grid)
    label = Volume(random.integers(0, 5, (1, *shape)).astype(np.uint8), grid)
    ready = prepare_volume(image, Preprocessing(), modality="CT", label=label)
    assert ready.grid.orientation == "RAS"
    back = restore_labels(one_hot(ready.label, 5), ready.grid, ready.source_grid)
    assert back.dtype == np.uint8
    assert np.array_equal(back, label.array[0])
    stored = restore_maps(torch.from_numpy(ready.image).float(), ready.grid, ready.source_grid)
    assert np.array_equal(stored, image.array)


@pytest.mark.parametrize(
    ("spacing_mm", "least"), [((0.6, 0.6, 0.6), 0.999), ((1.5, 1.4, 1.6), 0.94)]
)
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SLA"])
def test_a_label_survives_the_way_there_and_back(spacing_mm, least, orientation):
    grid = grid_of(orientation, (40, 36, 32))
    label = Volume(blob(grid.shape)[None], grid)
    image = Volume(label.array.astype(np.int16) * 100, grid)
    ready = prepare_volume(image, Preprocessing(spacing_mm=spacing_mm), label=label)
    back = restore_labels(one_hot(ready.label, 3), ready.grid, ready.source_grid)
    assert back.shape == grid.shape
    for number in (1, 2):
        assert dice(back == number, label.array[0] == number) > least


def test_what_was_cut_away_comes_back_as_background():
    grid = grid_of("LIP", (30, 28, 26))
    body = np.full(grid.shape, -1000, np.int16)
    body[10:20, 9:19, 8:18] = 50
    label = np.zeros(grid.shape, np.uint8)
    label[11:19, 10:18, 9:17] = 1
    ready = prepare_volume(
        Volume(body[None], grid),
        Preprocessing(spacing_mm=(1.3, 0.8, 1.1), foreground=True),
        modality="CT",
        label=Volume(label[None], grid),
    )
    assert all(a < b for a, b in zip(ready.grid.shape, ras_grid(grid).shape, strict=True))
    back = restore_labels(one_hot(ready.label, 2), ready.grid, grid)
    assert dice(back == 1, label == 1) > 0.85
    everything = restore_labels(torch.ones(2, *ready.grid.shape).cumsum(0), ready.grid, grid)
    assert everything[body > 0].all()
    assert not everything[0].any()
    assert not everything[:, -1].any()
    maps = restore_maps(torch.ones(1, *ready.grid.shape), ready.grid, grid, outside=-1.0)
    assert np.allclose(maps[0], np.where(everything == 1, 1.0, -1.0))


@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_the_way_back_from_a_cut_volume_moves_nothing(orientation):
    grid = grid_of(orientation, (30, 28, 26))
    upright = ras_grid(grid).resampled((1.3, 0.8, 1.1))
    part = upright.crop((3, 5, 4), (12, 20, 11))
    ramp = torch.from_numpy(world_ramp(part).array).float()
    back = restore_maps(ramp, part, grid, outside=np.nan)[0]
    expected = world_ramp(grid).array[0]
    # Half a voxel within the cut the nearest centre is repeated; further in the ramp is exact.
    inner = np.isfinite(
        restore_maps(
            ramp[:, 1:-1, 1:-1, 1:-1], part.crop((1, 1, 1), (10, 18, 9)), grid, outside=np.nan
        )[0]
    )
    assert inner.sum() > 1000
    assert np.allclose(back[inner], expected[inner], atol=1e-3)


def test_a_grid_of_another_scan_is_refused():
    prepared = grid_of("RAS", (8, 8, 8), origin_mm=(0.4, 0.0, 0.0))
    with pytest.raises(ValueError, match="was not made from"):
        restore_labels(torch.zeros(2, 8, 8, 8), prepared, grid_of("RAS", (8, 8, 8)))


def test_a_label_of_another_shape_is_refused():
    image = world_ramp(grid_of("RAS", (4, 4, 4)))
    label = Volume(np.zeros((1, 4, 4, 5), np.uint8), grid_of("RAS", (4, 4, 5)))
    with pytest.raises(ValueError, match="differ in shape"):
        prepare_volume(image, Preprocessing(), label=label)


def test_every_channel_has_its_own_units():
    grid = grid_of("RAS", (16, 16, 16))
    random = np.random.default_rng(0)
    channels = np.stack([random.normal(size=grid.shape), random.normal(size=grid.shape) * 1e6])
    ready = prepare_volume(Volume(channels, grid), Preprocessing())
    for stored, scale, offset, channel, facts in zip(
        ready.image, ready.scale, ready.offset, channels, ready.statistics, strict=True
    ):
        assert np.abs(stored * scale + offset - channel).max() <= 0.501 * scale
        assert facts.maximum == pytest.approx(channel.max(), abs=scale)


def test_the_body_is_found_on_a_coarse_look_and_nothing_of_it_is_cut():
    stored = np.full((1, 300, 200, 50), -1000, np.int16)
    stored[0, 37:211, 60:161, 3:44] = 0
    (x0, y0, z0), (x1, y1, z1) = body_box(stored, [-500.0])
    assert 34 <= x0 <= 37
    assert 211 <= x1 <= 215
    assert 57 <= y0 <= 60
    assert 161 <= y1 <= 164
    assert (z0, z1) == (3, 44)


def test_two_legs_are_body_and_a_tube_is_not():
    stored = np.full((1, 40, 20, 10), -1000, np.int16)
    stored[0, 5:15, 5:15] = 0
    stored[0, 22:30, 5:15] = 0
    stored[0, 38, 18] = 0
    assert body_box(stored, [-500.0]) == ((5, 5, 0), (30, 15, 10))


def test_a_label_outside_the_body_widens_the_box():
    stored = np.full((1, 20, 20, 20), -1000, np.int16)
    stored[0, 5:10, 5:10, 5:10] = 0
    label = np.zeros((20, 20, 20), np.uint8)
    label[15, 7, 7] = 1
    assert body_box(stored, [-500.0], label) == ((5, 5, 5), (16, 10, 10))


def test_no_body_is_said_and_nothing_is_cut():
    grid = grid_of("RAS", (6, 6, 6))
    air = Volume(np.full((1, 6, 6, 6), -1000, np.int16), grid)
    ready = prepare_volume(air, Preprocessing(foreground=True), modality="CT")
    assert ready.foreground is None
    assert ready.grid.shape == (6, 6, 6)
    assert "no body found" in ready.warnings[0]


def test_classes_are_counted_after_resampling():
    grid = grid_of("RAS", (8, 8, 8))
    label = np.zeros((1, 8, 8, 8), np.int16)
    label[0, :4] = 300
    image = Volume(np.zeros((1, 8, 8, 8), np.int16), grid)
    spacing = Preprocessing(spacing_mm=(2.0, 2.0, 2.0))
    ready = prepare_volume(image, spacing, label=Volume(label, grid))
    assert ready.class_voxels == {0: 32, 300: 32}
    assert ready.label is not None
    assert ready.label.dtype == np.int16
