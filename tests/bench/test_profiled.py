import time

import pytest
import torch
import torch.nn.functional as F

from voco.bench.profiled import ATTENTION, CONVOLUTION, KINDS, LINEAR, NORM, REST, kind_of, profiled
from voco.nn.instance_norm import InstanceNorm3d
from voco.nn.window_attention import window_attention


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", CONVOLUTION),
        ("aten.convolution", CONVOLUTION),
        ("aten::mkldnn_convolution", CONVOLUTION),
        ("aten::bmm", ATTENTION),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
        ("aten::mm", LINEAR),
        ("aten.addmm", LINEAR),
        ("aten::native_layer_norm", NORM),
        ("aten::upsample_trilinear3d", REST),
        ("aten::linalg_vector_norm", "optimizer"),
        ("aten::copy_", REST),
        ("aten::mul", REST),
    ],
)
def test_an_operator_is_of_the_kind_that_its_name_says(name, kind):
    assert kind_of(name) == kind


def test_all_that_a_function_of_ours_calls_is_of_its_kind_forward_and_backward():
    parts = [torch.rand(64, 2, 30, 8, requires_grad=True) for _ in range(3)]
    bias = torch.rand(2, 30, 30)
    seconds = profiled(lambda: window_attention(*parts, bias).backward(torch.ones(64, 2, 30, 8)))
    assert seconds[ATTENTION] > 0.8 * sum(seconds.values())
    norm = InstanceNorm3d(8, affine=True)
    volume = torch.rand(2, 8, 24, 24, 24, requires_grad=True)
    seconds = profiled(lambda: norm(volume).backward(volume.detach()))
    assert seconds[NORM] > 0.8 * sum(seconds.values())


def test_seconds_add_up_to_no_more_than_the_work_took_and_to_most_of_it():
    matrix, volume, kernel = torch.rand(600, 600), torch.rand(1, 8, 40, 40, 40), torch.rand(8, 8, 3)

    def work() -> None:
        for _ in range(5):
            F.conv3d(volume, kernel[..., None, None].expand(8, 8, 3, 3, 3).contiguous())
            matrix @ matrix

    began = time.perf_counter()
    seconds = profiled(work)
    took = time.perf_counter() - began
    assert set(seconds) == set(KINDS)
    assert 0 < sum(seconds.values()) <= took
