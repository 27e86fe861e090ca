"""Where voxels of moved volumes come from, and what is found there."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from voco.augment.deform import (
    MotionConfig,
    affine_matrices,
    bent,
    draw_motions,
    gaussian_weights,
    mapped,
    own_places,
    sampled,
    smoothed,
)
from voco.draws import Draws

STILL = MotionConfig(turn_degrees=0, scale=(1, 1), shear_degrees=0, shift_share=0, bend=0)
ZEROS = {"turns": torch.zeros(1, 3), "scales": torch.ones(1, 3), "shears": torch.zeros(1, 6)}


def matrix_of(**changes):
    return affine_matrices(**(ZEROS | changes))[0]


def volumes_of(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def moved(volumes, config, probability=1.0, step=0, **options):
    draws = Draws(0, step)
    return sampled(
        volumes, draw_motions(draws, volumes, config, probability=probability, **options)
    )


# ---- places -----------------------------------------------------------------------------------


def test_voxels_that_stay_keep_their_values():
    volumes = volumes_of(2, 3, 6, 5, 4)
    places = own_places((6, 5, 4), volumes).expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(sampled(volumes, places), volumes, atol=1e-5, rtol=0)


def test_places_are_voxels_from_the_centre():
    places = own_places((4, 3, 1), torch.zeros(1))[0]
    assert places[0, :, 0, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert places[1, 0, :, 0].tolist() == [-1, 0, 1]
    assert places[2].unique().tolist() == [0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bend_is_in_voxels_along_its_axis(axis):
    volumes = volumes_of(1, 1, 6, 5, 4)
    bends = torch.zeros(1, 3, 6, 5, 4)
    bends[:, axis] = 1.0
    found = sampled(volumes, bent(own_places((6, 5, 4), volumes), bends))
    size = volumes.shape[axis + 2]
    ours, theirs = found.narrow(axis + 2, 0, size - 1), volumes.narrow(axis + 2, 1, size - 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert found.narrow(axis + 2, size - 1, 1).abs().max() < 1e-5  # from outside


def test_coordinates_of_the_reference_are_half_a_voxel_off_at_the_edges_and_right_in_the_middle():
    own = own_places((8, 5, 4), torch.zeros(1))
    still = torch.zeros(1, 3, 8, 5, 4)
    assert torch.equal(bent(own, still), own)
    error = (bent(own, still, "reference") - own)[0]
    for axis, side in enumerate((8, 5, 4)):
        along = error[axis].movedim(axis, 0)[:, 0, 0]
        assert along[0].item() == pytest.approx(-0.5)
        assert along[-1].item() == pytest.approx(0.5)
        assert along[side // 2].abs() < 0.5 / (side - 1) + 1e-6


def test_a_turn_turns_voxels_where_the_reference_turns_shares_of_the_sides():
    own = own_places((8, 4, 4), torch.zeros(1))
    quarter = affine_matrices(**(ZEROS | {"turns": torch.tensor([[0.0, 0.0, math.pi / 2]])}))
    shifts = torch.zeros(1, 3)
    exact = mapped(own, quarter, shifts)[0]
    torch.testing.assert_close(exact[0], -own[0, 1])
    torch.testing.assert_close(exact[1], own[0, 0])
    reference = mapped(own, quarter, shifts, "reference")[0]
    torch.testing.assert_close(reference[0], -2 * own[0, 1])
    torch.testing.assert_close(reference[1], own[0, 0] / 2)
    torch.testing.assert_close(reference[2], own[0, 2])


def test_one_resampling_finds_what_two_would():
    # A quarter turn and a shift by whole voxels blur nothing, so both ways agree exactly.
    volumes = volumes_of(1, 1, 9, 9, 9)
    own = own_places((9, 9, 9), volumes)
    quarter = affine_matrices(**(ZEROS | {"turns": torch.tensor([[math.pi / 2, 0.0, 0.0]])}))
    bends = torch.zeros(1, 3, 9, 9, 9)
    bends[:, 0], bends[:, 2] = 1.0, -2.0
    shifts = torch.tensor([[0.0, 1.0, 0.0]])
    first = sampled(volumes, mapped(own, quarter, shifts))
    twice = sampled(first, bent(own, bends))
    once = sampled(volumes, mapped(bent(own, bends), quarter, shifts))
    seen = (slice(None), slice(None), slice(0, 8), slice(1, 9), slice(2, 9))
    torch.testing.assert_close(once[seen], twice[seen], atol=1e-5, rtol=0)


def test_places_beyond_all_bounds_are_empty_and_finite():
    volumes = volumes_of(1, 1, 4, 4, 4).requires_grad_()
    places = own_places((4, 4, 4), volumes).detach().clone()
    places[:, :, 0] = 1e6
    places.requires_grad_()
    found = sampled(volumes, places)
    found.sum().backward()
    assert (found[:, :, 0] == 0).all()
    assert torch.isfinite(volumes.grad).all()
    assert torch.isfinite(places.grad).all()


# ---- matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (0, [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        (1, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
        (2, [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ],
)
def test_a_quarter_turn_about_each_axis(axis, expected):
    turns = torch.zeros(1, 3)
    turns[0, axis] = math.pi / 2
    torch.testing.assert_close(matrix_of(turns=turns), torch.tensor(expected).float())


def test_places_are_turned_about_x_y_and_z_then_scaled_then_sheared():
    turns, scales, shears = torch.rand(3, 3), torch.rand(3, 3) + 0.5, torch.rand(3, 6) / 4
    for number, found in enumerate(affine_matrices(turns, scales, shears)):
        single = [
            matrix_of(turns=torch.where(torch.arange(3) == axis, turns[number], 0.0)[None])
            for axis in range(3)
        ]
        sheared = torch.eye(3)
        rows, columns = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 2, 0, 2, 0, 1])
        sheared[rows, columns] = shears[number].tan()
        expected = sheared @ scales[number].diag() @ single[2] @ single[1] @ single[0]
        torch.testing.assert_close(found, expected)


def test_matrices_pass_the_gradient_to_every_amount():
    amounts = [torch.rand(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 6)]
    assert torch.autograd.gradcheck(affine_matrices, amounts)


# ---- smoothing --------------------------------------------------------------------------------


@given(st.floats(0.5, 13.0))
def test_weights_of_a_gaussian_sum_to_one_unless_the_edge_cuts_them(sigma):
    side = 2 * math.ceil(4 * sigma + 0.5) + 1
    weights = gaussian_weights(side, sigma, torch.zeros(1))
    assert weights[side // 2].sum().item() == pytest.approx(1, abs=1e-5)
    assert 0.5 < weights[0].sum().item() < 1
    assert torch.equal(weights, weights.mT)


def test_each_field_is_smoothed_along_all_axes_by_its_own_gaussian():
    fields = torch.zeros(2, 3, 11, 9, 7)
    fields[:, :, 5, 4, 3] = 1.0
    sigmas = torch.tensor([0.6, 1.0])
    found = smoothed(fields, sigmas)
    for row, sigma in zip(found, sigmas, strict=True):
        squares = sum(
            ((torch.arange(side) - side // 2) ** 2).float().view(-1, *[1] * (2 - axis))
            for axis, side in enumerate((11, 9, 7))
        )
        near = squares <= 4
        expected = row[0, 5, 4, 3] * torch.exp(-squares / (2 * sigma**2))
        torch.testing.assert_close(row[1][near], expected[near])
    assert found[0].amax() > found[1].amax()


# ---- what is drawn ----------------------------------------------------------------------------


def test_without_any_amount_nothing_moves():
    volumes = volumes_of(2, 1, 6, 5, 4)
    torch.testing.assert_close(moved(volumes, STILL), volumes, atol=1e-5, rtol=0)
    everything = moved(volumes, MotionConfig(), probability=0.0)
    torch.testing.assert_close(everything, volumes, atol=1e-5, rtol=0)


def test_only_the_chosen_volumes_move():
    volumes = volumes_of(60, 1, 4, 4, 4)
    still = (moved(volumes, MotionConfig(), probability=0.3) - volumes).abs().amax(dim=(1, 2, 3, 4))
    assert (still < 1e-5).float().mean() == pytest.approx(0.7, abs=0.15)


def test_shifts_are_as_far_as_asked():
    config = STILL.model_copy(update={"shift_share": 0.25})
    volumes = torch.zeros(200, 1, 8, 4, 4)
    shifts = draw_motions(Draws(0, 0), volumes, config, probability=1.0)
    shifts = (shifts - own_places((8, 4, 4), volumes))[:, :, 0, 0, 0]
    assert (shifts.abs().amax(dim=0) <= torch.tensor([2.0, 1.0, 1.0])).all()
    assert (shifts.amax(dim=0) > torch.tensor([1.8, 0.9, 0.9])).all()
    assert (shifts.amin(dim=0) < torch.tensor([-1.8, -0.9, -0.9])).all()


def test_scales_are_as_far_as_asked():
    config = STILL.model_copy(update={"scale": (0.5, 2.0)})
    volumes = torch.zeros(200, 1, 4, 4, 4)
    places = draw_motions(Draws(0, 0), volumes, config, probability=1.0)
    factors = places[:, 0, 3, 0, 0] / 1.5
    assert 0.5 <= factors.min() < 0.55
    assert 1.95 < factors.max() <= 2.0


def test_bends_are_as_strong_as_the_reference_makes_them():
    # Even noise has a variance of 1/3; a Gaussian along three axes leaves (4 pi sigma^2)^(-3/2).
    config = STILL.model_copy(update={"bend": 512.0, "smoothing": (2.0, 2.0)})
    volumes = torch.zeros(20, 1, 32, 32, 32)
    places = draw_motions(Draws(0, 0), volumes, config, probability=1.0)
    inner = (places - own_places((32, 32, 32), volumes))[..., 8:-8, 8:-8, 8:-8]
    # The factor is even between 0 and 512, so its mean square is a third of the largest.
    expected = 512**2 / 3 / 3 * (4 * math.pi * 2.0**2) ** -1.5
    assert inner.square().mean().item() == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (1.0, 0.5)}, "above the largest"),
        ({"scale": (0.0, 1.0)}, "greater than 0"),
        ({"shear_degrees": 45}, "less than 45"),
    ],
)
def test_amounts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MotionConfig(**changes)
