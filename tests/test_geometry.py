import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.geometry import Grid, boxes_at, crop, grid_boxes, overlap, random_boxes

counts = st.tuples(*[st.integers(1, 4)] * 3)
sizes = st.tuples(*[st.integers(1, 5)] * 3)
seeds = st.integers(0, 2**31)


def window(cells, size):
    return tuple(n * side for n, side in zip(cells, size, strict=True))


def drawn(seed, count, size, within):
    return random_boxes(count, size, within, torch.Generator().manual_seed(seed))


def counted(query, base):
    """The share by counting voxels one by one."""
    voxels = [
        all(base[0][axis] <= voxel[axis] < base[1][axis] for axis in range(3))
        for voxel in np.ndindex(*(stop - start for start, stop in zip(*query, strict=True)))
        for voxel in [tuple(v + s for v, s in zip(voxel, query[0], strict=True))]
    ]
    return sum(voxels) / len(voxels)


def test_a_crop_equal_to_a_base_overlaps_it_fully():
    boxes = grid_boxes((2, 2, 1), (8, 8, 8))
    assert torch.equal(overlap(boxes, boxes), torch.eye(4))


def test_a_crop_between_four_bases_has_a_quarter_in_each():
    bases = grid_boxes((4, 4, 1), (96, 96, 96))
    query = torch.tensor([[[48, 48, 0], [144, 144, 96]]])
    expected = torch.zeros(1, 16)
    expected[0, [0, 1, 4, 5]] = 0.25  # (0, 0), (0, 1), (1, 0), (1, 1): x outermost
    assert torch.equal(overlap(query, bases), expected)


@given(counts, sizes, seeds)
def test_shares_of_a_crop_inside_the_grid_sum_to_one(cells, size, seed):
    queries = drawn(seed, 3, size, window(cells, size))
    shares = overlap(queries, grid_boxes(cells, size))
    assert shares.min() >= 0
    assert shares.max() <= 1
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))


@given(counts, sizes, seeds)
def test_a_crop_of_a_bases_size_meets_at_most_two_bases_along_each_axis(cells, size, seed):
    shares = overlap(drawn(seed, 3, size, window(cells, size)), grid_boxes(cells, size))
    most = 2 ** sum(count > 1 for count in cells)
    assert int((shares > 0).sum(dim=1).max()) <= most


@given(counts, sizes, sizes, seeds)
def test_a_share_is_what_counting_voxels_gives(cells, size, other, seed):
    bases = grid_boxes(cells, size, origin=(1, 2, 3))
    within = tuple(max(a + 5, b) for a, b in zip(window(cells, size), other, strict=True))
    queries = drawn(seed, 1, other, within)
    expected = [counted(queries[0].tolist(), base) for base in bases.tolist()]
    torch.testing.assert_close(overlap(queries, bases)[0], torch.tensor(expected))


@given(counts, sizes, seeds)
def test_shares_follow_the_order_of_crops_and_bases(cells, size, seed):
    queries, bases = drawn(seed, 4, size, window(cells, size)), grid_boxes(cells, size)
    rng = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(4, generator=rng), torch.randperm(len(bases), generator=rng)
    permuted = overlap(queries[rows], bases[columns])
    assert torch.equal(permuted, overlap(queries, bases)[rows][:, columns])


def test_each_volume_has_its_own_crops_and_bases():
    bases = grid_boxes((2, 1, 1), (4, 4, 4))
    queries = torch.stack([bases, bases.flip(0)])
    both = overlap(queries, torch.stack([bases, bases]))
    assert torch.equal(both, torch.stack([torch.eye(2), torch.eye(2).flip(0)]))


def test_boxes_that_do_not_touch_share_nothing():
    box = torch.tensor([[[0, 0, 0], [4, 4, 4]]])
    assert overlap(box, box + 4).item() == 0
    assert overlap(box, box + 9).item() == 0


def test_a_box_without_volume_has_no_share():
    empty = torch.tensor([[[1, 1, 1], [1, 4, 4]]])
    assert overlap(empty, torch.tensor([[[0, 0, 0], [4, 4, 4]]])).item() == 0


def test_shares_of_large_boxes_are_exact():
    whole = torch.tensor([[[0, 0, 0], [4096, 4096, 4096]]])
    assert overlap(whole, whole).item() == 1


@given(counts, sizes)
def test_bases_tile_their_region(cells, size):
    boxes = grid_boxes(cells, size)
    seen = torch.zeros(window(cells, size))
    for (x, y, z), (x_stop, y_stop, z_stop) in boxes.tolist():
        seen[x:x_stop, y:y_stop, z:z_stop] += 1
    assert torch.equal(seen, torch.ones_like(seen))


