"""Sparse networks: nothing hidden is seen, norms are of what is seen, the network is as before."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from voco.backbone import Backbone
from voco.backbones import ResEncUNetConfig, SwinUNETRConfig, UNetConfig, UNETRConfig
from voco.nn.sparse import Seen, layers_of, sparse, unfit

SIZE = (32, 32, 32)
NETWORKS = {
    "resenc_unet": ResEncUNetConfig(features=(4, 6, 8, 8), blocks=(1, 2, 1, 1)),
    "unet": UNetConfig(features=(4, 4, 6, 8, 10, 4)),
}
every = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = NETWORKS[name].build()
    with torch.no_grad():  # biases and shifts that start as zero would hide that they leak
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


def layers(backbone: Backbone) -> list[nn.Module]:
    return layers_of(backbone.network, backbone.encoder_prefixes)


def blocks_of(grid: int, count: int, volumes: int = 2, seed: int = 0) -> torch.Tensor:
    order = torch.rand(volumes, grid**3, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return (order < count).view(volumes, grid, grid, grid)


def volumes_for(seen: Seen, size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    shape = (len(seen.blocks), 1, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def encoded(backbone: Backbone, volumes: torch.Tensor, seen: Seen) -> list[torch.Tensor]:
    with torch.no_grad(), sparse(layers(backbone), seen):
        return backbone.encode(volumes)


def size_of(level: torch.Tensor) -> tuple[int, int, int]:
    x, y, z = level.shape[2:]
    return (x, y, z)


def interior(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden voxels that are two or more away from all that is seen."""
    return F.max_pool3d((~hidden).float(), 3, stride=1, padding=1) == 0


# ---- what is seen -----------------------------------------------------------------------------


def test_a_block_is_seen_with_all_its_voxels():
    blocks = torch.zeros(1, 2, 1, 2, dtype=torch.bool)
    blocks[0, 1, 0, 0] = True
    voxels = Seen(blocks).voxels((4, 3, 6))
    expected = torch.zeros(1, 1, 4, 3, 6, dtype=torch.bool)
    expected[:, :, 2:, :, :3] = True
    assert torch.equal(voxels, expected)


def test_all_of_a_map_smaller_than_the_grid_is_seen():
    seen = Seen(blocks_of(4, 10))
    assert seen.voxels((2, 2, 2)).all()
    assert not seen.voxels((4, 4, 4)).all()
    level = torch.randn(2, 3, 2, 2, 2)
    assert torch.equal(seen.only(level), level)
    assert torch.equal(seen.unpacked(seen.packed(level), like=level), level)


def test_a_map_that_blocks_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"\(6, 8, 8\) voxels cannot be cut into \(4, 4, 4\)"):
        Seen(blocks_of(4, 10)).voxels((6, 8, 8))


def test_volumes_that_differ_in_what_is_seen_are_refused():
    blocks = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at least one; got \[0\]"):
        Seen(blocks)
    blocks[0, 0, 0, 0] = True
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Seen(blocks)


@given(
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    edges=st.tuples(*[st.integers(1, 3)] * 3),
    seed=st.integers(0, 99),
)
def test_what_is_packed_is_what_is_seen_and_unpacks_to_it(grid, edges, seed):
    i, j, k = grid
    generator = torch.Generator().manual_seed(seed)
    total = i * j * k
    count = int(torch.randint(1, total + 1, (), generator=generator))
    order = torch.rand(2, total, generator=generator).argsort(1)
    seen = Seen((order < count).view(2, i, j, k))
    features = torch.randn(2, 3, *(a * b for a, b in zip(grid, edges, strict=True)))
    packed = seen.packed(features)
    voxels = seen.voxels(size_of(features))
    for row, feature, visible in zip(packed[..., 0, 0], features, voxels[:, 0], strict=True):
        assert torch.equal(row.sort(dim=1).values, feature[:, visible].sort(dim=1).values)
    assert torch.equal(seen.unpacked(packed, like=features), features * voxels)
    assert torch.equal(seen.only(features), features * voxels)


