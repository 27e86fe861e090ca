"""Pairs of crops: where they lie, and how they are moved and changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from voco.augment.appearance import (
    AppearanceConfig,
    add_noise,
    blur,
    blurred,
    changed,
    gamma,
    inverted_gamma,
    lower_resolution,
    spread,
)
from voco.augment.pairs import (
    cut_pairs,
    moved,
    overlapping_boxes,
    pair_boxes,
    swayed,
    union_share,
)
from voco.draws import Draws
from voco.geometry import overlap

STILL = AppearanceConfig(
    flip_probability=0,
    turn_probability=0,
    noise_probability=0,
    brightness_probability=0,
    contrast_probability=0,
    low_resolution_probability=0,
    gamma_probability=0,
    inverted_gamma_probability=0,
)


def crops_for(count=3, seed=0):
    return torch.rand(count, 1, 8, 8, 6, generator=torch.Generator().manual_seed(seed))


# ---- where ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    offset=st.floats(0, 1),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    room=st.tuples(*[st.integers(0, 12)] * 3),
    pairs=st.integers(1, 3),
)
def test_pairs_stay_in_the_window_and_share_what_they_must(offset, size, room, pairs):
    within = tuple(a + b for a, b in zip(size, room, strict=True))
    places = torch.rand(20, 2 * pairs, 3)
    boxes = pair_boxes(places, size, within, offset)
    assert (boxes[:, :, 0] >= 0).all()
    assert (boxes[:, :, 1] <= torch.tensor(within)).all()
    assert (boxes[:, :, 1] - boxes[:, :, 0] == torch.tensor(size)).all()
    first, second = boxes.unflatten(1, (2, pairs)).flatten(2, 2).unbind(1)
    shared = overlap(first.flatten(0, 1)[:, None], second.flatten(0, 1)[:, None])
    assert shared.min() >= (1 - offset) ** 3 - 1e-6


def test_the_second_crop_reaches_as_far_as_it_may():
    boxes = pair_boxes(torch.rand(4000, 2, 3), (8, 8, 8), (24, 24, 8), 0.5)
    apart = boxes[:, 1, 0] - boxes[:, 0, 0]
    assert apart.amin(dim=0).tolist() == [-4, -4, 0]
    assert apart.amax(dim=0).tolist() == [4, 4, 0]


def test_crops_that_are_not_changed_show_their_boxes():
    volumes = torch.rand(2, 1, 12, 12, 8)
    made = cut_pairs(
        volumes,
        Draws(0, 0),
        size=(8, 8, 8),
        pairs=2,
        largest_offset=0.5,
        appearance=STILL,
        blur_probabilities=(0.0, 0.0),
    )
    assert made.crops.shape == (2, 4, 1, 8, 8, 8)
    for number in range(4):
        (x, y, z), (x_stop, y_stop, z_stop) = made.boxes[1, number].tolist()
        assert torch.equal(made.crops[1, number], volumes[1, :, x:x_stop, y:y_stop, z:z_stop])


def test_what_lies_on_the_grid_of_a_crop_moves_with_it():
    crops = torch.rand(2, 3, 1, 4, 4, 4)
    flips = torch.rand(2, 3, 3) < 0.5
    turns = torch.randint(0, 4, (2, 3))
    both = moved(torch.cat([crops, 10 * crops], dim=2), flips, turns)
    assert torch.equal(both[:, :, :1], moved(crops, flips, turns))
    assert torch.equal(both[:, :, 1:], 10 * both[:, :, :1])


def test_the_first_crops_can_be_blurred_and_the_second_not():
    crops = crops_for(8).unflatten(0, (4, 2))
    out = changed(crops, Draws(0, 0), STILL, (1.0, 0.0))
    assert torch.equal(out[:, 1], crops[:, 1])
    assert (out[:, 0] != crops[:, 0]).flatten(1).any(dim=1).all()


SIZES = ((8, 6, 4), (12, 12, 6), (4, 4, 4))
REFERENCE = ((64, 64, 32), (96, 96, 48), (96, 96, 96), (32, 32, 16), (112, 112, 64))


def test_boxes_of_many_sizes_stay_in_the_window_and_overlap_enough():
    boxes = overlapping_boxes(Draws(0, 0), 100, SIZES, (14, 12, 8), 0.3)
    sides = (boxes[..., 1, :] - boxes[..., 0, :]).flatten(0, 1).tolist()
    assert {tuple(side) for side in sides} == set(SIZES)
    assert (boxes[..., 0, :] >= 0).all()
    assert (boxes[..., 1, :] <= torch.tensor((14, 12, 8))).all()
    one, other = (overlap(a[:, None], b[:, None]).flatten() for a, b in _both_ways(boxes))
    # 1 / union = 1 / ((first + second) / common - 1)
    shares = 1 / (1 / one + 1 / other - 1)
    assert shares.min() > 0.3
    torch.testing.assert_close(union_share(boxes[:, 0], boxes[:, 1]), shares)


def _both_ways(boxes):
    first, second = boxes.unbind(dim=1)
    return (first, second), (second, first)


def test_sizes_and_places_are_drawn_as_by_trying_until_they_fit():
    boxes = overlapping_boxes(Draws(0, 0), 1500, ((2, 1, 1), (1, 1, 1)), (3, 1, 1), 0.4)
    kinds = boxes[:, :, :, 0].flatten(1).unique(dim=0, return_counts=True)
    # In one dimension: sides of 2 and 1 voxels lie in 3, at 2 and 3 places. Enough is shared where
    # both are the same, and where one lies in the other; each of those pairs is as likely as a
    # place of the first is times a place of the second.
    found = {}
    for row, number in zip(kinds[0].tolist(), kinds[1].tolist(), strict=True):
        sides = (row[1] - row[0], row[3] - row[2])
        found.setdefault(sides, []).append(number)
    assert {sides: len(numbers) for sides, numbers in found.items()} == {
        (2, 2): 2,
        (1, 1): 3,
        (1, 2): 4,
        (2, 1): 4,
    }
    likely = {(2, 2): 1 / 4, (1, 1): 1 / 9, (1, 2): 1 / 6, (2, 1): 1 / 6}
    total = 2 / 4 + 3 / 9 + 8 / 6
    for sides, numbers in found.items():
        for number in numbers:
            assert number / 1500 == pytest.approx(likely[sides] / total, abs=0.03)


def test_where_nothing_overlaps_enough_it_is_the_pair_that_overlaps_most():
    boxes = overlapping_boxes(Draws(0, 0), 20, ((2, 2, 2), (4, 4, 4)), (4, 4, 4), 1.0)
    assert (union_share(boxes[:, 0], boxes[:, 1]) == 1).all()


def test_the_sizes_of_the_references_nearly_always_find_a_pair():
    boxes = overlapping_boxes(Draws(0, 0), 300, REFERENCE, (128, 128, 112), 0.25)
    assert (union_share(boxes[:, 0], boxes[:, 1]) > 0.25).all()


# ---- swayed -----------------------------------------------------------------------------------


def test_half_of_the_crops_are_mirrored_along_x_alone():
    crops = torch.rand(50, 2, 1, 4, 4, 4)
    found = swayed(crops, Draws(0, 0), flip_probability=0.5, scale=0.0, degrees=0.0)
    as_it_was = (found - crops).abs().flatten(2).amax(dim=2) < 1e-4
    mirrored = (found - crops.flip(3)).abs().flatten(2).amax(dim=2) < 1e-4
    assert (as_it_was ^ mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.15)


# ---- how it looks -----------------------------------------------------------------------------


def test_every_change_happens_about_as_often_as_asked():
    crops = crops_for(400).unflatten(0, (200, 2))
    for name in ("noise", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma"):
        appearance = STILL.model_copy(update={f"{name}_probability": 0.3})
        out = changed(crops, Draws(0, 0), appearance, (0.0, 0.0))
        share = (out != crops).flatten(2).any(dim=2).float().mean().item()
        assert share == pytest.approx(0.3, abs=0.08), name
        assert torch.isfinite(out).all()


def test_noise_has_the_standard_deviation_asked_for_and_depends_on_the_seed_alone():
    crops = torch.zeros(3, 1, 16, 16, 16)
    stds, seeds = torch.tensor([0.1, 0.2, 0.1]), torch.tensor([5, 6, 5])
    out = add_noise(crops, stds, seeds)
    torch.testing.assert_close(out.flatten(1).std(dim=1), stds, rtol=0.1, atol=0)
    assert torch.equal(out[0], out[2])
    assert torch.equal(add_noise(crops[1:2], stds[1:2], seeds[1:2])[0], out[1])


def test_blur_keeps_what_is_constant_and_spreads_a_point_like_a_gaussian():
    constant = torch.full((2, 1, 8, 8, 8), 0.7)
    torch.testing.assert_close(blur(constant, torch.tensor([0.5, 1.0]), 3), constant)
    point = torch.zeros(2, 1, 15, 15, 15)
    point[:, :, 7, 7, 7] = 1
    sigmas = torch.tensor([0.5, 1.0])
    out = blur(point, sigmas, 5)
    torch.testing.assert_close(out.sum(dim=(1, 2, 3, 4)), torch.ones(2))
    ratio = out[:, 0, 8, 7, 7] / out[:, 0, 7, 7, 7]
    torch.testing.assert_close(ratio, torch.exp(-0.5 / sigmas**2))
    torch.testing.assert_close(out, out.transpose(2, 4))


def test_contrast_keeps_the_mean_and_the_range():
    crops = crops_for()
    less = spread(crops, torch.full((3,), 0.75))
    torch.testing.assert_close(less.flatten(1).std(dim=1), 0.75 * crops.flatten(1).std(dim=1))
    torch.testing.assert_close(less.flatten(1).mean(dim=1), crops.flatten(1).mean(dim=1))
    more = spread(crops, torch.full((3,), 1.25))
    assert torch.equal(more.flatten(1).amax(dim=1), crops.flatten(1).amax(dim=1))


def test_gamma_is_a_power_over_the_crops_own_range():
    crops = torch.tensor([-1.0, 0.0, 3.0]).view(1, 1, 3, 1, 1)
    squared = gamma(crops, torch.tensor([2.0])).flatten()
    torch.testing.assert_close(squared, torch.tensor([-1.0, -1 + 4 * 0.25**2, 3.0]))
    inverted = inverted_gamma(crops, torch.tensor([2.0])).flatten()
    torch.testing.assert_close(inverted, torch.tensor([-1.0, 3 - 4 * 0.75**2, 3.0]))
    constant = torch.full((1, 1, 2, 2, 2), 0.4)
    torch.testing.assert_close(gamma(constant, torch.tensor([0.7])), constant)


def test_low_resolution_keeps_all_at_full_share_and_halves_detail_at_half():
    crops = crops_for()
    torch.testing.assert_close(lower_resolution(crops, torch.ones(3)), crops)
    stripes = torch.tensor([0.0, 1.0] * 4).view(1, 1, 8, 1, 1)
    assert lower_resolution(stripes, torch.tensor([0.5])).unique().numel() == 1
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1)
    found = lower_resolution(ramp, torch.tensor([0.5])).flatten()
    assert (found.diff() >= 0).all()
    assert (found - ramp.flatten()).abs().max() <= 1


def test_changes_of_a_crop_do_not_depend_on_the_others():
    crops = crops_for(8).unflatten(0, (4, 2))
    appearance = STILL.model_copy(
        update={key: 0.5 for key in AppearanceConfig.model_fields if "probability" in key}
    )
    whole = changed(crops, Draws(3, 1), appearance, (0.5, 0.5))
    half = changed(crops[2:], Draws(3, 1, rank=1, world=2), appearance, (0.5, 0.5))
    assert torch.equal(whole[2:], half)


def test_a_range_in_the_wrong_order_is_refused():
    with pytest.raises(ValidationError, match="above the largest"):
        AppearanceConfig(gamma=(1.5, 0.7))


def test_each_crop_is_blurred_by_its_own_amount_up_to_the_most():
    point = torch.zeros(200, 1, 1, 13, 1, 1)
    point[:, :, :, 6] = 1.0
    found = blurred(point, Draws(0, 0), 2.0)
    # A wide Gaussian of standard deviation s has a peak of 1 / (s * sqrt(2 * pi)).
    peaks = found[:, 0, 0, 6].flatten()
    assert peaks.max() > 0.99
    assert peaks.min() == pytest.approx(1 / (2.0 * 2.5066), rel=0.02)
    assert (peaks < 1 / (1.0 * 2.5066)).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(blurred(point, Draws(0, 0), 0.0), point)
