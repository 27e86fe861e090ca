import pytest
import torch
from einops import rearrange
from pydantic import ValidationError

from voco.backbones.unetr import UNETR, UNETRConfig
from voco.errors import ConfigError

SIZE = (32, 48, 64)
TINY = UNETRConfig(size=SIZE, feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2)
VOLUMES = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone() -> UNETR:
    torch.manual_seed(0)
    return TINY.build().eval()


def test_all_tokens_are_the_coarsest_level_in_row_major_order(backbone: UNETR):
    with torch.no_grad():
        tokens, level = backbone.tokens(VOLUMES), backbone.encode(VOLUMES)[4]
    assert tokens.shape == (2, 2 * 3 * 4, 12)
    assert torch.allclose(tokens, rearrange(level, "b e x y z -> b (x y z) e"), atol=1e-6)


def test_dropped_tokens_leave_no_trace(backbone: UNETR):
    keep = torch.tensor([[0, 5, 23], [7, 2, 11]])
    other = VOLUMES.clone()
    other[0, :, :16, :16, 16:32] += 10  # token 1 of the first volume, which is dropped
    with torch.no_grad():
        assert torch.equal(backbone.tokens(VOLUMES, keep), backbone.tokens(other, keep))
        other[0, :, :16, :16, :16] += 10  # token 0, which is kept
        assert not torch.equal(backbone.tokens(VOLUMES, keep), backbone.tokens(other, keep))


def test_keeping_all_tokens_in_another_order_gives_the_same_tokens_in_that_order(backbone: UNETR):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    with torch.no_grad():
        usual, kept = backbone.tokens(VOLUMES), backbone.tokens(VOLUMES, order)
    assert torch.allclose(kept, usual.take_along_dim(order[..., None], dim=1), atol=1e-5)


def test_a_hidden_patch_keeps_its_place(backbone: UNETR):
    # Were the token put in after the position code, all hidden patches would be alike.
    hidden = torch.ones(2, 2, 3, 4, dtype=torch.bool)
    with torch.no_grad():
        level = backbone.encode_masked(VOLUMES, hidden, torch.zeros(12))
    assert len(level[0].flatten(1).mT.unique(dim=0)) == 24


def test_volumes_of_another_size_get_the_position_code_stretched_over_them(backbone: UNETR):
    embedding = backbone.network.vit.patch_embedding
    with torch.no_grad():
        code = embedding.position_embeddings
        cells = rearrange(code, "b (x y z) e -> b e x y z", x=2, y=3, z=4)
        stretched = torch.nn.functional.interpolate(cells, (4, 3, 2), mode="trilinear")
        other = UNETRConfig(**(TINY.model_dump() | {"size": (64, 48, 32)})).build().eval()
        weights = backbone.network.state_dict()
        name = "vit.patch_embedding.position_embeddings"
        weights[name] = rearrange(stretched, "b e x y z -> b (x y z) e")
        other.network.load_state_dict(weights)
        volumes = torch.randn(1, 1, 64, 48, 32)
        torch.testing.assert_close(backbone.tokens(volumes), other.tokens(volumes))
        assert embedding.position_embeddings is code


def test_tokens_of_a_method_come_first_and_are_attended_to(backbone: UNETR):
    own = torch.randn(2, 12)
    with torch.no_grad():
        alone, found = backbone.tokens(VOLUMES), backbone.tokens(VOLUMES, leading=own)
        changed = backbone.tokens(VOLUMES, leading=own.flip(0))
    assert found.shape == (2, 2 + 24, 12)
    assert not torch.allclose(found[:, 2:], alone, atol=1e-4)
    # They are nowhere, so that in the other order they are the same in the other order.
    assert torch.allclose(changed[:, :2], found[:, :2].flip(1), atol=1e-5)
    assert torch.allclose(changed[:, 2:], found[:, 2:], atol=1e-5)


def test_a_size_that_tokens_do_not_fill_is_refused_with_one_that_fits(backbone: UNETR):
    with pytest.raises(
        ConfigError, match=r"\(40, 8, 64\).*nearest size that fits is \(32, 16, 64\)"
    ):
        backbone.check_token_size((40, 8, 64))
    backbone.check_token_size((16, 48, 160))


def test_tokens_train_the_declared_parameters_and_no_others(backbone: UNETR):
    backbone.tokens(VOLUMES).square().mean().backward()
    for name, parameter in backbone.network.named_parameters():
        in_use = name.startswith(backbone.token_prefixes) and parameter.requires_grad
        assert (parameter.grad is not None) == in_use, name


def test_another_size_is_refused_and_both_are_named(backbone: UNETR):
    with pytest.raises(ConfigError, match=r"\(32, 48, 64\).*\(64, 64, 64\)"):
        backbone.check_size((64, 64, 64))
    backbone.check_size(SIZE)


def test_a_size_that_patches_do_not_fill_is_refused_with_one_that_fits():
    with pytest.raises(ValidationError, match=r"nearest size that fits is \(32, 96, 48\)"):
        UNETRConfig(size=(16, 100, 47))


def test_heads_must_divide_the_embedding():
    with pytest.raises(ValidationError, match="num_heads 5 must divide hidden_size 12"):
        UNETRConfig(hidden_size=12, num_heads=5)
