import pytest
import torch

from voco.nn.pooling import hypercolumns, level_mean, split_for_caches


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_means_are_those_of_the_voxels_with_one_number_for_the_gradient_of_all(dtype):
    level = torch.randn(2, 3, 4, 5, 6).to(dtype).requires_grad_()
    found = level_mean(level)
    expected = level.double().mean(dim=(2, 3, 4))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    weights = torch.randn(2, 3, dtype=found.dtype)
    given = []
    level.register_hook(given.append)
    found.backward(weights)
    assert level.grad is not None
    assert given[0].stride() == (3, 1, 0, 0, 0)
    torch.testing.assert_close(
        level.grad, (weights / 120).to(dtype)[:, :, None, None, None].expand_as(level)
    )


def test_a_level_as_fine_as_the_volume_is_read_voxel_by_voxel():
    level = torch.randn(1, 3, 4, 5, 6)
    voxels = torch.tensor([[0, 0, 0], [3, 4, 5], [1, 2, 3]])
    x, y, z = voxels.unbind(dim=1)
    torch.testing.assert_close(hypercolumns([level], voxels, (4, 5, 6)), level[0, :, x, y, z].mT)


def test_coarser_levels_are_interpolated_between_the_middles_of_their_voxels():
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    voxels = torch.tensor([[x, 0, 0] for x in range(8)])
    # A voxel of the level lies over two of the volume, whose middles are a quarter off its own.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(hypercolumns([ramp], voxels, (8, 4, 4))[:, 0], expected)


def test_levels_are_joined_in_their_order():
    pyramid = [torch.full((1, width, 2, 2, 2), float(width)) for width in (1, 2)]
    found = hypercolumns(pyramid, torch.zeros(3, 3, dtype=torch.int64), (4, 4, 4))
    assert torch.equal(found, torch.tensor([[1.0, 2.0, 2.0]] * 3))


@pytest.mark.parametrize(
    ("side", "count", "pieces"),
    [(64, 18, [3] * 6), (64, 7, [4, 3]), (64, 1, [1]), (96, 2, [1, 1]), (32, 18, [18])],
)
def test_crops_are_split_evenly_into_pieces_that_caches_hold(side, count, pieces):
    crops = torch.empty(1).expand(count, 1, side, side, side)
    assert [len(piece) for piece in split_for_caches(crops)] == pieces
