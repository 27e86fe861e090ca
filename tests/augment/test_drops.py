"""Boxes whose content is dropped: how large, how many, and what comes in its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.augment.blocks import covered
from voco.augment.drops import draw_drops, filled_with_noise
from voco.draws import Draws

EDGES = (0.05, 0.25)


@pytest.mark.parametrize(("side", "shortest", "longest"), [(96, 4, 23), (64, 3, 15)])
def test_edges_and_places_are_those_of_the_reference(side, shortest, longest):
    boxes = torch.cat(draw_drops(Draws(0, 0), 40, (side,) * 3, most=0.3, edges=EDGES))
    start, stop = boxes.unbind(dim=1)
    assert start.min() == 0
    assert start.max() == side - shortest - 1
    assert stop.max() == side
    # Boxes that end at the far side may have been cut there.
    whole = (stop - start)[stop < side]
    assert whole.min() == shortest
    assert whole.max() == longest
    assert torch.bincount(whole)[shortest:].min() > 0.5 * torch.bincount(whole)[shortest:].max()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    size=st.tuples(*[st.integers(1, 24)] * 3),
    most=st.floats(0, 1),
)
def test_boxes_stop_as_soon_as_their_volumes_reach_the_share(seed, size, most):
    whole = size[0] * size[1] * size[2]
    shares = Draws(seed, 0).uniform(2).double() * most  # the first numbers that are drawn
    for share, boxes in zip(
        shares, draw_drops(Draws(seed, 0), 2, size, most=most, edges=EDGES), strict=True
    ):
        assert (boxes[:, 0] >= 0).all()
        assert (boxes[:, 1] <= torch.tensor(size)).all()
        volumes = (boxes[:, 1] - boxes[:, 0]).prod(dim=1)
        assert (volumes > 0).all()
        assert volumes.sum() >= share * whole
        assert volumes[:-1].sum() < share * whole or not len(volumes)


def test_shares_are_drawn_evenly_up_to_the_largest():
    rows = draw_drops(Draws(0, 0), 400, (64, 64, 64), most=0.3, edges=EDGES)
    shares = torch.tensor([(b[:, 1] - b[:, 0]).prod(dim=1).sum() / 64**3 for b in rows])
    quarters = torch.histc(shares, 4, 0, 0.3) / 400
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.06)


def test_with_shares_up_to_30_percent_13_percent_are_covered_on_average():
    size = (48, 48, 48)
    rows = draw_drops(Draws(0, 0), 300, size, most=0.3, edges=EDGES)
    shares = torch.stack([covered(boxes, size).float().mean() for boxes in rows])
    assert shares.mean().item() == pytest.approx(0.13, abs=0.01)
    assert shares.max() < 0.3


def test_nothing_is_dropped_where_nothing_may_be():
    (boxes,) = draw_drops(Draws(0, 0), 1, (8, 8, 8), most=0.0, edges=EDGES)
    assert boxes.shape == (0, 2, 3)
    assert not covered(boxes, (8, 8, 8)).any()
    volume = torch.rand(2, 8, 8, 8)
    assert torch.equal(filled_with_noise(volume, boxes, 0, (0.0, 1.0)), volume)


def test_boxes_of_a_volume_do_not_depend_on_the_others():
    whole = draw_drops(Draws(3, 1), 4, (16, 16, 16), most=0.9, edges=EDGES)
    half = draw_drops(Draws(3, 1, rank=1, world=2), 2, (16, 16, 16), most=0.9, edges=EDGES)
    assert all(torch.equal(*pair) for pair in zip(whole[2:], half, strict=True))


def test_noise_fills_its_box_from_end_to_end_and_nothing_else():
    volume = torch.full((1, 12, 12, 12), 7.0)
    boxes = torch.tensor([[[2, 3, 4], [10, 9, 12]]])
    noisy = filled_with_noise(volume, boxes, 5, (-1.0, 3.0))
    inside = covered(boxes, (12, 12, 12))
    assert torch.equal(noisy[0] != 7, inside)
    assert noisy[0][inside].min() == -1
    assert noisy[0][inside].max() == 3
    # Normal, so most of it lies in the middle half.
    middle = ((noisy[0][inside] - 1).abs() < 1).float().mean()
    assert middle > 0.7
    assert torch.equal(noisy, filled_with_noise(volume, boxes, 5, (-1.0, 3.0)))
    assert not torch.equal(noisy, filled_with_noise(volume, boxes, 6, (-1.0, 3.0)))
    assert (volume == 7).all()


def test_every_box_has_noise_of_its_own_and_the_last_lies_on_top():
    volume = torch.zeros(1, 10, 10, 10)
    boxes = torch.tensor([[[0, 0, 0], [6, 10, 10]], [[4, 0, 0], [10, 10, 10]]])
    both = filled_with_noise(volume, boxes, 0, (1.0, 2.0))
    # The second box is whole: both ends are in it.
    assert both[:, 4:].min() == 1
    assert both[:, 4:].max() == 2
    alone = filled_with_noise(volume, boxes[:1], 0, (1.0, 2.0))
    assert torch.equal(both[:, :4] > 0, alone[:, :4] > 0)


def test_a_box_of_one_voxel_is_filled_with_a_finite_value():
    volume = torch.full((1, 3, 3, 3), 5.0)
    noisy = filled_with_noise(volume, torch.tensor([[[1, 1, 1], [2, 2, 2]]]), 0, (0.0, 1.0))
    assert noisy[0, 1, 1, 1] == 0
    assert (noisy == 5).sum() == 26
