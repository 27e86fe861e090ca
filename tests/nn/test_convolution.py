import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from voco.nn.convolution import Conv3d, use_own_convolutions

WIDE = {"in_channels": 128, "out_channels": 96, "kernel_size": 3}
"""More weights than the least that count as many."""


def layers(**arguments):
    """A layer of torch's and ours, with the same weights."""
    torch.manual_seed(0)
    torchs, own = nn.Conv3d(**arguments), Conv3d(**arguments)
    own.load_state_dict(torchs.state_dict())
    return torchs, own


def gradients(layer, features):
    leaf = features.clone().requires_grad_()
    out = layer(leaf)
    weights = torch.linspace(-1, 2, out.numel()).view_as(out)
    return out.detach(), torch.autograd.grad(out, [leaf, *layer.parameters()], weights)


def as_product(out):
    return "_Product" in type(out.grad_fn).__name__


@settings(max_examples=25, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 4)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 2)] * 3),
    padding=st.tuples(*[st.integers(0, 1)] * 3),
    volumes=st.integers(1, 2),
    last=st.booleans(),
    bias=st.booleans(),
)
def test_values_and_gradients_are_torchs(sides, kernel, stride, padding, volumes, last, bias):
    assume(all(s + 2 * p >= k for s, p, k in zip(sides, padding, kernel, strict=True)))
    channels = 768 if kernel == (1, 1, 1) else 512
    torchs, own = layers(
        in_channels=channels,
        out_channels=channels,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        bias=bias,
    )
    layout = torch.channels_last_3d if last else torch.contiguous_format
    features = torch.randn(volumes, channels, *sides).contiguous(memory_format=layout)
    out, found = gradients(own, features)
    expected, wanted = gradients(torchs, features)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-4)
    places = out[:, 0].numel()
    assert as_product(own(features)) == (places <= 64)


def test_in_float64_they_are_torchs_to_the_last_digits():
    torchs, own = (layer.double() for layer in layers(**WIDE, padding=1))
    features = torch.randn(2, 128, 2, 3, 2, dtype=torch.float64)
    assert as_product(own(features))
    torch.testing.assert_close(own(features), torchs(features), rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert own(features).dtype == torchs(features).dtype == torch.float64


def test_many_places_few_weights_and_other_convolutions_are_left_to_torch():
    few = torch.randn(1, 128, 2, 2, 2)
    assert as_product(layers(**WIDE, padding=1)[1](few))
    assert not as_product(layers(**WIDE, padding=1)[1](torch.randn(1, 128, 5, 5, 5)))
    assert not as_product(
        layers(in_channels=4, out_channels=4, kernel_size=3, padding=1)[1](few[:, :4])
    )
    for more in ({"groups": 2}, {"dilation": 2, "padding": 2}, {"padding": "same"}):
        torchs, own = layers(**{**WIDE, "in_channels": 256, "out_channels": 128, **more})
        features = torch.randn(1, 256, 3, 3, 3)
        assert not as_product(own(features))
        assert torch.equal(own(features), torchs(features))
    circular = layers(**WIDE, padding=1, padding_mode="circular")[1]
    assert not as_product(circular(few))


def saves_products(out):
    return "_Winograd" in type(out.grad_fn).__name__


FINE = {"in_channels": 96, "out_channels": 96, "kernel_size": 3, "padding": 1}


def test_fine_levels_of_many_channels_save_half_of_the_products():
    torchs, own = layers(**FINE)
    features = torch.randn(1, 96, 8, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    out, found = gradients(own, features)
    expected, wanted = gradients(torchs, features)
    assert saves_products(own(features))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"out_channels": 16},
        {"kernel_size": 1, "padding": 0},
        {"padding": 0},
        {"stride": 2},
        {"groups": 2},
        {"dilation": 2, "padding": 2},
        {"padding_mode": "circular"},
    ],
)
def test_where_nothing_is_saved_or_it_is_another_sum_torch_computes_it(changes):
    torchs, own = layers(**{**FINE, **changes})
    features = torch.randn(1, 96, 8, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    assert not saves_products(own(features))
    assert torch.equal(own(features), torchs(features))


def test_other_layouts_sides_and_types_are_left_to_torch():
    _, own = layers(**FINE)
    last = {"memory_format": torch.channels_last_3d}
    assert not saves_products(own(torch.randn(1, 96, 8, 16, 16)))
    for sides in ((6, 16, 16), (8, 15, 16)):
        assert not saves_products(own(torch.randn(1, 96, *sides).contiguous(**last)))
    features = torch.randn(1, 96, 8, 16, 16).contiguous(**last)
    with torch.autocast("cpu", torch.bfloat16):
        assert not saves_products(own(features))
    assert not saves_products(own.bfloat16()(features.bfloat16()))
    own = own.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert saves_products(own(features.double()))


def test_in_mixed_precision_the_type_is_autocasts_and_the_sums_are_float32s():
    _, own = layers(**WIDE, padding=1)
    features = torch.randn(1, 128, 2, 2, 2)
    leaf = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = own(leaf)
    assert out.dtype == torch.bfloat16
    assert as_product(out)
    assert torch.equal(out, own(features).to(torch.bfloat16))
    out.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32


def test_a_volume_too_small_or_of_other_channels_is_an_error_as_torchs():
    _, own = layers(**WIDE)
    with pytest.raises(RuntimeError, match="Kernel size"):
        own(torch.randn(1, 128, 2, 2, 2))
    with pytest.raises(RuntimeError, match="128"):
        layers(**WIDE, padding=1)[1](torch.randn(1, 64, 2, 2, 2))


def test_a_network_keeps_its_weights_their_names_and_their_order():
    network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Sequential(nn.Conv3d(3, 2, 1, bias=False)))
    before = dict(network.named_parameters())
    use_own_convolutions(network)
    after = dict(network.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert [type(layer) for layer in (network[0], network[1][0])] == [Conv3d, Conv3d]


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
@pytest.mark.parametrize(
    ("sides", "kernel", "stride", "padding"),
    [
        ((2, 4, 4), 3, 1, 1),
        ((2, 2, 2), 3, 1, 1),
        ((6, 3, 1), 3, 2, 1),
        ((12, 1, 2), 3, 2, 1),
        ((4, 5, 6), 5, 1, 2),
        ((3, 6, 10), 4, 1, 2),
        ((2, 4, 4), 3, 1, "same"),
    ],
)
def test_in_bfloat16_gradients_of_short_sides_are_near_the_exact_ones(
    how, sides, kernel, stride, padding
):
    """Torch's are whatever lay in memory, on some processors."""
    given = {"in_channels": 16, "out_channels": 24, "kernel_size": kernel}
    exact, own = layers(**given, stride=stride, padding=padding)
    exact.double()
    own = own if how == "autocast" else own.bfloat16()
    for seed in range(5):  # the memory is not always dirty
        features = torch.randn(2, 16, *sides, generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            out, found = gradients(own, features if how == "autocast" else features.bfloat16())
        assert out.dtype == torch.bfloat16
        expected, wanted = gradients(exact, features.double())
        assert (out - expected).norm() < 0.02 * expected.norm()
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() < 0.02 * other.norm()


def test_long_sides_stay_with_torch_in_bfloat16():
    _, own = layers(in_channels=4, out_channels=4, kernel_size=3, padding=1)
    features = torch.randn(1, 4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert "Convolution" in type(own(features).grad_fn).__name__
        assert "Convolution" not in type(own(features[:, :, :2]).grad_fn).__name__
