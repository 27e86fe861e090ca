import pytest
import torch

from voco.augment.intensity import draw_shifts, shift
from voco.draws import Draws


def test_each_crop_is_shifted_by_its_own_amount():
    crops = torch.rand(3, 2, 2, 2, 2)
    shifted = shift(crops, torch.tensor([0.0, 0.5, -0.25]))
    torch.testing.assert_close(
        (shifted - crops)[:, 0, 0, 0, 0], torch.tensor([0.0, 0.5, -0.25]), atol=1e-6, rtol=0
    )


def test_shifts_are_as_frequent_and_as_large_as_asked():
    shifts = draw_shifts(Draws(0, 0), 100, 100, 0.1, 0.3)
    moved = shifts[shifts != 0]
    assert moved.numel() / shifts.numel() == pytest.approx(0.3, abs=0.02)
    assert moved.min().item() == pytest.approx(-0.1, abs=1e-3)
    assert moved.max().item() == pytest.approx(0.1, abs=1e-3)
    assert moved.mean().item() == pytest.approx(0, abs=5e-3)


def test_a_shift_keeps_the_type_of_the_crops():
    crops = torch.rand(2, 1, 2, 2, 2, dtype=torch.bfloat16)
    assert shift(crops, torch.tensor([0.1, 0.2])).dtype == torch.bfloat16
