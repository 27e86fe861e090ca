"""Damages that volumes are restored from, each on its own."""

import pytest
import torch

from voco.augment.damage import (
    block_sides,
    covered_by,
    curve,
    curved,
    draw_hidden,
    interpolated,
    origins,
    painted,
    shuffled,
)
from voco.draws import Draws

# ---- shuffling --------------------------------------------------------------------------------


def test_a_shuffle_keeps_the_voxels_of_each_block_and_all_others():
    boxes = torch.tensor([[[0, 0, 0], [3, 2, 2]], [[4, 3, 1], [6, 6, 5]]])
    volume = torch.arange(8 * 7 * 6)
    moved = volume[origins(boxes, (8, 7, 6), seed=0)].view(8, 7, 6)
    volume = volume.view(8, 7, 6)
    outside = torch.ones(8, 7, 6, dtype=torch.bool)
    for (x, y, z), (x_stop, y_stop, z_stop) in boxes.tolist():
        where = (slice(x, x_stop), slice(y, y_stop), slice(z, z_stop))
        before, after = volume[where].flatten(), moved[where].flatten()
        assert not torch.equal(before, after)
        assert torch.equal(before, after.sort().values)
        outside[where] = False
    assert torch.equal(volume[outside], moved[outside])


def test_where_blocks_overlap_the_last_one_counts_and_reads_the_original():
    boxes = torch.tensor([[[0, 0, 0], [4, 4, 4]], [[2, 0, 0], [3, 4, 4]]])
    moved = origins(boxes, (4, 4, 4), seed=1).view(4, 4, 4)
    assert moved[2].sort(dim=-1).values.flatten().sort().values.tolist() == list(range(32, 48))
    assert len(set(moved[:2].flatten().tolist())) == 32


def test_all_orders_of_a_block_are_equally_likely():
    boxes = torch.tensor([[[0, 0, 0], [1, 1, 3]]])
    orders = torch.stack([origins(boxes, (1, 1, 3), seed) for seed in range(1200)])
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 150


def test_a_shared_order_is_that_of_every_block_of_one_size():
    starts = torch.tensor([[0, 0, 0], [4, 1, 2], [1, 4, 3]])
    boxes = torch.stack([starts, starts + 2], dim=1)
    volume = torch.arange(6 * 6 * 6)
    for order, kinds in (("shared", 1), ("own", 3)):
        moved = volume[origins(boxes, (6, 6, 6), 3, order)].view(6, 6, 6)
        steps = [
            (moved - volume.view(6, 6, 6))[x : x + 2, y : y + 2, z : z + 2].flatten()
            for x, y, z in starts.tolist()
        ]
        assert len(torch.stack(steps).unique(dim=0)) == kinds
        assert all(step.any() for step in steps)


def test_blocks_have_the_sides_that_are_asked_for():
    places = torch.arange(20.0).view(1, 1, 20, 1, 1).expand(1, 1, 20, 30, 10).contiguous()
    sides = {"shortest": torch.ones(3).long(), "longest": torch.tensor([2, 3, 1])}
    moved = shuffled(places, Draws(0, 0), probability=1.0, blocks=300, **sides)
    assert (moved - places).abs().max() == 1
    still = shuffled(places, Draws(0, 0), probability=0.0, blocks=300, **sides)
    assert torch.equal(still, places)


# ---- curves -----------------------------------------------------------------------------------


def test_a_curve_rises_from_0_to_1_or_falls_from_1_to_0():
    points = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0))
    inverted = torch.arange(20) % 2 == 1
    x, y = curve(points, inverted, 1000)
    assert (x[:, 0] == 0).all()
    assert (x[:, -1] == 1).all()
    assert (x.diff() >= 0).all()
    assert y[:, 0].tolist() == inverted.float().tolist()
    assert y[:, -1].tolist() == (~inverted).float().tolist()
    assert (y.diff()[inverted] <= 0).all()
    assert (y.diff()[~inverted] >= 0).all()


