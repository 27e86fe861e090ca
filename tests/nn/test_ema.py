import pytest
import torch
from torch import nn

from voco.nn.ema import distance, follow, rising, teacher_of


def student():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    net[2].requires_grad_(False)
    return net


def moved(net):
    other = teacher_of(net)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.add_(torch.randn_like(tensor))
    return other


def test_a_teacher_starts_as_the_student_and_is_frozen():
    net = student()
    teacher = teacher_of(net)
    for own, other in zip(teacher.parameters(), net.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own is not other
        assert not own.requires_grad
    assert net[0].weight.requires_grad


def test_a_teacher_that_is_not_a_copy_is_another_draw_of_the_same_start():
    net = nn.Linear(50, 40)
    teacher = teacher_of(net, copied=False)
    ours, theirs = teacher.weight.flatten(), net.weight.flatten()
    torch.testing.assert_close(ours.sort().values, theirs.detach().sort().values)
    assert torch.corrcoef(torch.stack([ours, theirs.detach()]))[0, 1].abs() < 0.1


def test_a_teacher_moves_a_share_of_the_way():
    net = student()
    teacher = moved(net)
    before = [tensor.clone() for tensor in teacher.parameters()]
    follow(teacher, net, 0.9)
    pairs = zip(teacher.parameters(), before, net.parameters(), strict=True)
    for now, old, other in pairs:
        expected = 0.9 * old + 0.1 * other.detach() if other.requires_grad else old
        torch.testing.assert_close(now, expected)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_momentum_is_what_stays(momentum):
    net = nn.Linear(3, 3)
    teacher = moved(net)
    kept = teacher.weight.clone()
    follow(teacher, net, momentum)
    torch.testing.assert_close(teacher.weight, kept if momentum else net.weight.detach())


def test_following_leaves_the_student_and_its_graph_alone():
    net = nn.Linear(3, 3)
    before = net.weight.detach().clone()
    teacher = moved(net)
    follow(teacher, net, 0.5)
    assert torch.equal(net.weight, before)
    assert teacher.weight.grad_fn is None
    assert not teacher.weight.requires_grad


def test_the_distance_is_relative_to_the_students_length():
    net = nn.Linear(3, 3, bias=False)
    teacher = teacher_of(net)
    assert distance(teacher, net) == 0
    with torch.no_grad():
        teacher.weight *= 1.5
    assert distance(teacher, net).item() == pytest.approx(0.5)
    nn.init.zeros_(net.weight)
    assert torch.isfinite(distance(teacher, net))


def test_a_momentum_rises_to_one_along_half_a_cosine():
    found = [rising(0.9, progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.9, 1 - 0.05 * (1 + 0.5**0.5), 0.95, 1.0])