# ---- networks ---------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(("grid", "count"), [(4, 16), (2, 2)])
def test_nothing_hidden_changes_anything_in_any_level(name, grid, count):
    backbone, seen = network(name), Seen(blocks_of(grid, count))
    volumes = volumes_for(seen)
    other = torch.where(seen.voxels(SIZE), volumes, torch.randn(2, 1, *SIZE))
    one, two = (encoded(backbone, seen.only(v), seen) for v in (volumes, other))
    assert not torch.equal(volumes, other)
    for level, same in zip(one, two, strict=True):
        assert torch.equal(level, same)
        hidden = ~seen.voxels(size_of(level))
        assert hidden.any() == (level.shape[2] >= grid)
        assert not level.masked_fill(~hidden, 0).any()
        assert level.masked_fill(hidden, 0).any()


@every
def test_without_a_masked_input_a_rim_of_what_is_hidden_is_seen_and_no_more(name):
    backbone, seen = network(name), Seen(blocks_of(2, 2))
    volumes = volumes_for(seen)
    hidden = ~seen.voxels(SIZE)
    deep = interior(hidden)
    before = encoded(backbone, volumes, seen)
    inner = encoded(backbone, torch.where(deep, volumes + 1, volumes), seen)
    rim = encoded(backbone, torch.where(hidden & ~deep, volumes + 1, volumes), seen)
    assert deep.any()
    assert all(torch.equal(a, b) for a, b in zip(before, inner, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, rim, strict=True))


