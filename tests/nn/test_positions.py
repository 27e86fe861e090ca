import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from voco.nn.positions import position_code, resampled_code

GRIDS = st.tuples(*[st.integers(1, 6)] * 3)


def test_position_codes_are_sines_and_cosines_of_each_axis():
    code = position_code((2, 3, 4), 12)
    assert len(code.unique(dim=0)) == 24
    place = 1 * 12 + 2 * 4 + 3
    for axis, at in enumerate((1, 2, 3)):
        expected = [math.sin(at), math.sin(at / 100), math.cos(at), math.cos(at / 100)]
        assert code[place, 4 * axis : 4 * axis + 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_what_six_does_not_divide_is_filled_with_zeros():
    code = position_code((2, 3, 4), 17)
    assert torch.equal(code[:, :12], position_code((2, 3, 4), 12))
    assert torch.equal(code[:, 12:], torch.zeros(24, 5))


@given(GRIDS, GRIDS)
def test_stretching_a_grid_is_trilinear_interpolation(grid, to):
    code = torch.randn(math.prod(grid), 5)
    cells = code.mT.view(1, 5, *grid)
    expected = F.interpolate(cells, size=to, mode="trilinear").flatten(2)[0].mT
    torch.testing.assert_close(resampled_code(code, grid, to), expected, atol=1e-5, rtol=1e-4)


def test_a_code_that_fits_is_left_as_it_is():
    code = torch.randn(24, 5)
    assert resampled_code(code, (2, 3, 4), (2, 3, 4)) is code


def test_a_stretched_code_trains_the_one_it_comes_from():
    code = torch.randn(8, 5, requires_grad=True)
    resampled_code(code, (2, 2, 2), (3, 4, 5)).sum().backward()
    # Every place of the new grid shares out one unit among the places of the old one.
    assert code.grad.sum().item() == pytest.approx(3 * 4 * 5 * 5, rel=1e-5)


def test_a_stretched_code_stays_in_float32_and_has_a_shape_without_storage():
    code = torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = resampled_code(code, (2, 2, 2), (3, 4, 5))
    assert torch.equal(found, resampled_code(code, (2, 2, 2), (3, 4, 5)))
    assert resampled_code(code.to("meta"), (2, 2, 2), (3, 4, 5)).shape == (60, 5)
