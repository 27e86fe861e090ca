"""Masks on the scan's own grid, from logits that come window by window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from voco.data.preprocess import ras_grid, restore_labels, restore_maps, restore_rows
from voco.data.resampling import slabs, stretch, winners
from voco.geometry import Grid
from voco.inference import Windows, sliding_window

SIDES = st.tuples(*[st.integers(1, 14)] * 3)
MILLIMETRES = st.tuples(*[st.floats(0.5, 3.0)] * 3)
TURNS = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "SLA": np.array([[0, -1.0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
}


def grid_of(shape, spacing_mm, turn="RAS"):
    affine = TURNS[turn] @ np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (3.0, -5.0, 7.0)
    return Grid(shape, affine)


def network_of(classes):
    torch.manual_seed(0)
    return nn.Conv3d(1, classes, 3, padding=1).requires_grad_(requires_grad=False)


def both_ways(network, grid, source, windows):
    """From rows as they come, and from all logits at once."""
    volume = torch.randn(1, *grid.shape, generator=torch.Generator().manual_seed(0))
    streamed = restore_rows(sliding_window(network, volume, windows), grid, source, shares=True)
    whole = [logits.clone() for _, logits in sliding_window(network, volume, windows)]
    return streamed, torch.cat(whole, dim=1)


@settings(max_examples=60, deadline=None)
@given(
    shape=SIDES,
    spacing_mm=MILLIMETRES,
    turn=st.sampled_from(list(TURNS)),
    wanted_mm=MILLIMETRES,
    roi=st.tuples(*[st.integers(1, 8)] * 3),
    overlap=st.sampled_from([0.0, 0.5, 0.7]),
    flip_axes=st.sampled_from([(), (0,), (1, 2)]),
    cut=st.booleans(),
)
def test_rows_as_they_come_and_all_at_once_give_the_same_mask(
    shape, spacing_mm, turn, wanted_mm, roi, overlap, flip_axes, cut
):
    source = grid_of(shape, spacing_mm, turn)
    grid = ras_grid(source).resampled(wanted_mm)
    if cut:
        start = tuple(side // 4 for side in grid.shape)
        kept = tuple(side - 2 * low for side, low in zip(grid.shape, start, strict=True))
        grid = grid.crop(start, kept)
    windows = Windows(roi, overlap, flip_axes=flip_axes)
    streamed, logits = both_ways(network_of(3), grid, source, windows)
    assert streamed.labels.shape == shape
    assert np.array_equal(streamed.labels, restore_labels(logits, grid, source))
    shares = logits.softmax(dim=0)
    background = restore_maps(shares[:1], grid, source, outside=1.0)
    whole = np.concatenate([background, restore_maps(shares[1:], grid, source)])
    assert np.allclose(streamed.shares, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "roi", "classes"),
    [
        ((9, 8, 7), (9, 8, 7), 3),
        ((4, 5, 6), (8, 8, 8), 3),
        ((12, 9, 10), (6, 6, 6), 1),
        ((7, 8, 9), (4, 4, 4), 300),
    ],
    ids=["one window", "smaller than a window", "one class", "more than 256 classes"],
)
def test_the_same_at_the_edges(shape, roi, classes):
    source = grid_of(tuple(2 * side for side in shape), (1.0, 1.0, 1.0))
    grid = source.resampled((2.0, 2.0, 2.0))
    streamed, logits = both_ways(network_of(classes), grid, source, Windows(roi))
    assert streamed.labels.dtype == (np.uint8 if classes <= 256 else np.int16)
    assert np.array_equal(streamed.labels, restore_labels(logits, grid, source))


def test_an_oblique_scan_keeps_its_own_grid():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    source = Grid((12, 10, 9), turn @ grid_of((12, 10, 9), (0.8, 0.8, 1.2), "LPS").affine)
    grid = ras_grid(source).resampled((1.5, 1.5, 1.5))
    streamed, logits = both_ways(network_of(3), grid, source, Windows((4, 4, 4)))
    assert streamed.labels.shape == (12, 10, 9)
    assert np.array_equal(streamed.labels, restore_labels(logits, grid, source))


def test_rows_that_are_missing_are_missed():
    source = grid_of((8, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="rows are missing"):
        restore_rows([(slice(0, 3), torch.zeros(2, 3, 4, 4))], source, source)


@settings(max_examples=80, deadline=None)
@given(
    old=SIDES,
    new=SIDES,
    classes=st.integers(1, 5),
    smooth=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_winner_is_the_highest_of_the_interpolated_scores(old, new, classes, smooth, seed):
    # From few numbers: few borders, so that most voxels are settled without being interpolated.
    coarse = (2, 2, 2) if smooth else old
    scores = torch.randn(1, classes, *coarse, generator=torch.Generator().manual_seed(seed))
    scores = nn.functional.interpolate(scores, size=old, mode="trilinear")[0]
    for slab in slabs(old, new, widen=False):
        rows = scores[:, slab.needed]
        interpolated = torch.cat([stretch(row[None], slab) for row in rows])
        taken = interpolated.gather(0, winners(rows, slab).long()[None])[0]
        assert bool((taken >= interpolated.amax(dim=0) - 1e-5).all())


def test_the_earlier_class_wins_a_tie():
    slab = next(slabs((4, 4, 4), (9, 9, 9), widen=False))
    assert not winners(torch.ones(3, 4, 4, 4), slab).any()
