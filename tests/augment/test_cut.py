"""Crops cut, resampled, mirrored and turned: in steps, and by one resampling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.augment.crops import augmented
from voco.augment.cut import cut_to, in_one, in_steps
from voco.augment.spatial import resize
from voco.draws import Draws
from voco.geometry import grid_boxes

WAYS = pytest.mark.parametrize("way", [in_steps, in_one])
NO_FLIPS, NO_TURNS = torch.zeros(2, 2, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.int64)


def volumes(count=2, size=(8, 6, 5), channels=2):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


@st.composite
def cases(draw):
    """Volumes of any size, boxes anywhere in them, sizes of crops, flips and turns."""
    sides = st.integers(1, 9)
    count, each = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    whole = [draw(sides) for _ in range(3)]
    starts = [[[draw(st.integers(0, side - 1)) for side in whole] for _ in range(each)]] * count
    stops = [
        [[draw(st.integers(a + 1, side)) for a, side in zip(start, whole, strict=True)]]
        for start in starts[0]
    ]
    boxes = torch.stack(
        [torch.tensor(starts), torch.tensor(stops).squeeze(1).expand(count, -1, -1)], dim=2
    )
    size = [draw(sides) for _ in range(3)]
    size[1] = draw(st.sampled_from(size[:2]))
    flips = torch.tensor([draw(st.booleans()) for _ in range(count * each * 3)])
    turns = torch.tensor([draw(st.integers(0, 3)) for _ in range(count * each)])
    if size[0] != size[1]:
        turns = turns // 2 * 2
    return (
        volumes(count, whole, draw(st.integers(1, 2))),
        boxes,
        tuple(size),
        flips.view(count, each, 3),
        turns.view(count, each),
    )


@given(cases())
def test_one_resampling_gives_what_the_steps_give(case):
    torch.testing.assert_close(in_one(*case), in_steps(*case), atol=2e-6, rtol=0)


def test_so_it_does_for_the_window_of_the_public_code():
    window = volumes(1, (384, 384, 96), channels=1)
    boxes = torch.cat(
        [grid_boxes((4, 4, 1), (96, 96, 96)), torch.tensor([[[5, 7, 0], [101, 103, 96]]])]
    )
    flips = torch.rand(1, 17, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    turns = torch.arange(17)[None] % 4
    case = (window, boxes[None], (64, 64, 64), flips, turns)
    torch.testing.assert_close(in_one(*case), in_steps(*case), atol=5e-5, rtol=0)


@WAYS
def test_boxes_of_many_sizes_become_crops_of_one(way):
    whole = volumes()
    boxes = torch.tensor([[[[0, 0, 0], [4, 4, 3]], [[2, 1, 0], [8, 6, 5]]]]).expand(2, -1, -1, -1)
    found = way(whole, boxes, (4, 4, 3), NO_FLIPS, NO_TURNS)
    close = {"atol": 2e-6, "rtol": 0}
    torch.testing.assert_close(found[:, 0], whole[:, :, :4, :4, :3], **close)
    torch.testing.assert_close(found[:, 1], resize(whole[:, :, 2:, 1:], (4, 4, 3)), **close)


@WAYS
def test_a_ramp_stays_a_ramp_at_any_zoom(way):
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 1, 16, 12, 8).contiguous()
    boxes = torch.tensor([[[[2, 0, 0], [10, 4, 4]], [[0, 1, 2], [4, 5, 6]]]] * 2)
    crops = way(ramp, boxes, (4, 4, 4), NO_FLIPS, NO_TURNS)
    assert crops.shape == (2, 2, 1, 4, 4, 4)
    # Voxels 2 to 9 become four: each is the middle of two.
    assert crops[1, 0, 0, :, 2, 2].tolist() == pytest.approx([2.5, 4.5, 6.5, 8.5], abs=1e-5)
    torch.testing.assert_close(crops[1, 1, 0], ramp[1, 0, 0:4, 1:5, 2:6], atol=1e-5, rtol=0)


@WAYS
def test_a_crop_is_mirrored_first_and_then_turned(way):
    whole = volumes(1, (5, 5, 3))
    boxes = torch.tensor([[[[0, 0, 0], [5, 5, 3]]]])
    flips = torch.tensor([[[True, False, False]]])
    for quarters in range(4):
        found = way(whole, boxes, (5, 5, 3), flips, torch.tensor([[quarters]]))
        expected = torch.rot90(whole.flip(2), quarters, dims=(2, 3))
        torch.testing.assert_close(found[:, 0], expected, atol=2e-6, rtol=0)


@WAYS
def test_crops_whose_sides_differ_take_half_turns_only(way):
    boxes = torch.tensor([[[[0, 0, 0], [4, 4, 3]]] * 2] * 2)
    with pytest.raises(ValueError, match="4 by 5 voxels take half turns only"):
        way(volumes(), boxes, (4, 5, 3), NO_FLIPS, NO_TURNS + 1)


def test_on_a_cpu_a_box_of_the_size_asked_for_keeps_its_bits():
    boxes = torch.tensor([[[[1, 2, 0], [5, 6, 3]]]] * 2)
    assert torch.equal(cut_to(volumes(), boxes, (4, 4, 3))[:, 0], volumes()[:, :, 1:5, 2:6, :3])


# ---- what volume contrast does ----------------------------------------------------------------

ALL = torch.tensor([[[0, 0, 0], [4, 4, 3]], [[4, 2, 1], [8, 6, 4]]])


def test_augmented_crops_do_not_depend_on_the_number_of_processes():
    chances = {
        "flip_probability": 0.5,
        "turn_probability": 0.5,
        "shift_probability": 0.5,
        "shift_strength": 0.1,
    }
    whole, boxes = volumes(4), ALL.expand(4, -1, -1, -1)
    one = augmented(whole, boxes, Draws(0, 1), size=(4, 4, 3), **chances)
    second = augmented(
        whole[2:], boxes[2:], Draws(0, 1, rank=1, world=2), size=(4, 4, 3), **chances
    )
    assert torch.equal(one[2:], second)
    assert not torch.equal(one, cut_to(whole, boxes, (4, 4, 3)))


def test_without_any_probability_crops_stay_as_they_are():
    chances = dict.fromkeys(
        ("flip_probability", "turn_probability", "shift_probability", "shift_strength"), 0.0
    )
    whole, boxes = volumes(), ALL.expand(2, -1, -1, -1)
    found = augmented(whole, boxes, Draws(0, 0), size=(4, 4, 3), **chances)
    assert torch.equal(found, cut_to(whole, boxes, (4, 4, 3)))
    assert torch.equal(found[:, 1], whole[:, :, 4:8, 2:6, 1:4])
