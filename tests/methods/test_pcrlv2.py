"""PCRLv2: crops and their changes, stages, its losses, its settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tiny import TinyConfig, step_at

from voco.backbones import BackboneSettings
from voco.draws import Draws
from voco.errors import ConfigError
from voco.methods.pcrlv2 import (
    Embedded,
    PCRLv2,
    PCRLv2Config,
    agreements,
    chosen,
    decoded_stages,
    deep_weight,
    draw_inner_boxes,
    local_agreement,
    restoration_errors,
    spread,
    standardised,
    swapped,
    swapped_order,
    to_power,
)
from voco.task import Step

UNMOVED = {"flip_probability": 0.0, "scale": 0.0, "degrees": 0.0}
UNCHANGED = {"blur": 0.0, "noise": 0.0, "log_gamma": 0.0, "standardise": False}


def config_of(**changes) -> PCRLv2Config:
    small = {
        "window": (12, 12, 8),
        "sizes": ((8, 8, 8), (12, 12, 8)),
        "crop": (8, 8, 8),
        "local_count": 3,
        "local_sizes": ((4, 4, 4), (8, 8, 8)),
        "local_crop": (4, 4, 4),
        "swaps": 5,
        "swap_patch": (3, 2, 2),
    }
    return PCRLv2Config.model_validate(small | changes)


def pcrl(**changes) -> PCRLv2:
    torch.manual_seed(0)
    return config_of(**changes).build(TinyConfig().build())


def volumes_for(count=3):
    shape = (count, 1, 12, 12, 8)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def crops_for(count=3, size=(8, 6, 6)):
    return torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0))


def embedded(*rows):
    """The same at every stage, as an embedding and as what it predicts."""
    return [Embedded(row, row) for row in rows]


# ---- crops ------------------------------------------------------------------------------------


def test_large_crops_overlap_and_small_ones_lie_between_their_outer_faces():
    boxes = pcrl().views(volumes_for(50), step_at()).boxes
    large, small = boxes[:, :2], boxes[:, 2:]
    low, high = large[:, :, 0].amin(dim=1), large[:, :, 1].amax(dim=1)
    assert (small[:, :, 0] >= low[:, None]).all()
    assert (small[:, :, 1] <= high[:, None]).all()
    sides = (small[:, :, 1] - small[:, :, 0]).flatten(0, 1)
    assert {tuple(side) for side in sides.tolist()} == {(4, 4, 4), (8, 8, 8)}


def test_small_boxes_reach_every_place_between_the_faces():
    large = torch.tensor([[[0, 0, 0], [4, 4, 4]], [[2, 0, 0], [6, 4, 4]]]).expand(300, 2, 2, 3)
    small = draw_inner_boxes(Draws(0, 0), large, 2, ((3, 4, 4),))
    counts = small[:, :, 0, 0].flatten().bincount()
    assert len(counts) == 4
    assert counts.min() > 100


def test_the_target_moves_with_the_first_crop_and_is_otherwise_untouched():
    views = pcrl(**UNCHANGED, swaps=0).views(volumes_for(), step_at())
    torch.testing.assert_close(views.target, views.looks[:, 0])
    changed = pcrl().views(volumes_for(), step_at())
    assert torch.equal(changed.target, views.target)


def test_only_large_crops_have_swapped_patches():
    plain = pcrl(**UNCHANGED, swaps=0).views(volumes_for(), step_at())
    found = pcrl(**UNCHANGED).views(volumes_for(), step_at())
    assert torch.equal(found.small, plain.small)
    assert not torch.equal(found.looks, plain.looks)
    torch.testing.assert_close(
        found.looks.flatten(2).sort(dim=2).values, plain.looks.flatten(2).sort(dim=2).values
    )


def test_what_the_network_sees_is_standardised_and_the_target_is_not():
    views = pcrl().views(volumes_for(), step_at())
    for crops in (views.looks, views.small):
        flat = crops.flatten(2)
        torch.testing.assert_close(flat.mean(dim=2), torch.zeros(flat.shape[:2]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            flat.std(dim=2, correction=0), torch.ones(flat.shape[:2]), atol=1e-3, rtol=0
        )
    assert views.target.min() >= 0
    assert views.target.max() <= 1


def test_another_range_of_intensities_means_the_same():
    volumes = volumes_for()
    views = pcrl(standardise=False).views(volumes, step_at())
    wide = pcrl(standardise=False, intensities=(-5.0, 5.0)).views(volumes * 10 - 5, step_at())
    torch.testing.assert_close(wide.looks, views.looks * 10 - 5, atol=1e-3, rtol=0)
    torch.testing.assert_close(wide.small, views.small * 10 - 5, atol=1e-3, rtol=0)
    torch.testing.assert_close(wide.target, views.target, atol=1e-4, rtol=0)


def test_a_volume_of_a_single_intensity_is_standardised_to_zero():
    volumes = torch.stack([torch.full((1, 4, 4, 4), 3.0), torch.rand(1, 4, 4, 4)])
    found = standardised(volumes)
    assert (found[0] == 0).all()
    assert found[1].std(correction=0).item() == pytest.approx(1, rel=1e-4)


def test_powers_keep_the_sign_and_the_ends():
    volumes = torch.tensor([-0.25, 0.0, 0.25, 1.0]).view(1, 1, 4, 1, 1)
    found = to_power(volumes, torch.tensor([0.5])).flatten()
    assert found.tolist() == pytest.approx([-0.5, 0.0, 0.5, 1.0])


# ---- swapped patches --------------------------------------------------------------------------


def test_a_pair_of_patches_changes_places_and_all_else_stays():
    volumes = torch.arange(6.0 * 5 * 4).view(1, 1, 6, 5, 4)
    starts = torch.tensor([[[[0, 0, 0], [3, 2, 1]]]])
    order = swapped_order(starts, (6, 5, 4), (2, 2, 3))
    found = volumes.flatten(2)[..., order[0]].view_as(volumes)
    expected = volumes.clone()
    expected[..., 0:2, 0:2, 0:3] = volumes[..., 3:5, 2:4, 1:4]
    expected[..., 3:5, 2:4, 1:4] = volumes[..., 0:2, 0:2, 0:3]
    assert torch.equal(found, expected)


def test_patches_that_overlap_stay():
    order = swapped_order(torch.tensor([[[[0, 0, 0], [1, 1, 1]]]]), (4, 4, 4), (2, 2, 2))
    assert torch.equal(order[0], torch.arange(64))


def test_pairs_are_swapped_one_after_the_other():
    # The first patch goes to the second place, and from there to the third.
    starts = torch.tensor([[[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [2, 0, 0]]]])
    assert swapped_order(starts, (3, 1, 1), (1, 1, 1))[0].tolist() == [1, 2, 0]


@given(st.integers(0, 1 << 30), st.integers(0, 20))
def test_swapping_moves_voxels_of_all_channels_alike_and_makes_none(seed, swaps):
    volumes = crops_for()
    volumes[:, 1] = volumes[:, 0] + 1
    found = swapped(volumes, Draws(seed, 0), swaps, (2, 3, 2))
    torch.testing.assert_close(found[:, 1], found[:, 0] + 1)
    assert torch.equal(found.flatten(2).sort(dim=2).values, volumes.flatten(2).sort(dim=2).values)
    assert (swaps > 3) <= (not torch.equal(found, volumes))


# ---- stages -----------------------------------------------------------------------------------


def test_every_stage_is_drawn_alike_for_each_pair():
    stages = pcrl().views(volumes_for(400), step_at()).stages
    assert stages.shape == (400, 1 + 2 * 3)
    assert stages.float().mean(dim=0).tolist() == pytest.approx([0.5] * 7, abs=0.1)


def test_without_skips_nothing_passes_by_the_coarsest_level():
    backbone = TinyConfig().build()
    volumes = torch.rand(2, 1, 8, 8, 8)
    *fine, coarse = backbone.encode(volumes)
    other = [level + torch.randn_like(level) for level in fine]
    whole = backbone.decode_stages([*fine, coarse])
    zeros = backbone.decode_stages([*map(torch.zeros_like, fine), coarse])
    assert not torch.equal(zeros[-1], whole[-1])
    for skips, expected in ((True, whole), (False, zeros)):
        found = decoded_stages(backbone, volumes, skips=skips)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(backbone.decode([*other, coarse]), whole[-1])


@pytest.mark.parametrize(("skips", "trained"), [(False, False), (True, True)])
def test_weights_for_what_comes_across_are_trained_only_with_skips(skips, trained):
    method = pcrl(skips=skips)
    losses = method(volumes_for(), step_at()).losses
    torch.stack(list(losses.values())).sum().backward()
    gradient = method.handover().network.up.weight.grad
    assert bool(gradient[:, :10].any()) == trained
    assert bool(gradient[:, 10:].any())


@pytest.mark.parametrize(
    ("values", "untrained"),
    [
        ({"name": "unet", "features": (4, 4, 6, 8, 10, 5)}, ()),
        ({"name": "resenc_unet", "features": (4, 6, 8), "blocks": (1, 1, 1)}, ()),
        (
            {
                "name": "unetr",
                "size": (32, 32, 32),
                "feature_size": 4,
                "hidden_size": 12,
                "mlp_dim": 8,
                "num_heads": 2,
            },
            ("encoder1.", "encoder2.", "encoder3.", "encoder4."),
        ),
    ],
    ids=lambda part: part.get("name") if isinstance(part, dict) else "",
)
def test_all_that_leads_to_a_stage_is_trained_and_what_leads_to_skips_only_is_not(
    values, untrained
):
    torch.manual_seed(0)
    size = (32, 32, 32)
    large = {"window": size, "sizes": (size,), "crop": size}
    small = {"local_count": 1, "local_sizes": ((16, 16, 16),), "local_crop": size}
    backbone = TypeAdapter(BackboneSettings).validate_python(values).build()
    method = config_of(**large, **small).build(backbone)
    losses = method(torch.rand(2, 1, *size), step_at()).losses
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {
        name
        for name, parameter in backbone.network.named_parameters()
        if not parameter.requires_grad and not name.startswith(backbone.head_prefixes)
    }
    # Of UNETR, a norm that MONAI never uses is frozen too.
    assert {name for name in frozen if "norm_cross_attn" not in name} == {
        name for name, _ in backbone.network.named_parameters() if name.startswith(untrained)
    }


# ---- losses -----------------------------------------------------------------------------------


def test_looks_that_predict_each_other_cost_minus_one():
    rows = torch.randn(5, 4)
    found = agreements(embedded(rows, rows), embedded(3 * rows, 2 * rows))
    torch.testing.assert_close(found, -torch.ones(5, 2))
    opposite = agreements(embedded(rows), embedded(-rows))
    torch.testing.assert_close(opposite, torch.ones(5, 1))


def test_agreement_is_the_mean_of_both_directions_and_stops_at_what_is_predicted():
    one = Embedded(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    other = Embedded(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    for part in (*one, *other):
        part.requires_grad_()
    loss = agreements([one], [other])
    assert loss.item() == pytest.approx(-(1.0 + 0.6) / 2)
    loss.sum().backward()
    assert one.embedding.grad is None
    assert other.embedding.grad is None
    assert other.prediction.grad is not None


def test_of_each_row_the_stage_that_was_drawn_counts():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert chosen(values, torch.tensor([1, 0])).tolist() == [2.0, 3.0]


def test_the_weight_of_the_stage_falls_from_one_to_zero_along_a_cosine():
    weights = [deep_weight(Step(number, 240, Draws(0, 0)).progress) for number in (0, 80, 120, 240)]
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.0])


def test_a_stage_costs_nothing_in_the_end_and_its_full_error_at_the_start():
    method = pcrl()
    start = method(volumes_for(), Step(0, 240, Draws(0, 0))).losses
    end = method(volumes_for(), Step(240, 240, Draws(0, 0))).losses
    assert start["deep_restoration"] > 0
    assert end["deep_restoration"] == 0
    assert torch.equal(start["restoration"], end["restoration"])


def test_local_agreement_is_the_mean_over_two_large_and_all_small_crops():
    torch.manual_seed(0)
    first, second, small = (
        [Embedded(torch.randn(2, *n, 5), torch.randn(2, *n, 5)) for _ in range(3)]
        for n in ((), (), (4,))
    )
    stages = torch.randint(0, 3, (2, 8))
    total = 0.0
    for row in range(2):
        for side, large in enumerate((first, second)):
            for at in range(4):
                stage = int(stages[row, 4 * side + at])
                big, little = large[stage], small[stage]
                forth = F.cosine_similarity(big.prediction[row], little.embedding[row, at], dim=0)
                back = F.cosine_similarity(little.prediction[row, at], big.embedding[row], dim=0)
                total -= (forth.item() + back.item()) / 2
    assert local_agreement((first, second), small, stages).item() == pytest.approx(total / 16)


@pytest.mark.parametrize("skips", [False, True])
def test_the_losses_are_those_written_out_volume_by_volume(skips):
    method = pcrl(skips=skips)
    volumes, step = volumes_for(), Step(3, 10, Draws(0, 3))
    views = method.views(volumes, step)
    found = {name: loss.item() for name, loss in method(volumes, step).losses.items()}
    expected = written_out(method, views, skips)
    assert found == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def written_out(method, views, skips):
    """Losses of the fourth of ten steps, a volume and a stage at a time."""
    count, small_count = views.small.shape[:2]

    def stages_of(crops):
        return decoded_stages(method.backbone, crops, skips=skips)

    first, second = (stages_of(views.looks[:, at]) for at in range(2))
    small = stages_of(views.small.flatten(0, 1))
    seen = [
        [head(stage) for head, stage in zip(method.heads, stages, strict=True)]
        for stages in (first, second, small)
    ]
    totals = dict.fromkeys(("restoration", "agreement", "deep_restoration", "local_agreement"), 0.0)

    def agreement(one, other, row, at):
        forth = F.cosine_similarity(one.prediction[row], other.embedding[at], dim=0)
        back = F.cosine_similarity(other.prediction[at], one.embedding[row], dim=0)
        return -(forth.item() + back.item()) / 2

    for row in range(count):
        target = views.target[row]
        restored = method.output(first[-1][row : row + 1]).sigmoid()[0]
        totals["restoration"] += (restored - target).square().mean().item() / count
        stage, *local = views.stages[row].tolist()
        totals["agreement"] += agreement(seen[0][stage], seen[1][stage], row, row) / count
        deep = method.heads[stage].restored(first[stage]).sigmoid()[row : row + 1]
        deep = F.interpolate(deep, size=(8, 8, 8), mode="trilinear", align_corners=False)[0]
        weight = 0.5 * (1 + math.cos(math.pi * 0.3))
        totals["deep_restoration"] += weight * (deep - target).square().mean().item() / count
        for number, stage in enumerate(local):
            large, at = divmod(number, small_count)
            cost = agreement(seen[large][stage], seen[2][stage], row, row * small_count + at)
            totals["local_agreement"] += cost / (2 * small_count * count)
    return totals


@given(st.floats(1e-30, 1e30), st.integers(0, 1 << 20))
def test_agreement_is_finite_for_whatever_embeddings(size, seed):
    draw = torch.Generator().manual_seed(seed)
    rows, others = (torch.randn(2, 3, generator=draw) * size for _ in range(2))
    rows[0] = 0
    loss = agreements(embedded(rows.requires_grad_()), embedded(others)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.grad).all()


def test_each_volume_costs_its_own_error():
    found, target = torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2)
    target[1] = 3.0
    assert restoration_errors(found, target).tolist() == [0.0, 9.0]


# ---- health -----------------------------------------------------------------------------------


def test_spread_is_one_in_all_directions_and_zero_in_one():
    torch.manual_seed(0)
    assert spread(torch.randn(2000, 16)).item() == pytest.approx(1, abs=0.05)
    assert spread(torch.randn(50, 1).abs() * torch.randn(16)).item() == pytest.approx(0, abs=1e-3)


def test_guesses_cost_what_health_says():
    volumes = torch.zeros(2, 1, 12, 12, 8)
    volumes[:, :, :, :, 4:] = 1.0
    same = {"sizes": ((12, 12, 8),), "crop": (12, 12, 8)}
    health = pcrl(**UNMOVED, **same)(volumes, Step(5, 10, Draws(0, 5))).health
    assert health["restoration_chance"].item() == pytest.approx(0.25, rel=1e-4)
    assert health["loss_chance"].item() == pytest.approx(0.25 * 1.5, rel=1e-4)
    assert health["pair_chance"] == 0.5


# ---- settings, learning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ((96, 96, 160),)}, "does not fit into the window"),
        ({"local_sizes": ((32, 32, 40),)}, "small crop"),
        ({"swap_patch": (8, 8, 40)}, "swap_patch"),
        ({"local_sizes": ()}, "at least 1 item"),
        ({"intensities": (1.0, 1.0)}, "not below the largest"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        PCRLv2Config(**changes)


def test_a_small_crop_that_the_backbone_cannot_take_is_refused_with_one_that_fits():
    with pytest.raises(ConfigError, match=r"nearest size that fits is \(8, 4, 4\)"):
        pcrl(local_crop=(7, 4, 4))


def test_every_channel_is_restored_at_every_stage():
    torch.manual_seed(0)
    method = config_of().build(TinyConfig(in_channels=2).build())
    losses = method(torch.rand(2, 2, 12, 12, 8), step_at()).losses
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [head.output.out_channels for head in method.heads] == [2, 2]


def test_it_learns_to_restore_and_to_agree():
    method = pcrl(**UNMOVED, **UNCHANGED, swaps=0, skips=True)
    levels = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1, 1)
    volumes = levels + 0.05 * volumes_for(6)
    before = method.eval()(volumes, Step(120, 120, Draws(0, 1000))).losses
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for number in range(120):
        losses = method(volumes, Step(number, 120, Draws(0, number))).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    outcome = method.eval()(volumes, Step(120, 120, Draws(0, 1000)))
    assert outcome.losses["restoration"] < before["restoration"] / 2
    assert outcome.losses["agreement"] < -0.6
    assert outcome.health["pair_accuracy"] > 2 * outcome.health["pair_chance"]
