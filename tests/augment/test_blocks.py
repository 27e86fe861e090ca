"""Boxes of many sizes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.augment.blocks import between, covered, draw_blocks, numbered_voxels
from voco.draws import Draws


@given(st.integers(0, 1 << 30), st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 5))
def test_blocks_lie_in_the_volume_with_sides_in_their_range(seed, size, border):
    longest = torch.tensor(size)
    boxes = draw_blocks(
        Draws(seed, 0), 2, 3, size, shortest=longest // 3, longest=longest, border=border
    )
    sides = boxes[:, :, 1] - boxes[:, :, 0]
    assert (boxes[:, :, 0] >= 0).all()
    assert (boxes[:, :, 1] <= longest).all()
    assert (sides >= (longest // 3).clamp(min=1)).all()
    away = torch.minimum(boxes[:, :, 0], longest - boxes[:, :, 1])
    assert (away >= ((longest - sides) // 2).clamp(max=border)).all()


def test_both_ends_are_drawn_and_all_between_evenly():
    drawn = between(torch.arange(100) / 100, torch.tensor(3), torch.tensor(6))
    assert torch.bincount(drawn).tolist() == [0, 0, 0, 25, 25, 25, 25]


def test_the_voxels_of_boxes_come_box_by_box_with_z_innermost():
    boxes = torch.tensor([[[1, 0, 2], [2, 2, 4]], [[0, 0, 0], [1, 1, 1]]])
    box, voxel = numbered_voxels(boxes, (2, 3, 4))
    assert box.tolist() == [0, 0, 0, 0, 1]
    inside = torch.zeros(24, dtype=torch.bool)
    inside[voxel] = True
    assert torch.equal(covered(boxes, (2, 3, 4)), inside.view(2, 3, 4))
    assert voxel.tolist() == [12 + 2, 12 + 3, 12 + 4 + 2, 12 + 4 + 3, 0]
    assert [len(part) for part in numbered_voxels(boxes[:0], (2, 3, 4))] == [0, 0]
