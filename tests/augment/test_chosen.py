"""Changing some crops of a batch."""

import pytest
import torch

from voco.augment.appearance import blur
from voco.augment.chosen import change_all, change_chosen


def crops(count=4, size=(4, 4, 3)):
    return torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chosen", [[], [2], [0, 1, 3], [0, 1, 2, 3]])
def test_changing_all_crops_and_keeping_the_chosen_is_changing_the_chosen(chosen):
    rows = torch.zeros(4, dtype=torch.bool)
    rows[chosen] = True
    amounts = torch.arange(4.0)
    changes = [
        (rows, lambda some, _: some.flip(2)),
        (~rows, lambda some, own: some * amounts[own].view(-1, 1, 1, 1, 1)),
    ]
    before = crops()
    found = change_all(before, changes)
    assert torch.equal(found, change_chosen(before, changes))
    expected = torch.stack(
        [crop.flip(1) if row in chosen else crop * row for row, crop in enumerate(before)]
    )
    assert torch.equal(found, expected)
    assert torch.equal(before, crops())


def test_what_a_change_makes_of_a_crop_not_meant_for_it_is_not_taken():
    sigmas = torch.tensor([0.0, 0.7, 0.0, 0.5])  # a Gaussian of no width is no number
    changes = [(sigmas > 0, lambda some, own: blur(some, sigmas[own], 2))]
    found = change_all(crops(), changes)
    assert found.isfinite().all()
    assert torch.equal(found, change_chosen(crops(), changes))
