import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from voco.nn.channels_last import channels_last, laid_out, moments, products, standardised
from voco.nn.instance_norm import InstanceNorm3d, use_own_norms

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
SHAPES = st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 6)] * 3)


def numbers(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@given(SHAPES)
def test_laying_out_changes_no_value_and_no_gradient(shape):
    features = numbers(*shape).requires_grad_()
    out = laid_out(features)
    assert torch.equal(out, features)
    weights = numbers(*shape).flip(0)
    assert torch.equal(torch.autograd.grad(out, features, weights)[0], weights)


def test_a_convolution_of_one_channel_is_told_the_layout():
    volumes, kernel = numbers(2, 1, 32, 32, 32).float(), torch.ones(8, 1, 3, 3, 3)
    assert channels_last(F.conv3d(laid_out(volumes), kernel))
    assert not channels_last(F.conv3d(volumes, kernel))


@given(SHAPES, st.sampled_from(LAYOUTS))
def test_products_with_another_channel_are_added_up_over_voxels(shape, layout):
    features = numbers(*shape).contiguous(memory_format=layout)
    one = numbers(shape[0], 1, *shape[2:]).flip(-1)
    torch.testing.assert_close(products(features, one), (features * one).sum(dim=(2, 3, 4)))


@given(SHAPES)
def test_moments_are_those_of_the_voxels(shape):
    features = laid_out(numbers(*shape) * 3 + 1)
    mean, variance = moments(features)
    torch.testing.assert_close(mean, features.mean(dim=(2, 3, 4)))
    torch.testing.assert_close(variance, features.var(dim=(2, 3, 4), correction=0))


def test_standardising_is_the_formula():
    features, (mean, variance) = laid_out(numbers(2, 3, 4, 4, 4)), numbers(2, 2, 3).square()
    weight, bias = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, -1.0, 3.0]).double()
    ours = standardised(features, mean, variance, 1e-3, weight, bias)

    def spread(numbers):
        return numbers.expand(2, 3)[:, :, None, None, None]

    scaled = (features - spread(mean)) / (spread(variance) + 1e-3).sqrt()
    torch.testing.assert_close(ours, scaled * spread(weight) + spread(bias))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("volumes", [1, 2])
@pytest.mark.parametrize("outer", LAYOUTS)
@pytest.mark.parametrize("inner", LAYOUTS)
def test_the_layer_is_torchs_in_any_layout_of_features_and_gradients(inner, outer, volumes, affine):
    # Torch's own gradients are wrong for one volume and gradients with channels last.
    ours, torchs = InstanceNorm3d(3, affine=affine), nn.InstanceNorm3d(3, affine=affine)
    if affine:
        ours.weight.data = torch.tensor([0.5, 0.0, -2.0])
        ours.bias.data = torch.tensor([0.0, 1.0, -1.0])
        torchs.load_state_dict(ours.state_dict())
    ours.double(), torchs.double()
    values, weights = numbers(volumes, 3, 4, 3, 5), numbers(volumes, 3, 4, 3, 5).flip(2)

    def found(layer, features, weights):
        features = features.requires_grad_()
        out = layer(features)
        return out, *torch.autograd.grad(out, [features, *layer.parameters()], weights)

    torch.testing.assert_close(
        found(ours, values.to(memory_format=inner, copy=True), weights.to(memory_format=outer)),
        found(torchs, values.clone(), weights),
    )


def test_a_gradient_that_is_nearly_the_same_at_all_voxels_keeps_its_digits():
    values = laid_out(numbers(1, 4, 64, 64, 64).float())
    gradient = 1 + 1e-3 * numbers(1, 4, 64, 64, 64).flip(2)
    layer = InstanceNorm3d(4)

    def found(dtype):
        features = values.to(dtype).requires_grad_()
        return torch.autograd.grad(layer(features), features, gradient.to(dtype))[0].double()

    exact = found(torch.float64)
    # What the last digit of a float32 near 1 leaves of a thousandth.
    assert (found(torch.float32) - exact).norm() < 2e-4 * exact.norm()


def test_running_statistics_are_kept_as_torchs_layer_keeps_them():
    values = laid_out(numbers(2, 3, 4, 3, 5).float())
    layers = [kind(3, track_running_stats=True) for kind in (InstanceNorm3d, nn.InstanceNorm3d)]
    torch.testing.assert_close(*(layer(values) for layer in layers))
    torch.testing.assert_close(*(layer.running_mean for layer in layers))
    assert layers[0].running_mean.any()


def test_own_norms_take_the_place_of_torchs_around_their_weights():
    network = nn.Sequential(
        nn.Conv3d(1, 2, 1), nn.Sequential(nn.InstanceNorm3d(2, eps=0.1, affine=True))
    )
    before, weight = network.state_dict(), network[1][0].weight
    use_own_norms(network)
    assert type(network[1][0]) is InstanceNorm3d
    assert network[1][0].weight is weight
    assert network[1][0].eps == 0.1
    assert network.state_dict().keys() == before.keys()
