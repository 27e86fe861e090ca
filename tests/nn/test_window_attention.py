import weakref

import torch
import torch.nn.functional as F

from voco.nn.window_attention import Kept, window_attention


def parts(windows=3, heads=2, tokens=9, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(windows, heads, tokens, width)] * 3 + [(heads, tokens, tokens)]
    drawn = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def plain(queries, keys, values, bias):
    weights = (queries @ keys.mT / queries.shape[-1] ** 0.5 + bias).softmax(dim=-1)
    return weights @ values


def test_values_and_gradients_are_those_of_the_formula():
    inputs = parts()
    ours, expected = window_attention(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, expected)
    weights = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    )


def test_tokens_that_a_mask_parts_do_not_see_each_other():
    queries, keys, values, bias = parts()
    bias = bias.detach().clone()
    bias[:, :4, 4:] = -100
    out = window_attention(queries, keys, values, bias)
    at_values = torch.autograd.grad(out[:, :, :4].sum(), values)[0]
    assert at_values[:, :, 4:].abs().max() < 1e-20
    assert at_values[:, :, :4].abs().min() > 1e-6


def test_attention_weights_are_not_kept():
    queries, keys, values, bias = parts(tokens=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), id):
        window_attention(queries, keys, values, bias)
    assert max(kept) == bias.numel()


def test_in_bf16_values_and_gradients_are_closer_than_those_of_torchs_own():
    inputs = [part.to(torch.bfloat16) for part in parts(tokens=40, width=16)[:3]]
    inputs = [part.detach().requires_grad_() for part in inputs]
    bias = parts(tokens=40)[3].detach().float().requires_grad_()
    exact = [part.detach().double().requires_grad_() for part in (*inputs, bias)]
    weights = torch.linspace(-1, 2, inputs[0].numel()).view_as(inputs[0])

    def found(run, leaves):
        out = run(*leaves)
        return (out, *torch.autograd.grad(out, leaves, weights.to(out.dtype)))

    def distance(run):
        pairs = zip(found(run, [*inputs, bias]), found(plain, exact), strict=True)
        return torch.stack([(a.double() - b).norm() / b.norm() for a, b in pairs])

    def torchs(queries, keys, values, bias):
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias.to(queries.dtype)[None]
        )

    assert (distance(window_attention) <= distance(torchs)).all()


def test_what_was_kept_is_given_again_and_has_the_same_gradients():
    first, second = parts(), parts(windows=2)
    kept = Kept()
    outs = [window_attention(*each, kept) for each in (first, second)]
    kept.complete = True
    for _ in range(2):  # as often as a block is computed
        for inputs, out in zip((first, second), outs, strict=True):
            again = window_attention(*inputs, kept)
            assert again.data_ptr() == out.data_ptr()
            torch.testing.assert_close(
                torch.autograd.grad(again.square().sum(), inputs),
                torch.autograd.grad(plain(*inputs).square().sum(), inputs),
            )


def test_what_is_kept_holds_no_graph():
    inputs, kept = parts(), Kept()
    held = weakref.ref(window_attention(*inputs, kept).grad_fn)
    assert held() is None
