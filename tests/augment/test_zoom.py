import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.augment.zoom import draw_zoomed
from voco.draws import Draws

SIDES = st.tuples(*[st.integers(1, 9)] * 3)


def drawn(scales, *, size=(10, 6, 4), within=(16, 12, 8), count=200):
    return draw_zoomed(Draws(0, 0), count, 3, size=size, within=within, scales=scales)


@given(SIDES, SIDES, st.floats(0.1, 2), st.floats(0, 2))
def test_boxes_lie_within_their_region_whatever_is_asked_for(size, within, low, more):
    boxes = drawn((low, low + more), size=size, within=within, count=20)
    sides = boxes[:, :, 1] - boxes[:, :, 0]
    assert (boxes[:, :, 0] >= 0).all()
    assert (boxes[:, :, 1] <= torch.tensor(within)).all()
    assert (sides >= 1).all()


def test_sides_are_those_of_a_crop_times_one_number_between_the_scales():
    boxes = drawn((0.5, 1.5))
    sides = (boxes[:, :, 1] - boxes[:, :, 0]).flatten(0, 1)
    shares = sides[:, 0] / 10
    assert shares.unique().tolist() == pytest.approx([x / 10 for x in range(5, 16)])
    assert ((sides / torch.tensor([10, 6, 4]) - shares[:, None]).abs() <= 0.25).all()
    assert shares.mean().item() == pytest.approx(1, abs=0.03)


def test_boxes_lie_anywhere():
    starts = drawn((1.0, 1.0))[:, :, 0].flatten(0, 1)
    for axis, room in enumerate((6, 6, 4)):
        counts = torch.bincount(starts[:, axis], minlength=room + 1)
        assert len(counts) == room + 1
        assert counts.min() > 0.6 * 600 / (room + 1)
