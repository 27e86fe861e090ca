import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.nn import winograd
from voco.nn.channels_last import channels_last, laid_out

SIDES = st.tuples(st.integers(1, 4).map(lambda tiles: 4 * tiles), *[st.integers(1, 5)] * 2)


def numbers(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def both(features, weight, bias):
    """Value and gradients of torch's convolution and of this one."""
    found = []
    for way in (lambda *given: F.conv3d(*given, padding=1), winograd.winograd):
        leaves = [part.clone().requires_grad_() for part in (features, weight, bias)]
        out = way(laid_out(leaves[0]), *leaves[1:])
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        found.append((out.detach(), *torch.autograd.grad(out, leaves, weights)))
    return found


@settings(max_examples=25, deadline=None)
@given(sides=SIDES, volumes=st.integers(1, 3), channels=st.integers(2, 4), outs=st.integers(1, 3))
def test_values_and_gradients_are_torchs_to_the_last_digits(sides, volumes, channels, outs):
    features = numbers(volumes, channels, *sides)
    weight, bias = numbers(outs, channels, 3, 3, 3, seed=1), numbers(outs, seed=2)
    expected, found = both(features, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("at_once", [1, 2_000, 1_000_000])
def test_however_many_tiles_at_a_time_it_is_the_same(monkeypatch, at_once):
    monkeypatch.setattr(winograd, "_AT_ONCE", at_once)
    features, weight = numbers(2, 3, 12, 5, 4), numbers(2, 3, 3, 3, 3)
    expected, found = both(features, weight, numbers(2))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_in_float32_rounding_is_at_most_four_times_torchs():
    features = numbers(2, 48, 16, 16, 16, dtype=torch.float32)
    weight, bias = numbers(48, 48, 3, 3, 3, dtype=torch.float32), numbers(48, dtype=torch.float32)
    exact = both(features.double(), weight.double(), bias.double())[0]
    torchs, own = both(features, weight, bias)
    for theirs, ours, truth in zip(torchs, own, exact, strict=True):
        assert (ours - truth).norm() <= 4 * (theirs - truth).norm() + 1e-7 * truth.norm()


def test_only_the_gradients_that_are_asked_for_are_made():
    features, weight = numbers(1, 2, 4, 3, 3), numbers(2, 2, 3, 3, 3)
    expected = both(features, weight, numbers(2))[0]
    for asked in range(3):
        leaves = [features, weight, numbers(2)]
        leaves[asked] = leaves[asked].clone().requires_grad_()
        out = winograd.winograd(laid_out(leaves[0]), *leaves[1:])
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        (found,) = torch.autograd.grad(out, leaves[asked], weights)
        torch.testing.assert_close(found, expected[1 + asked], rtol=1e-11, atol=1e-11)


def test_the_result_is_channels_last_and_nothing_is_kept_but_input_and_weight():
    features, weight = laid_out(numbers(1, 3, 8, 4, 4)), numbers(5, 3, 3, 3, 3).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), id):
        out = winograd.winograd(features, weight, None)
    assert channels_last(out)
    assert set(kept) == {features.data_ptr(), weight.data_ptr()}


def test_features_of_another_layout_are_laid_out_and_planes_that_do_not_fit_are_an_error():
    features, weight = numbers(2, 3, 8, 4, 5).requires_grad_(), numbers(4, 3, 3, 3, 3)
    out, expected = winograd.winograd(features, weight, None), F.conv3d(features, weight, padding=1)
    torch.testing.assert_close(out, expected)
    found, wanted = (torch.autograd.grad(each.square().sum(), features) for each in (out, expected))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="4 planes at a time, got 6 along x"):
        winograd.winograd(numbers(1, 3, 6, 4, 5), weight, None)