@every
def test_where_all_is_seen_the_network_is_the_usual_one(name):
    backbone, seen = network(name), Seen(torch.ones(2, 2, 2, 2, dtype=torch.bool))
    volumes = volumes_for(seen)
    with torch.no_grad():
        usual = backbone.encode(volumes)
    for level, expected in zip(encoded(backbone, volumes, seen), usual, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


@every
def test_a_volume_is_encoded_alike_whatever_else_is_in_the_batch(name):
    backbone, blocks = network(name), blocks_of(4, 16)
    volumes = volumes_for(Seen(blocks))
    together = encoded(backbone, Seen(blocks).only(volumes), Seen(blocks))
    own = Seen(blocks[1:])
    alone = encoded(backbone, own.only(volumes[1:]), own)
    for level, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(level[1:], expected, atol=1e-4, rtol=1e-4)


@every
def test_hooks_are_gone_afterwards_also_after_an_error(name):
    backbone, seen = network(name), Seen(blocks_of(4, 16))
    volumes = volumes_for(seen)
    with torch.no_grad():
        before = backbone.encode(volumes)
    with pytest.raises(ValueError, match="cannot be cut"):
        encoded(backbone, volumes[..., :16, :16, :16].repeat(1, 1, 3, 3, 3), Seen(blocks_of(5, 9)))
    encoded(backbone, volumes, seen)
    for module in backbone.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.no_grad():
        after = backbone.encode(volumes)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every
def test_names_and_parameters_are_the_librarys_before_during_and_after(name):
    backbone, seen = network(name), Seen(blocks_of(4, 16))
    modules = list(backbone.network.named_modules())
    keys = list(backbone.network.state_dict())
    with sparse(layers(backbone), seen):
        assert list(backbone.network.named_modules()) == modules
        assert list(backbone.network.state_dict()) == keys
    assert list(backbone.network.state_dict()) == keys


def test_contexts_within_each_other_do_not_mix():
    backbone = network("resenc_unet")
    outer, inner = Seen(blocks_of(4, 16)), Seen(blocks_of(4, 16, seed=1))
    volumes = volumes_for(outer)
    other = network("resenc_unet")
    with torch.no_grad(), sparse(layers(backbone), outer):
        found = encoded(other, inner.only(volumes), inner)
        around = backbone.encode(outer.only(volumes))
    pairs = [(found, other, inner), (around, backbone, outer)]
    for levels, net, seen in pairs:
        expected = encoded(net, seen.only(volumes), seen)
        assert all(torch.equal(a, b) for a, b in zip(levels, expected, strict=True))


# ---- norms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_that_of_the_seen_voxels_alone(affine):
    seen, norm = Seen(blocks_of(4, 16)), nn.InstanceNorm3d(3, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    features = torch.randn(2, 3, 8, 8, 8) * 3 + 5
    with torch.no_grad(), sparse([norm], seen):
        found = norm(features)
    visible = seen.voxels((8, 8, 8))[:, 0]
    for row, expected, mask in zip(found, features, visible, strict=True):
        values = expected[:, mask].double()
        assert values.shape == (3, 16 * 8)
        mean, variance = values.mean(1, keepdim=True), values.var(1, correction=0, keepdim=True)
        normed = (values - mean) / (variance + 1e-5).sqrt()
        if affine:
            normed = normed * norm.weight[:, None] + norm.bias[:, None]
        torch.testing.assert_close(row[:, mask].double(), normed, atol=1e-5, rtol=1e-5)
        assert not row[:, ~mask].any()


def test_statistics_are_taken_in_float32_whatever_the_precision():
    seen, norm = Seen(blocks_of(4, 16)), nn.InstanceNorm3d(3)
    features = (torch.randn(2, 3, 16, 16, 16) + 100).bfloat16()
    with sparse([norm], seen):
        found, exact = norm(features), norm(features.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_hidden_voxels_get_no_gradient_and_seen_ones_that_of_the_norm_alone():
    seen, norm = Seen(blocks_of(2, 3)), nn.InstanceNorm3d(2).double()
    features = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64)
    with sparse([norm], seen):
        (norm(features) * weights).sum().backward()
    alone = features.detach().clone().requires_grad_()
    total = sum(
        (norm(f[None, :, m][..., None, None])[0, :, :, 0, 0] * w[:, m]).sum()
        for f, w, m in zip(alone, weights, seen.voxels((4, 4, 4))[:, 0], strict=True)
    )
    total.backward()
    torch.testing.assert_close(features.grad, alone.grad)
    assert not features.grad.masked_fill(seen.voxels((4, 4, 4)), 0).any()


# ---- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(2, 2, 3, padding=1), nn.MaxPool3d(2), nn.AvgPool3d(2), nn.Conv3d(2, 2, 3, 2, 1)],
)
def test_convolutions_and_pooling_give_zeros_where_nothing_is_seen(layer):
    seen = Seen(blocks_of(2, 3))
    features = torch.randn(2, 2, 8, 8, 8)
    usual = layer(features)
    with sparse([layer], seen):
        found = layer(features)
    assert torch.equal(found, usual * seen.voxels(size_of(usual)))


def test_an_infinity_that_is_hidden_does_not_become_a_nan():
    seen, layer = Seen(blocks_of(2, 3)), nn.AvgPool3d(1)
    features = torch.full((2, 2, 4, 4, 4), torch.inf)
    with sparse([layer], seen):
        found = layer(features)
    assert torch.equal(found == torch.inf, seen.voxels((4, 4, 4)).expand_as(found))
    assert not found.isnan().any()


@every
def test_networks_of_convolutions_and_instance_norms_fit(name):
    assert not unfit(layers(network(name)))


@pytest.mark.parametrize(
    ("config", "others"),
    [
        (SwinUNETRConfig(feature_size=12, depths=(1, 1, 1, 1)), {"LayerNorm", "Linear"}),
        (
            UNETRConfig(size=(32, 32, 32), feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2),
            {"LayerNorm", "Linear", "ConvTranspose3d"},
        ),
    ],
    ids=["swin_unetr", "unetr"],
)
def test_networks_with_attention_do_not_fit(config, others):
    assert set(unfit(layers(config.build()))) >= others


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm3d(2),
        nn.GroupNorm(1, 2),
        nn.ConvTranspose3d(2, 2, 2, stride=2),
        nn.Upsample(scale_factor=2),
        nn.MultiheadAttention(2, 1),
        nn.Sigmoid(),
    ],
)
def test_other_layers_do_not_fit_wherever_they_are(layer):
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Conv3d(2, 2, 3), layer), "decoder": layer})
    assert type(layer).__name__ in unfit(layers_of(net, ("encoder.",)))
    alone = nn.ModuleDict({"encoder": nn.Conv3d(2, 2, 3), "decoder": layer})
    assert not unfit(layers_of(alone, ("encoder.",)))


def test_a_volume_alone_has_the_gradients_that_it_has_in_a_batch():
    # Blocks of one voxel: what comes back to the norm then has its channels last in memory.
    norm = torch.nn.InstanceNorm3d(3, affine=True).double()
    volumes = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    blocks = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool().view(1, 2, 2, 2).repeat(2, 1, 1, 1)
    weights = torch.randn(volumes.shape, dtype=torch.float64)

    def gradients(rows):
        with sparse([norm], Seen(blocks[rows])):
            out = norm(volumes[rows])
        return torch.autograd.grad((out * weights[rows]).sum(), list(norm.parameters()))

    alone = [gradients([row]) for row in range(2)]
    for both, first, second in zip(gradients([0, 1]), *alone, strict=True):
        torch.testing.assert_close(first + second, both)
