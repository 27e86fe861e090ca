import pytest
import torch
from pydantic import ValidationError

from voco.backbones.resenc_unet import ResEncUNetConfig, repeated_names

SMALL = ResEncUNetConfig(features=(4, 6, 8), blocks=(1, 1, 1))


def test_three_stages_take_crops_of_8_voxels():
    backbone = SMALL.build()
    assert (backbone.divisor, backbone.smallest) == (4, 8)
    backbone.check_size((8, 8, 8))


def test_a_residual_block_starts_as_its_shortcut():
    network = SMALL.build().network
    stage = network.get_submodule("encoder.stages.1")
    features = torch.rand(1, 4, 8, 8, 8)
    shortcut = network.get_submodule("encoder.stages.1.blocks.0.skip")(features)
    expected = torch.nn.functional.leaky_relu(shortcut, 0.01)
    assert torch.allclose(stage(features), expected, atol=1e-6)


def test_a_shortcut_of_equal_width_has_no_parameters():
    names = ResEncUNetConfig(features=(4, 8, 8), blocks=(1, 1, 1)).build().network.state_dict()
    assert any(name.startswith("encoder.stages.1.blocks.0.skip.") for name in names)
    assert not any(name.startswith("encoder.stages.2.blocks.0.skip.") for name in names)


def test_the_output_layers_of_coarser_levels_are_frozen():
    layers = SMALL.build().network.decoder.seg_layers
    assert [layer.weight.requires_grad for layer in layers] == [False, True]


def test_repeated_names_add_names_and_no_tensors():
    tensors = SMALL.build().network.state_dict()
    named = repeated_names(tensors)
    assert {tensor.data_ptr() for tensor in named.values()} == {
        tensor.data_ptr() for tensor in tensors.values()
    }
    weight = tensors["encoder.stem.convs.0.conv.weight"]
    for name in (
        "encoder.stem.convs.0.all_modules.0.weight",
        "decoder.encoder.stem.convs.0.conv.weight",
        "decoder.encoder.stem.convs.0.all_modules.0.weight",
    ):
        assert named[name] is weight


@pytest.mark.parametrize(("features", "blocks"), [((4, 6), (1,)), ((4,), (1,)), ((), ())])
def test_features_and_blocks_must_name_the_same_stages(features, blocks):
    with pytest.raises(ValidationError, match="one number for each stage"):
        ResEncUNetConfig(features=features, blocks=blocks)
