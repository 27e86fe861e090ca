import pytest
import torch

from voco.augment.crops import draw_kept
from voco.augment.spatial import (
    affine,
    draw_affines,
    draw_flips,
    draw_turns,
    flip,
    resize,
    turn,
)
from voco.draws import Draws


def crops(count=4, size=(4, 4, 3)):
    return torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0))


def test_only_the_chosen_crops_are_mirrored_along_the_chosen_axes():
    before = crops()
    flips = torch.zeros(4, 3, dtype=torch.bool)
    flips[1, 0] = flips[2, 1] = flips[3, 2] = True
    after = flip(before, flips)
    expected = [before[0], before[1].flip(1), before[2].flip(2), before[3].flip(3)]
    assert torch.equal(after, torch.stack(expected))


def test_mirroring_twice_changes_nothing():
    flips = draw_flips(Draws(0, 0), 2, 2, 0.5).flatten(0, 1)
    assert torch.equal(flip(flip(crops(), flips), flips), crops())


def test_each_crop_makes_its_own_number_of_quarter_turns():
    before = crops()
    after = turn(before, torch.arange(4))
    for quarters in range(4):
        expected = torch.rot90(before[quarters], quarters, dims=(1, 2))
        assert torch.equal(after[quarters], expected)


@pytest.mark.parametrize(("plane", "axes"), [("xy", (1, 2)), ("xz", (1, 3)), ("yz", (2, 3))])
def test_a_turn_is_in_its_plane_from_its_first_axis_towards_its_second(plane, axes):
    before = crops(size=(4, 4, 4))
    after = turn(before, torch.arange(4), plane)
    for quarters in range(4):
        expected = torch.rot90(before[quarters], quarters, dims=axes)
        assert torch.equal(after[quarters], expected)
    oblong = torch.rand(1, 1, 3, 4, 5)
    assert torch.equal(
        turn(oblong, torch.tensor([2]), plane), oblong.flip([axis + 1 for axis in axes])
    )


def test_a_turn_and_its_rest_make_a_whole():
    turns = torch.arange(4)
    assert torch.equal(turn(turn(crops(), turns), (4 - turns) % 4), crops())


def test_crops_whose_sides_differ_take_half_turns_only():
    oblong = crops(size=(4, 6, 3))
    turns = draw_turns(Draws(0, 0), 20, 20, 0.5, square=False)
    assert turns.unique().tolist() == [0, 2]
    after = turn(oblong, torch.tensor([0, 2, 0, 2]))
    assert torch.equal(after[0], oblong[0])
    assert torch.equal(after[1], oblong[1].flip(1, 2))
    with pytest.raises(ValueError, match="half turns only"):
        turn(oblong, torch.tensor([0, 1, 0, 0]))


def test_flips_and_turns_are_as_frequent_as_asked():
    flips = draw_flips(Draws(0, 0), 50, 40, 0.2)
    turns = draw_turns(Draws(0, 0), 50, 40, 0.2, square=True)
    torch.testing.assert_close(
        flips.float().mean(dim=(0, 1)), torch.full((3,), 0.2), atol=0.03, rtol=0
    )
    shares = turns.flatten().bincount() / turns.numel()
    torch.testing.assert_close(shares[1:], torch.full((3,), 0.2 / 3), atol=0.02, rtol=0)


def test_a_resized_crop_keeps_its_edges():
    ramp = (torch.arange(6.0) + 0.5).view(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    small = resize(ramp, (2, 2, 2))
    assert small[0, 0, :, 0, 0].tolist() == [1.5, 4.5]


def test_a_crop_of_the_right_size_is_not_resampled():
    assert resize(crops(), (4, 4, 3)) is not None
    assert torch.equal(resize(crops(), (4, 4, 3)), crops())


def test_dropping_crops_keeps_their_mean():
    kept = draw_kept(Draws(0, 0), 100, 50, 0.2)
    assert kept.unique().tolist() == [0.0, 1.25]
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(draw_kept(Draws(0, 0), 3, 4, 0.0), torch.ones(3, 4))


# ---- turned and stretched ---------------------------------------------------------------------


def test_what_is_neither_turned_nor_stretched_stays():
    still = draw_affines(Draws(0, 0), 4, 1, scale=0.0, degrees=0.0).flatten(0, 1)
    assert torch.equal(still, torch.eye(3).expand(4, 3, 3))
    torch.testing.assert_close(affine(crops(), still), crops(), atol=1e-5, rtol=0)


def test_an_affine_of_a_quarter_turn_is_a_quarter_turn():
    before = crops(size=(5, 5, 3))
    quarter = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = affine(before, quarter.expand(4, 3, 3))
    torch.testing.assert_close(turned, torch.rot90(before, 1, dims=(2, 3)), atol=1e-5, rtol=0)


def test_a_stretched_ramp_is_steeper_by_the_factor_along_its_own_axis():
    for axis, side in enumerate((9, 7, 5)):
        place = torch.arange(side) - (side - 1) / 2
        ramp = place.view([-1 if at == axis + 2 else 1 for at in range(5)]).expand(1, 1, 9, 7, 5)
        matrix = torch.eye(3)
        matrix[axis, axis] = 0.5
        found = affine(ramp, matrix[None])
        torch.testing.assert_close(found, ramp * 0.5, atol=1e-5, rtol=0)


def test_beyond_the_edge_lies_the_least_intensity_of_each_channel():
    volumes = torch.full((1, 2, 6, 6, 6), 2.0)
    volumes[:, 1, 2:4, 2:4, 2:4] = -3.0
    shrunk = affine(volumes, 3 * torch.eye(3)[None])
    assert shrunk[0, 0, 0, 0, 0] == 2
    assert shrunk[0, 1, 0, 0, 0] == -3


def test_turns_and_stretches_stay_in_their_range_and_turns_keep_lengths():
    matrices = draw_affines(Draws(0, 0), 100, 2, scale=0.1, degrees=10.0).double()
    factors = matrices.norm(dim=-2)  # the columns of a rotation times a factor for each
    assert factors.min() < 0.92
    assert factors.max() > 1.08
    assert (factors - 1).abs().max() <= 0.1 + 1e-6
    rotations = matrices / factors[..., None, :]
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity, atol=1e-6, rtol=0)
    assert (torch.linalg.det(rotations) > 0.99).all()
    # Three turns of at most ten degrees each make at most thirty.
    trace = rotations.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    angles = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
    assert 5 < angles.mean() < 15
    assert angles.max() < 30
