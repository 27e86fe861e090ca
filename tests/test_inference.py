import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from voco.inference import Windows, mirrored, sliding_window, starts, winners

SIDES = st.tuples(*[st.integers(1, 21)] * 3)
ROIS = st.tuples(*[st.integers(1, 8)] * 3)


def convolution(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Conv3d(1, classes, 3, padding=1).requires_grad_(False)


def all_logits(network, volume, windows):
    """Of a whole volume."""
    return torch.cat([rows.clone() for _, rows in sliding_window(network, volume, windows)], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    shape=SIDES,
    roi=ROIS,
    overlap=st.floats(0, 0.9),
    blending=st.sampled_from(["gaussian", "constant"]),
    at_once=st.integers(1, 3),
)
def test_a_constant_network_gives_constant_logits(shape, roi, overlap, blending, at_once):
    said = torch.tensor([1.5, -2.0])

    def network(volumes):
        return said.view(1, 2, 1, 1, 1).expand(len(volumes), 2, *volumes.shape[2:])

    windows = Windows(roi, overlap, blending, at_once)
    logits = all_logits(network, torch.randn(1, *shape), windows)
    assert logits.shape == (2, *shape)
    assert torch.allclose(logits, said.view(2, 1, 1, 1).expand_as(logits), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=SIDES, roi=ROIS, overlap=st.floats(0, 0.9))
def test_a_pointwise_network_gives_the_same_in_windows(shape, roi, overlap):
    volume = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    logits = all_logits(
        lambda volumes: torch.cat([volumes, -volumes], 1), volume, Windows(roi, overlap)
    )
    assert torch.allclose(logits, torch.cat([volume, -volume]), atol=1e-5)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
def test_a_volume_of_one_window_is_the_network_itself(blending):
    network, volume = convolution(), torch.randn(1, 8, 6, 7)
    logits = all_logits(network, volume, Windows((8, 6, 7), 0.5, blending))
    assert torch.allclose(logits, network(volume[None])[0], atol=1e-6)


def test_a_small_volume_is_padded_evenly_with_its_lowest_value():
    seen = []

    def network(volumes):
        seen.append(volumes)
        return volumes

    volume = torch.rand(1, 3, 4, 4) + 1
    logits = all_logits(network, volume, Windows((6, 4, 4)))
    assert torch.allclose(logits, volume)
    assert torch.equal(seen[0][0, :, 2:5], volume)
    assert bool((seen[0][0, :, [0, 1, 5]] == volume.min()).all())


def test_rows_come_once_each_in_order():
    rows = [
        w for w, _ in sliding_window(convolution(), torch.randn(1, 19, 8, 8), Windows((6, 6, 6)))
    ]
    assert [x for where in rows for x in range(where.start, where.stop)] == list(range(19))


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_constant_blending_agrees_with_monai(overlap):
    from monai.inferers.utils import sliding_window_inference

    network, volume = convolution(), torch.randn(1, 17, 11, 13)
    theirs = sliding_window_inference(volume[None], (8, 8, 8), 2, network, overlap)
    ours = all_logits(network, volume, Windows((8, 8, 8), overlap, "constant", at_once=2))
    assert torch.allclose(ours, theirs[0], atol=1e-5)


def test_gaussian_blending_trusts_the_middle_of_a_window():
    def middle_is_right(volumes):
        wrong = torch.full_like(volumes, 9.0)
        wrong[:, :, 2:6, 2:6, 2:6] = 1.0
        return wrong

    volume = torch.zeros(1, 24, 8, 8)
    gaussian, constant = (
        all_logits(middle_is_right, volume, Windows((8, 8, 8), 0.5, blending))
        for blending in ("gaussian", "constant")
    )
    inner = (0, slice(4, 20), slice(2, 6), slice(2, 6))
    assert gaussian[inner].mean() < constant[inner].mean()


@given(side=st.integers(1, 60), window=st.integers(1, 30), overlap=st.floats(0, 0.95))
def test_windows_cover_an_axis_and_stay_inside(side, window, overlap):
    if side < window:
        return
    first = starts(side, window, overlap)
    assert first == sorted(set(first))
    assert {v for start in first for v in range(start, start + window)} == set(range(side))


def test_the_average_of_mirrored_copies_does_not_change_with_the_side():
    network, volume = convolution(), torch.randn(1, 1, 6, 6, 6)
    there = mirrored(network, volume, (0, 2))
    back = mirrored(network, volume.flip(2), (0, 2)).flip(2)
    assert torch.allclose(there, back, atol=1e-6)
    assert not torch.allclose(there, mirrored(network, volume, ()), atol=1e-3)


def test_winners_are_the_highest_logits():
    network, volume = convolution(), torch.randn(1, 10, 9, 8)
    windows = Windows((6, 6, 6))
    logits = all_logits(network, volume, windows)
    assert (winners(network, volume, windows) == logits.argmax(0).numpy()).all()


def test_no_gradients_are_kept():
    network = nn.Conv3d(1, 2, 3, padding=1)
    logits = all_logits(network, torch.randn(1, 9, 8, 8), Windows((6, 6, 6)))
    assert not logits.requires_grad
