import pytest
import torch
from torch import nn

from voco.nn.prototypes import PrototypeHead


def test_what_is_said_are_cosines_of_embeddings_and_prototypes():
    head = PrototypeHead((6, 5, 4), 7)
    rows = torch.randn(3, 6)
    expected = torch.cosine_similarity(head.layers(rows)[:, None], head.prototypes[None], dim=2)
    torch.testing.assert_close(head(rows), expected)


def test_an_embedding_that_is_a_prototype_says_so_whatever_their_lengths():
    head = PrototypeHead((6, 4), 7)
    with torch.no_grad():
        head.layers[0].weight.zero_()
        head.layers[0].bias.copy_(30 * head.prototypes[2])
        head.prototypes[2] *= 5
    said = head(torch.randn(3, 6))
    torch.testing.assert_close(said[:, 2], torch.ones(3))
    assert said.argmax(dim=1).tolist() == [2] * 3


def test_layers_have_gelu_between_them_and_start_small():
    head = PrototypeHead((300, 200, 100, 50), 400)
    assert [type(layer) for layer in head.layers] == [
        nn.Linear,
        nn.GELU,
        nn.Linear,
        nn.GELU,
        nn.Linear,
    ]
    for layer in head.layers[::2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_any_row_has_finite_cosines_and_gradients_also_in_half_precision(scale):
    head = PrototypeHead((6, 4), 7)
    rows = (scale * torch.ones(2, 6)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        said = head(rows)
    said.sum().backward()
    assert said.dtype == torch.float32
    assert torch.isfinite(said).all()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(head.prototypes.grad).all()