def test_a_straight_curve_changes_nothing_or_gives_the_negative():
    points = torch.tensor([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]).expand(2, 2, 2)
    x, y = curve(points, torch.tensor([False, True]), 1000)
    volumes = torch.rand(1, 1, 4, 4, 4).expand(2, -1, -1, -1, -1)
    found = interpolated(volumes, x, y)
    torch.testing.assert_close(found[0], volumes[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], 1 - volumes[1], atol=1e-5, rtol=0)


def test_a_curve_goes_through_its_middle():
    # At half of the parameter: (3 * first + 3 * second + 1) / 8.
    points = torch.tensor([[[0.9, 0.1], [0.5, 0.3]]])
    x, y = curve(points, torch.tensor([False]), 1001)
    middle = torch.full((1, 1, 1, 1, 1), (3 * 0.9 + 3 * 0.5 + 1) / 8)
    found = interpolated(middle, x, y)
    assert found.item() == pytest.approx((3 * 0.1 + 3 * 0.3 + 1) / 8, abs=1e-4)


def test_beyond_its_ends_a_curve_is_flat():
    x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    volumes = torch.tensor([-3.0, 0.25, 7.0]).view(1, 1, 3, 1, 1)
    assert interpolated(volumes, x, y).flatten().tolist() == [1.0, 0.75, 0.0]


def test_as_many_volumes_get_a_curve_and_as_many_of_those_fall_as_asked():
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1).expand(100, -1, -1, -1, -1)
    ends = torch.cat([ends, torch.full_like(ends, 0.37)], dim=2)
    found = curved(ends, Draws(0, 0), probability=0.9, inverted_probability=0.5)
    assert (found == ends).flatten(1).all(dim=1).float().mean() == pytest.approx(0.1, abs=0.08)
    assert (found[:, 0, 0] == 1).float().mean() == pytest.approx(0.45, abs=0.12)
    rising = curved(ends, Draws(0, 0), probability=0.9, inverted_probability=0.0)
    assert (rising[:, 0, 0] == 0).all()


# ---- boxes ------------------------------------------------------------------------------------


def test_only_the_first_so_many_boxes_cover_anything():
    boxes = torch.tensor([[[0, 0, 0], [1, 2, 2]], [[2, 1, 0], [4, 2, 1]], [[1, 1, 1], [3, 3, 2]]])
    covered = covered_by(boxes.expand(4, 3, 2, 3), torch.arange(4), (4, 3, 2))
    assert covered.flatten(1).sum(dim=1).tolist() == [0, 4, 6, 10]
    assert torch.equal(covered[1].nonzero().amax(dim=0), torch.tensor([0, 1, 1]))


# ---- painting ---------------------------------------------------------------------------------


def test_painting_inside_hides_boxes_away_from_the_border():
    hidden = draw_hidden(Draws(0, 0), 50, (30, 24, 18), probability=1.0, inpaint_share=1.0)
    assert not hidden[:, :3].any()
    assert not hidden[..., -3:].any()
    assert 0.01 < hidden.float().mean() < 5 / 27
    assert hidden.flatten(1).sum(dim=1).max() <= 5 * 10 * 8 * 6


def test_painting_outside_leaves_boxes_of_about_half_the_sides():
    seen = ~draw_hidden(Draws(0, 0), 50, (30, 24, 18), probability=1.0, inpaint_share=0.0)
    assert not seen[:, :3].any()
    assert not seen[..., -3:].any()
    least = (30 - 4 * 30 // 7) * (24 - 4 * 24 // 7) * (18 - 4 * 18 // 7)
    assert seen.flatten(1).sum(dim=1).min() >= least
    assert (~seen).flatten(1).any(dim=1).all()


def test_what_is_hidden_is_even_noise_and_the_rest_stays():
    volumes = torch.full((4, 2, 16, 16, 16), 5.0)
    found = painted(volumes, Draws(0, 0), probability=1.0, inpaint_share=0.2)
    noise = found[found != 5]
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.var() == pytest.approx(1 / 12, abs=0.005)
    still = painted(volumes, Draws(0, 0), probability=0.0, inpaint_share=0.2)
    assert torch.equal(still, volumes)


def test_blocks_are_a_tenth_of_the_volume_at_most():
    assert block_sides((20, 35, 9)).tolist() == [[1, 1, 1], [2, 3, 1]]
