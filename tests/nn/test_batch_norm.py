import pytest
import torch
from processes import in_two_processes
from torch import nn

from voco.nn.batch_norm import BatchNorm

CHANNELS = 3


def norms(*, running: bool = False) -> tuple[BatchNorm, nn.BatchNorm3d]:
    """Ours and torch's, in float64, with the same tensors."""
    theirs = nn.BatchNorm3d(CHANNELS, dtype=torch.float64)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
            assert tensor is not None
            tensor.copy_(0.5 + torch.rand(CHANNELS, generator=rng))
    ours = BatchNorm(CHANNELS, running=running).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def maps(count: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    stretch = torch.arange(1, count + 1, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    return stretch * (torch.randn(count, CHANNELS, 2, 3, 4, generator=rng).double() + 1)


def gradients_of(rank: int, world: int) -> dict[str, torch.Tensor]:
    """What one process makes of its share of four maps, and the gradient of a loss of it."""
    norm, _ = norms()
    share = maps().chunk(world)[rank].requires_grad_()
    made = norm(share)
    weights = maps().cos().chunk(world)[rank]
    (made.square() * weights).mean().backward()
    assert share.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "made": made.detach(),
        "share": share.grad / world,  # the loss of all is the mean of the processes'
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **norm.state_dict(),
    }


def test_in_training_it_is_torchs_with_torchs_memory():
    ours, theirs = norms()
    for _ in range(2):
        torch.testing.assert_close(ours(maps()), theirs(maps()))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_two_processes_compute_what_one_would_of_the_whole_batch(tmp_path):
    one = gradients_of(0, 1)
    two = in_two_processes(gradients_of, tmp_path)
    for key in ("made", "share"):
        torch.testing.assert_close(torch.cat([part[key] for part in two]), one[key])
    for key in ("weight", "bias"):
        torch.testing.assert_close((two[0][key] + two[1][key]) / 2, one[key])
    for part in two:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(part[key], one[key])


def test_in_evaluation_each_map_is_normalised_by_itself_and_nothing_is_remembered():
    ours, theirs = norms()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    alone = torch.cat([theirs(each[None]) for each in maps()])
    torch.testing.assert_close(ours.eval()(maps()), alone)
    assert all(torch.equal(ours.state_dict()[name], before[name]) for name in before)


def test_running_statistics_in_evaluation_are_torchs():
    ours, theirs = norms(running=True)
    torch.testing.assert_close(ours.eval()(maps()), theirs.eval()(maps()))
    torch.testing.assert_close(ours.train()(maps()), theirs.train()(maps()))


@pytest.mark.parametrize("training", [True, False])
def test_a_single_value_cannot_be_normalised(training: bool):
    with pytest.raises(ValueError, match="more than 1"):
        BatchNorm(CHANNELS).train(training)(torch.ones(1, CHANNELS, 1, 1, 1))


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_stays_half_with_statistics_in_float32(training: bool):
    norm = BatchNorm(CHANNELS).train(training)
    # 100 + noise of 1 has little variance left in bfloat16 arithmetic.
    values = (100 + torch.randn(2, CHANNELS, 8, 8, 8)).bfloat16()
    made = norm(values)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), norm(values.float()), atol=0.02, rtol=0.02)
