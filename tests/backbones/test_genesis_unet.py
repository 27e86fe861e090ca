import genesis
import pytest
import torch
from pydantic import ValidationError

from voco.backbones.genesis_unet import GenesisUNet, GenesisUNetConfig
from voco.embedding import Embedder, pooled
from voco.errors import ConfigError
from voco.methods.jigsaw import JigsawConfig
from voco.methods.rot import ROTConfig

SMALL = GenesisUNetConfig(features=genesis.SMALL)


def filled(config: GenesisUNetConfig = SMALL) -> tuple[GenesisUNet, genesis.State]:
    """A network with the numbers of a file."""
    state = genesis.tensors(config.features, config.in_channels)
    backbone = config.build()
    backbone.network.load_state_dict(state, strict=True)
    return backbone, state


def volumes_of(count: int, channels: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    # Of unequal brightness and contrast, so that it shows whether they are normalised together.
    stretch = torch.arange(1.0, count + 1).view(-1, 1, 1, 1, 1)
    return stretch * (torch.randn(count, channels, 16, 16, 24, generator=rng) + stretch)


def test_the_published_network_has_these_names_and_shapes_and_no_others():
    with torch.device("meta"):
        state = GenesisUNetConfig().build().network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == genesis.shapes()


def test_in_training_a_batch_is_normalised_as_a_whole():
    backbone, state = filled()
    volumes = volumes_of(3)
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(volumes), genesis.logits(state, volumes))


def test_in_evaluation_each_volume_is_computed_as_the_reference_computes_it_alone():
    backbone, state = filled(GenesisUNetConfig(features=genesis.SMALL, in_channels=2))
    volumes = volumes_of(3, channels=2)
    with torch.no_grad():
        found = backbone.eval()(volumes)
        alone = [genesis.logits(state, volume[None]) for volume in volumes]
        together = genesis.logits(state, volumes)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, together, atol=0.1)


def test_running_statistics_are_taken_in_evaluation_if_asked_for():
    backbone, _ = filled(SMALL.model_copy(update={"running_statistics": True}))
    plain, _ = filled()
    volumes = volumes_of(2)
    with torch.no_grad():
        found = backbone.eval()(volumes)
        rounding = 1e-5 * float(found.abs().max())
        torch.testing.assert_close(found[:1], backbone(volumes[:1]), rtol=0, atol=rounding)
        assert not torch.allclose(found, plain.eval()(volumes), atol=0.1)
        torch.testing.assert_close(backbone.train()(volumes), plain.train()(volumes))


@pytest.mark.parametrize("features", [(8, 16, 31, 64), (0, 16, 32, 64)])
def test_features_that_cannot_be_halved_are_refused_with_some_that_can(
    features: tuple[int, int, int, int],
):
    with pytest.raises(ValidationError, match=r"8, 16, 32, 64"):
        GenesisUNetConfig(features=features)


def test_crops_of_a_training_step_go_through_together():
    backbone, _ = filled()
    crops = volumes_of(4)
    with torch.no_grad():
        whole = [level.mean(dim=(2, 3, 4)) for level in backbone.train().encode(crops)]
        pieces = pooled(backbone, [crops], (0, 1, 2, 3), at_once=1)
        torch.testing.assert_close(pieces, torch.cat(whole, dim=1))
        backbone.eval()
        alone = torch.cat([pooled(backbone, [crop[None]], (3,)) for crop in crops])
        torch.testing.assert_close(pooled(backbone, [crops], (3,), at_once=3), alone)
    assert not torch.allclose(pieces[:, -10:], alone, atol=0.01)


def test_a_method_that_is_to_take_crops_in_pieces_is_refused_with_the_way_out():
    rot = ROTConfig(side=16, hidden=(8,), crops_at_once=2)
    jigsaw = JigsawConfig(
        grid=(2, 1, 1),
        cell=(16, 16, 16),
        patch=(15, 15, 15),
        size=(16, 16, 16),
        orders=2,
        hidden=(8,),
        crops_at_once=2,
    )
    for build in (
        lambda: rot.build(SMALL.build()),
        lambda: jigsaw.build(SMALL.build()),
        lambda: Embedder(SMALL.build(), levels="last", widths=(4, 4), size=(16, 16, 16), at_once=2),
    ):
        with pytest.raises(ConfigError, match=r"crops_at_once is 2.*Leave the setting out"):
            build()
    SMALL.build().check_pieces(None)
