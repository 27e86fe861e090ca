import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.nn.window_layout import APART, window_layout

CPU = torch.device("cpu")
sizes = st.tuples(*[st.integers(1, 9)] * 3)


@given(sides=sizes, window=st.tuples(*[st.integers(1, 4)] * 3), volumes=st.integers(1, 3))
def test_every_token_has_one_place(sides, window, volumes):
    layout = window_layout(sides, window, (0, 0, 0), volumes, CPU)
    tokens = volumes * sides[0] * sides[1] * sides[2]
    assert layout.order.sort().values.tolist() == list(range(tokens))
    assert torch.equal(layout.order[layout.back], torch.arange(tokens))
    assert sum(kind.windows * len(kind.real) for kind in layout.kinds) == tokens


def test_8_tokens_in_windows_of_7_leave_6_places_of_padding_along_an_axis():
    layout = window_layout((8, 1, 1), (7, 1, 1), (0, 0, 0), 1, CPU)
    assert [kind.real.tolist() for kind in layout.kinds] == [[*range(7)], [0]]
    assert layout.kinds[0].padding is None
    assert layout.kinds[1].padding.seen.tolist() == [[0, 1, 1, 1, 1, 1, 1]]
    assert layout.kinds[1].padding.offset.tolist() == [0]


def test_a_shifted_window_joins_both_ends_of_an_axis_and_masks_one_from_the_other():
    layout = window_layout((4, 1, 1), (2, 1, 1), (1, 0, 0), 1, CPU)
    assert layout.order.tolist() == [1, 2, 3, 0]
    inner, outer = layout.kinds
    assert inner.mask is None
    assert outer.mask.tolist() == [[0, APART], [APART, 0]]


def test_a_token_parted_from_all_padding_sees_it_as_far_away_as_masked():
    # Padded to 6 and shifted by 1, the last window holds a place of padding and the first token.
    layout = window_layout((5, 1, 1), (2, 1, 1), (1, 0, 0), 1, CPU)
    last = layout.kinds[-1]
    assert last.real.tolist() == [1]
    assert last.padding.seen.tolist() == [[1, 0]]
    assert last.padding.offset.tolist() == [APART]
