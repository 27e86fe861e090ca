"""Damages of volumes: what moves, what becomes noise, what stays."""

import pytest
import torch

from voco.augment.damage import draw_hidden, origins, painted, shuffled
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


def test_blocks_are_a_tenth_of_the_volume_at_most():
    places = torch.arange(20.0).view(1, 1, 20, 1, 1).expand(1, 1, 20, 30, 10).contiguous()
    moved = shuffled(places, Draws(0, 0), probability=1.0, blocks=300)
    assert (moved - places).abs().max() == 1
    still = shuffled(places, Draws(0, 0), probability=0.0, blocks=300)
    assert torch.equal(still, places)


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
