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


@pytest.mark.parametrize("residual", [True, False])
def test_values_and_gradients_are_those_of_the_layers_it_stands_for(residual):
    inputs = [numbers(2, 3, 4, 3, 2) * 5 + 1, numbers(2, 3, 4, 3, 2).flip(0)][: 1 + residual]
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


def test_below_float32_the_layers_themselves_are_called():
    features, residual = (numbers(1, 2, 4, 4, 4, dtype=torch.bfloat16) for _ in range(2))
    out = norm_and_leaky_relu(features, 1e-5, 0.01, residual)
    assert torch.equal(out, plain(features, residual))
