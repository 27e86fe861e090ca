import torch
import torch.nn.functional as F

from voco.bench.limits import need
from voco.nn.window_attention import window_attention

FLOAT = 4


def test_a_matrix_product_needs_two_operations_per_pair_and_touches_its_three_matrices():
    left, right = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    found = need(lambda: left @ right)
    assert found.flops == 2 * 3 * 5 * 7
    assert found.touched == FLOAT * (15 + 35 + 21)
    assert found.operators == 1
    assert found.flops_of == {"linear layers": found.flops}


def test_a_view_costs_nothing():
    matrix = torch.empty(4, 6, device="meta")
    found = need(lambda: matrix.mT[1:3].view(2, 2, 2))
    assert (found.flops, found.touched, found.operators) == (0, 0, 0)


def test_fused_and_spelled_out_attention_need_the_same_arithmetic():
    parts = [torch.empty(2, 3, 16, 4, device="meta") for _ in range(3)]
    bias = torch.empty(3, 16, 16, device="meta")
    fused = need(lambda: window_attention(*parts, bias))
    plain = need(lambda: (parts[0] @ parts[1].mT + bias).softmax(-1) @ parts[2])
    assert fused.flops == plain.flops == 2 * 2 * 2 * 3 * 16 * 16 * 4
    assert fused.touched < plain.touched


def test_a_backward_pass_is_counted_too():
    volume = torch.empty(1, 2, 8, 8, 8, device="meta")
    kernel = torch.empty(4, 2, 3, 3, 3, device="meta", requires_grad=True)
    forward = need(lambda: F.conv3d(volume, kernel, padding=1))
    both = need(lambda: F.conv3d(volume, kernel, padding=1).sum().backward())
    assert both.flops == 2 * forward.flops
