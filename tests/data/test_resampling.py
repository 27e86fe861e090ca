import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from voco.data.resampling import interpolated

SIDES = st.tuples(*[st.integers(1, 9)] * 3)


@given(old=SIDES, new=SIDES, channels=st.integers(1, 2))
def test_interpolating_by_rows_is_torchs_trilinear(old, new, channels):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(-1000, 3000, (channels, *old), generator=generator).to(torch.int16)
    expected = F.interpolate(source[None].double(), new, mode="trilinear", align_corners=False)[0]
    found = interpolated(source, new)
    assert found.dtype == torch.int16
    # Half a step by rounding; what is left is that of float32.
    assert (found - expected).abs().max() <= 0.5 + 1e-3


def test_the_same_size_is_the_same_image():
    source = torch.arange(-12, 12).view(1, 2, 3, 4).to(torch.int16)
    assert torch.equal(interpolated(source, (2, 3, 4)), source)
