from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from voco.backbones import BackboneSettings, available
from voco.embedding import Embedder, deepest, deepest_part
from voco.nn.freeze import freeze_unreached

BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "swin_unetr": ({"feature_size": 12, "depths": (1, 1, 1, 1)}, (64, 64, 64)),
    "unet": ({"features": (4, 6, 8, 10, 12, 5)}, (32, 32, 32)),
    "unetr": (
        {
            "size": (32, 32, 48),
            "feature_size": 4,
            "hidden_size": 12,
            "mlp_dim": 8,
            "num_heads": 2,
        },
        (32, 32, 48),
    ),
    "resenc_unet": ({"features": (4, 6, 8), "blocks": (1, 2, 1)}, (8, 8, 12)),
    "genesis_unet": ({"features": (4, 6, 8, 10)}, (16, 16, 24)),
}
"""Small settings of each backbone, and a size that it takes."""

every = pytest.mark.parametrize("name", available())


def embedder(name, levels="backbone", **changes):
    torch.manual_seed(0)
    values, size = BACKBONES[name]
    settings = {"name": name, "in_channels": 2, **values}
    backbone = TypeAdapter(BackboneSettings).validate_python(settings).build()
    return Embedder(backbone, levels=levels, widths=(6, 5, 4), size=size, **changes), size


def test_every_backbone_is_tested_here():
    assert set(available()) == set(BACKBONES)


@every
def test_what_leads_to_an_embedding_is_trained_and_the_rest_is_frozen(name):
    network, size = embedder(name)
    network(torch.rand(1, 2, *size)).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    backbone = network.backbone
    trained = [key for key, p in backbone.network.named_parameters() if p.requires_grad]
    assert all(key.startswith(backbone.encoder_prefixes) for key in trained)
    for prefix in backbone.encoder_prefixes:
        assert any(key.startswith(prefix) for key in trained), prefix


@every
def test_the_last_level_alone_trains_no_more_than_all(name):
    every_level, _ = embedder(name)
    last, _ = embedder(name, levels="last")
    features = last.projector[0].in_features
    assert features == last.backbone.channels[-1] < every_level.projector[0].in_features
    of_last = {key for key, p in last.named_parameters() if p.requires_grad}
    assert of_last <= {key for key, p in every_level.named_parameters() if p.requires_grad}


def test_crops_of_several_batches_are_embedded_in_their_order():
    network, size = embedder("resenc_unet", at_once=2)
    crops = torch.rand(5, 2, *size)
    whole = network.pool(crops)
    torch.testing.assert_close(network.pool(crops[:2], crops[2:]), whole)
    torch.testing.assert_close(network(crops), network.projector(whole))


@every
def test_the_last_map_is_that_of_the_tokens_where_there_are_any_and_else_the_last_level(name):
    module, size = embedder(name, levels="last")
    backbone, volumes = module.backbone.eval(), torch.rand(1, 2, *size)
    with torch.no_grad():
        found, level = deepest(backbone, volumes), backbone.encode(volumes)[-1]
    assert found.shape == level.shape
    part = deepest_part(backbone)
    # On UNETR the tokens are the last level; on Swin UNETR a convolution block follows.
    assert (part == "tokens") == (name in ("swin_unetr", "unetr"))
    assert torch.allclose(found, level, atol=1e-5) == (name != "swin_unetr")


@every
def test_the_last_map_depends_on_no_other_part(name):
    module, size = embedder(name, levels="last")
    backbone = module.backbone.requires_grad_()
    probe = torch.zeros(1, 2, *size, device="meta")
    freeze_unreached(backbone, lambda network: deepest(network, probe))
    prefixes = backbone.prefixes(deepest_part(backbone))
    trained = [name for name, p in backbone.network.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith(prefixes) for name in trained)
