import pytest
import torch
import torch.nn.functional as F

from voco.nn.instance_norm import instance_norm, norm_and_leaky_relu, scaled_norm


def numbers(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def plain(features, residual):
    normed = F.instance_norm(features, eps=1e-5)
    return F.leaky_relu(normed if residual is None else normed + residual, 0.01)


def gradients(run, *inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = run(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad(out, leaves, weights)


LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [True, False])
def test_values_and_gradients_are_those_of_the_layers_it_stands_for(residual, layout):
    inputs = [numbers(2, 3, 4, 3, 2) * 5 + 1, numbers(2, 3, 4, 3, 2).flip(0)][: 1 + residual]
    inputs = [part.to(memory_format=layout) for part in inputs]
    ours = gradients(lambda x, r=None: norm_and_leaky_relu(x, 1e-5, 0.01, r), *inputs)
    expected = gradients(lambda x, r=None: plain(x, r), *inputs)
    torch.testing.assert_close(ours, expected)


def test_the_norm_alone_is_torchs():
    features = numbers(2, 3, 2, 3, 4)
    ours = gradients(lambda x: instance_norm(x, 1e-5), features)
    torch.testing.assert_close(ours, gradients(lambda x: F.instance_norm(x, eps=1e-5), features))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_residual_of_one_channel_is_a_convolution_to_many_and_their_norm(dtype):
    inputs = [
        numbers(2, 3, 4, 3, 2, dtype=dtype),
        numbers(2, 1, 4, 3, 2, dtype=dtype) * 3 + 2,
        torch.tensor([0.7, -2.0, 1e-3], dtype=dtype),
    ]

    def ours(features, volumes, weights):
        return norm_and_leaky_relu(features, 1e-5, 0.01, *scaled_norm(volumes, weights, 1e-5))

    def layers(features, volumes, weights):
        spread = F.conv3d(volumes, weights.view(3, 1, 1, 1, 1))
        return plain(features, F.instance_norm(spread, eps=1e-5))

    if dtype == torch.float64:
        torch.testing.assert_close(gradients(ours, *inputs), gradients(layers, *inputs))
    else:
        torch.testing.assert_close(ours(*inputs), layers(*inputs), atol=0.03, rtol=0.03)


def test_the_input_of_the_norm_is_not_kept():
    features = numbers(1, 2, 4, 4, 4).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), id):
        convolved = features * 2
        out = norm_and_leaky_relu(convolved, 1e-5, 0.01)
    assert out.data_ptr() in kept
    assert convolved.data_ptr() not in kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_that_comes_in_goes_out_and_back(layout):
    features = numbers(2, 3, 4, 3, 2).to(memory_format=layout)
    out, (gradient,) = gradients(lambda x: norm_and_leaky_relu(x, 1e-5, 0.01), features)
    assert out.is_contiguous(memory_format=layout)
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_statistics_of_many_voxels_in_float32_keep_their_digits(layout, mean):
    features = (numbers(1, 4, 64, 64, 64) + mean).float().to(memory_format=layout)
    expected = F.instance_norm(features.double(), eps=1e-5)
    # A float32 near 100 has 1e-5 as its last digit.
    torch.testing.assert_close(
        instance_norm(features, 1e-5).double(), expected, rtol=0, atol=2e-6 + mean * 1e-6
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 2, 1, 1, 2), (2, 3, 3, 5, 7), (1, 1, 4, 4, 4)])
def test_odd_sizes_are_normalised_in_either_layout(layout, shape):
    features = numbers(*shape).to(memory_format=layout)
    ours = gradients(lambda x: instance_norm(x, 1e-5), features)
    torch.testing.assert_close(ours, gradients(lambda x: F.instance_norm(x, eps=1e-5), features))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_bf16_it_is_as_close_to_exact_as_the_layers_are(layout):
    inputs = [numbers(2, 8, 24, 24, 24) * 5 + 1, numbers(2, 8, 24, 24, 24).flip(0)]
    halved = [part.to(torch.bfloat16, memory_format=layout) for part in inputs]
    exact = [part.double() for part in halved]

    def distance(run):
        out, found = gradients(run, *halved)
        expected_out, expected = gradients(plain, *exact)
        pairs = zip((out, *found), (expected_out, *expected), strict=True)
        return torch.stack([(a.double() - b).norm() / b.norm() for a, b in pairs])

    ours = distance(lambda x, r: norm_and_leaky_relu(x, 1e-5, 0.01, r))
    assert (ours <= 1.2 * distance(plain)).all()