def test_bases_are_ordered_with_x_outermost():
    starts = grid_boxes((2, 2, 2), (3, 4, 5), origin=(1, 0, 0))[:, 0].tolist()
    assert starts[:3] == [[1, 0, 0], [1, 0, 5], [1, 4, 0]]
    assert starts[-1] == [4, 4, 5]


@pytest.mark.parametrize(("cells", "size"), [((0, 1, 1), (4, 4, 4)), ((1, 1, 1), (4, 0, 4))])
def test_a_grid_without_extent_is_refused(cells, size):
    with pytest.raises(ValueError, match="at least 1"):
        grid_boxes(cells, size)


@given(sizes, sizes, seeds)
def test_random_boxes_lie_within_their_region(size, room, seed):
    within = window((1, 1, 1), tuple(a + b for a, b in zip(size, room, strict=True)))
    boxes = drawn(seed, 8, size, within)
    assert int(boxes[:, 0].min()) >= 0
    assert bool((boxes[:, 1] <= torch.tensor(within)).all())
    assert bool((boxes[:, 1] - boxes[:, 0] == torch.tensor(size)).all())


def test_every_start_is_equally_likely():
    place = (torch.arange(700).float() / 700)[:, None].expand(-1, 3)
    starts = boxes_at(place, (4, 4, 4), (10, 10, 4))[:, 0]
    assert torch.equal(starts[:, 0].bincount(), torch.full((7,), 100))
    assert int(starts[:, 2].max()) == 0


def test_the_greatest_place_still_gives_a_box_inside():
    place = torch.full((1, 3), 1 - 2**-24)
    assert int(boxes_at(place, (1, 1, 1), (2**20, 2, 1))[0, 1, 0]) <= 2**20


def test_a_box_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        drawn(0, 1, (4, 4, 5), (4, 4, 4))


@given(seeds)
def test_a_crop_holds_the_voxels_of_its_box(seed):
    volumes = torch.arange(2 * 2 * 6 * 5 * 4.0).view(2, 2, 6, 5, 4)
    boxes = drawn(seed, 6, (3, 2, 4), (6, 5, 4)).view(2, 3, 2, 3)
    crops = crop(volumes, boxes)
    (x, y, z), (x_stop, y_stop, z_stop) = boxes[1, 2].tolist()
    assert torch.equal(crops[1, 2], volumes[1, :, x:x_stop, y:y_stop, z:z_stop])


def test_outside_of_a_volume_there_are_zeros():
    volumes = torch.ones(1, 1, 4, 4, 4)
    crops = crop(volumes, torch.tensor([[[[-2, 0, 3], [2, 4, 7]]]]))
    assert crops.sum().item() == 2 * 4 * 1
    assert torch.equal(crops[0, 0, 0, 2:, :, 0], torch.ones(2, 4))


def test_boxes_of_different_sizes_cannot_be_cut_together():
    boxes = torch.tensor([[[[0, 0, 0], [2, 2, 2]], [[0, 0, 0], [3, 2, 2]]]])
    with pytest.raises(ValueError, match="differ in size"):
        crop(torch.zeros(1, 1, 4, 4, 4), boxes)


def oblique():
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    angle = 0.2
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] = (-20, 13, 5)
    return Grid((10, 12, 7), affine)


def test_a_grid_knows_its_spacing_and_orientation():
    np.testing.assert_allclose(oblique().spacing_mm, (0.7, 0.8, 2.5))
    assert oblique().orientation == "RAS"
    flipped = Grid((2, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert flipped.orientation == "LPS"
    swapped = Grid((2, 2, 2), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 0, 1, 3]])
    assert swapped.orientation == "ASR"


def world(grid, voxel):
    return grid.affine[:3, :3] @ np.asarray(voxel, float) + grid.affine[:3, 3]


def test_a_cropped_grid_keeps_voxels_where_they_are():
    part = oblique().crop((-2, 3, 1), (4, 4, 4))
    np.testing.assert_allclose(world(part, (2, 0, 1)), world(oblique(), (0, 3, 2)))


@given(st.tuples(*[st.integers(1, 30)] * 3))
def test_a_reshaped_grid_keeps_its_outer_edges(shape):
    old, new = oblique(), oblique().reshaped(shape)
    for corner in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        before = np.array(corner) * old.shape - 0.5
        after = np.array(corner) * shape - 0.5
        np.testing.assert_allclose(world(new, after), world(old, before), atol=1e-9)


def test_a_resampled_grid_has_the_nearest_spacing_that_fits():
    new = oblique().resampled((1.0, 1.0, 1.0))
    assert new.shape == (7, 10, 18)
    extents = np.array(new.spacing_mm) * new.shape
    np.testing.assert_allclose(extents, np.array(oblique().spacing_mm) * oblique().shape)
