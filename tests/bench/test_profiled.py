import time

import pytest
import torch
import torch.nn.functional as F

from voco.bench.profiled import (
    ATTENTION,
    BETWEEN,
    CONVOLUTION,
    KINDS,
    LINEAR,
    NORM,
    OPTIMIZER,
    REST,
    kind_of,
    profiled,
)
from voco.nn.ema import follow
from voco.nn.instance_norm import InstanceNorm3d
from voco.nn.window_attention import window_attention


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten.convolution_backward.default", CONVOLUTION),
        ("aten.convolution", CONVOLUTION),
        ("aten.bmm", ATTENTION),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", ATTENTION),
        ("aten._scaled_dot_product_flash_attention_for_cpu_backward.default", ATTENTION),
        ("aten.mm.default", LINEAR),
        ("aten.addmm.default", LINEAR),
        ("aten.native_layer_norm.default", NORM),
        ("aten.native_batch_norm_backward.out", NORM),
        ("aten.upsample_trilinear3d.default", REST),
        ("aten.copy_.default", REST),
    ],
)
def test_an_operator_is_of_the_kind_that_its_name_says(name, kind):
    assert kind_of(name) == kind


def operators(seconds: dict[str, float]) -> set[str]:
    """Of which kinds there were operators."""
    return {kind for kind in KINDS if kind != BETWEEN and seconds[kind]}


def test_all_that_a_function_of_ours_calls_is_of_its_kind():
    parts = [torch.rand(64, 2, 30, 8, requires_grad=True) for _ in range(3)]
    out = window_attention(*parts, torch.rand(2, 30, 30))
    gradient = torch.ones_like(out)
    seconds = profiled(lambda: torch.autograd.grad(out, parts, gradient))
    assert operators(seconds) == {ATTENTION}
    volume = torch.rand(2, 8, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    normed = InstanceNorm3d(8)(volume.requires_grad_())
    gradient = torch.ones_like(normed)
    seconds = profiled(lambda: torch.autograd.grad(normed, volume, gradient))
    assert operators(seconds) == {NORM}
    networks = [torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).requires_grad_(requires_grad=False)]
    assert operators(profiled(lambda: follow(networks[1], networks[0], 0.9))) == {OPTIMIZER}


def test_the_kinds_add_up_to_what_the_work_took():
    volume, kernel = torch.rand(1, 8, 40, 40, 40), torch.rand(8, 8, 3, 3, 3)

    def work() -> None:
        F.conv3d(volume, kernel)
        time.sleep(0.2)

    began = time.perf_counter()
    seconds = profiled(work)
    took = time.perf_counter() - began
    assert list(seconds) == list(KINDS)
    assert all(value >= 0 for value in seconds.values())
    assert seconds[BETWEEN] >= 0.2
    assert sum(seconds.values()) <= took
