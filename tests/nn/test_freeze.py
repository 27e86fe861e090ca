import torch
from tiny import Tiny

from voco.embedding import pooled
from voco.nn.freeze import freeze_unreached


def trained(net: Tiny) -> set[str]:
    return {name.split(".")[0] for name, p in net.network.named_parameters() if p.requires_grad}


def crops():
    return [torch.zeros(1, 1, 8, 8, 8, device="meta")]


def test_a_decoder_that_is_not_used_is_frozen(tiny):
    freeze_unreached(tiny, lambda net: pooled(net, crops(), (0, 1, 2)))
    assert trained(tiny) == {"stem", "down", "deep"}


def test_layers_behind_the_last_level_used_are_frozen(tiny):
    freeze_unreached(tiny, lambda net: pooled(net, crops(), (0, 1)))
    assert trained(tiny) == {"stem", "down"}


def test_what_is_used_stays_trained_and_unchanged(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    freeze_unreached(tiny, lambda net: net(crops()[0]))
    assert trained(tiny) == {"stem", "down", "deep", "up", "out"}
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())
    assert tiny.training


def test_what_was_frozen_before_stays_frozen(tiny):
    tiny.network.stem.requires_grad_(False)
    freeze_unreached(tiny, lambda net: net(crops()[0]))
    assert trained(tiny) == {"down", "deep", "up", "out"}


def test_pieces_give_the_same_rows_in_the_same_order(tiny):
    batches = [torch.rand(3, 1, 8, 8, 8), torch.rand(4, 1, 8, 8, 8)]
    whole = pooled(tiny, batches, (0, 2))
    torch.testing.assert_close(pooled(tiny, batches, (0, 2), at_once=2), whole)
    assert whole.shape == (7, 12)
    alone = pooled(tiny, [batches[1][2:3]], (0, 2))
    torch.testing.assert_close(whole[5:6], alone)


def test_crops_of_different_sizes_are_pooled_apart(tiny):
    batches = [torch.rand(2, 1, 8, 8, 8), torch.rand(3, 1, 4, 8, 12)]
    rows = pooled(tiny, batches, (2,))
    torch.testing.assert_close(rows[2:], tiny.encode(batches[1])[2].mean(dim=(2, 3, 4)))
