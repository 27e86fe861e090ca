"""Heads that tell a turn, embed a volume and paint it."""

import math

import pytest
import torch
from torch import nn

from voco.errors import ConfigError
from voco.nn.three_heads import ThreeHeads, told_turns


def heads(features=8, stride=4, size=(8, 8, 8), readout="corners", channels=1) -> ThreeHeads:
    torch.manual_seed(0)
    return ThreeHeads(features, stride, channels, size, width=5, readout=readout)


def test_the_turn_is_read_from_the_first_voxel_and_the_embedding_from_its_neighbour_along_z():
    module, level = heads(), torch.rand(2, 8, 2, 2, 2)
    answers = module(level)
    torch.testing.assert_close(answers.turns, module.turns(level[:, :, 0, 0, 0]))
    torch.testing.assert_close(answers.rows, module.embedding(level[:, :, 0, 0, 1]))
    assert answers.turns.shape == (2, 4)


def test_both_can_be_read_from_the_mean():
    module, level = heads(readout="mean"), torch.rand(2, 8, 2, 2, 2)
    answers = module(level)
    mean = level.mean(dim=(2, 3, 4))
    torch.testing.assert_close(answers.turns, module.turns(mean))
    torch.testing.assert_close(answers.rows, module.embedding(mean))


def test_what_is_painted_has_the_size_and_the_channels_of_the_volume():
    assert heads(size=(8, 12, 16), channels=2)(torch.rand(3, 8, 2, 3, 4)).painted.shape == (
        *(3, 2),
        *(8, 12, 16),
    )


def test_the_head_that_paints_has_the_references_form_and_size():
    module = heads(features=768, stride=32, size=(64, 64, 64))
    kernels = [layer for layer in module.paint if isinstance(layer, nn.Conv3d)]
    assert [layer.out_channels for layer in kernels] == [384, 192, 96, 48, 48, 1]
    assert [layer.kernel_size[0] for layer in kernels] == [3, 3, 3, 3, 3, 1]
    count = sum(parameter.numel() for parameter in module.paint.parameters())
    assert count / 1e6 == pytest.approx(10.64, abs=0.01)


def test_narrow_features_stay_at_least_one_channel_wide():
    assert heads(features=3, stride=16, size=(32, 32, 32))(
        torch.rand(1, 3, 2, 2, 2)
    ).painted.shape == (1, 1, 32, 32, 32)


def test_a_level_of_one_voxel_is_refused_with_the_reason():
    for readout in ("corners", "mean"):
        with pytest.raises(ConfigError, match=r"single voxel.*8 voxels or more"):
            heads(size=(4, 4, 4), readout=readout)
    assert heads(size=(4, 4, 8)) is not None


@pytest.mark.parametrize("stride", [1, 12])
def test_a_stride_that_doubling_does_not_reach_is_refused(stride):
    with pytest.raises(ConfigError, match="doubles"):
        heads(stride=stride, size=(24, 24, 24))


def test_blind_telling_of_turns_costs_the_logarithm_of_four():
    term = told_turns(torch.zeros(8, 4), torch.arange(8) % 4)
    assert term.loss.item() == pytest.approx(math.log(4))
    assert term.chance.item() == pytest.approx(math.log(4))
    assert term.health["rotation_chance"] == 0.25
    right = told_turns(torch.eye(4) * 100, torch.arange(4))
    assert right.loss == 0
    assert right.health["rotation_accuracy"] == 1
