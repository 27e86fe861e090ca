"""VICRegL: where places are, what matches, the terms."""

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.augment.pairs import Pairs
from voco.errors import ConfigError
from voco.methods.vicregl import (
    Maps,
    VICRegL,
    VICRegLConfig,
    covariance_loss,
    invariance_loss,
    nearest,
    places,
    variance_loss,
)


def vicregl(**changes) -> VICRegL:
    torch.manual_seed(0)
    heads = {"hidden": 16, "width": 8, "map_hidden": 12, "map_width": 6}
    small = {"window": (12, 12, 8), "crop": (8, 8, 8), **heads}
    return VICRegLConfig.model_validate(small | changes).build(TinyConfig().build())


def volumes_for(method, count=3):
    return torch.rand(count, 1, *method.window)


def pair(starts, flips, turns, size=8):
    """Two crops of one volume."""
    start = torch.tensor(starts)[None]
    boxes = torch.stack([start, start + size], dim=2)
    crops = torch.zeros(1, 2, 1, size, size, size)
    return Pairs(crops, boxes, torch.tensor(flips)[None], torch.tensor(turns)[None])


SAME = [[2, 3, 0], [2, 3, 0]]
MIRRORED = [[False, False, False], [True, False, True]]
KEPT = [[False] * 3] * 2


def maps_for(volumes=4, count=8, width=6, apart=0.0):
    first = torch.randn(volumes, count, width)
    where = places(pair([[0, 0, 0]] * 2, KEPT, [0, 0]), (2, 2, 2))[:, 0].expand(volumes, -1, -1)
    return Maps(first, first + apart, where, where)


# ---- places -----------------------------------------------------------------------------------


def test_places_are_centres_of_cells_in_units_of_cells():
    where = places(pair([[0, 0, 0], [2, 4, 8]], KEPT, [0, 0]), (2, 2, 2))
    assert where[0, 0, 0].tolist() == [0.5, 0.5, 0.5]
    assert where[0, 0, -1].tolist() == [1.5, 1.5, 1.5]
    assert where[0, 1, 0].tolist() == [1.0, 1.5, 2.5]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_mirrored_and_turned_copy_of_a_crop_matches_without_distance(turns):
    where = places(pair(SAME, MIRRORED, [0, turns]), (2, 2, 2))
    found = nearest(where[:, 0], where[:, 1])
    assert (found.distance == 0).all()
    assert found.which[0].sort().values.tolist() == list(range(8))
    assert found.which[0].tolist() != list(range(8))


def test_places_match_what_the_crops_show():
    method = vicregl(window=(8, 8, 8), largest_offset=0)
    ramp = torch.arange(512.0).view(1, 1, 8, 8, 8)
    still = {key: 0.0 for key in type(method.config.appearance).model_fields if "_prob" in key}
    moving = still | {"flip_probability": 0.5, "turn_probability": 0.75}
    method = vicregl(
        window=(8, 8, 8), largest_offset=0, appearance=moving, blur_probabilities=(0, 0)
    )
    views = method.views(ramp.expand(6, -1, -1, -1, -1), step_at())
    where = places(views, (8, 8, 8))
    # A cell is a voxel here: the voxel at a place is the one that the ramp has there.
    shown = (where.floor() * torch.tensor([64.0, 8.0, 1.0])).sum(dim=-1)
    assert torch.equal(views.crops.flatten(2), shown)
    assert not torch.equal(views.crops.flatten(2), places_of_the_reference(views))


def places_of_the_reference(views):
    where = places(views, (8, 8, 8), moving=False)
    return (where.floor() * torch.tensor([64.0, 8.0, 1.0])).sum(dim=-1)


def test_the_nearest_is_found_volume_by_volume():
    rows, others = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    found = nearest(rows, others)
    for volume in range(2):
        for row in range(3):
            distances = (others[volume] - rows[volume, row]).norm(dim=1)
            assert found.which[volume, row] == distances.argmin()
            assert found.distance[volume, row].item() == pytest.approx(distances.min().item())


# ---- terms ------------------------------------------------------------------------------------


def test_identical_views_are_invariant():
    terms = vicregl().local_terms(maps_for())
    assert terms.invariance == 0
    rows = torch.randn(4, 8)
    assert vicregl().whole_terms(rows, rows).invariance == 0


def test_constant_features_cost_what_epsilon_leaves():
    rows = torch.ones(4, 8)
    assert vicregl().whole_terms(rows, rows).variance.item() == pytest.approx(0.99)
    maps = maps_for()._replace(first=torch.ones(4, 8, 6), second=torch.ones(4, 8, 6))
    # Matched by feature, and matched by place.
    assert vicregl().local_terms(maps).variance.item() == pytest.approx(2 * 0.99)


def test_the_terms_of_the_whole_are_those_of_vicreg():
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    terms = vicregl().whole_terms(first, second)
    torch.testing.assert_close(terms.invariance, (first - second).square().mean())
    spread = (variance_loss(first[None]) + variance_loss(second[None])) / 2
    torch.testing.assert_close(terms.variance, spread)
    torch.testing.assert_close(
        terms.covariance, (covariance_loss(first[None]) + covariance_loss(second[None])) / 2
    )


@pytest.mark.parametrize("statistics", ["pooled", "slot"])
def test_the_terms_of_places_add_both_kinds_of_match_and_halve_both_directions(statistics):
    method = vicregl(statistics=statistics, match_share=0.5, farthest=None)
    first, second = torch.randn(3, 8, 6), torch.randn(3, 8, 6)
    where, other = torch.rand(3, 8, 3) * 2, torch.rand(3, 8, 3) * 2
    terms = method.local_terms(Maps(first, second, where, other))
    invariance, variance = 0.0, 0.0
    for rows, mates, here, there in (
        (first, second, where, other),
        (second, first, other, where),
    ):
        for keys, targets, count in ((rows, mates, 8), (here, there, 4)):
            apart = torch.cdist(keys, targets)
            order = apart.amin(dim=2).argsort(dim=1) if count == 4 else torch.arange(8).expand(3, 8)
            picked, matched = [], []
            for volume in range(3):
                chosen = order[volume, :count]
                picked.append(rows[volume, chosen])
                matched.append(mates[volume, apart[volume].argmin(dim=1)[chosen]])
            both = (torch.stack(picked), torch.stack(matched))
            invariance += (both[0] - both[1]).square().mean() / 2
            for one in both:
                flat = one.transpose(0, 1) if statistics == "slot" else one.flatten(0, 1)[None]
                variance += variance_loss(flat) / 4
    torch.testing.assert_close(terms.invariance, invariance)
    torch.testing.assert_close(terms.variance, variance)


def test_matches_that_are_too_far_do_not_count():
    maps = maps_for(apart=2.0)
    far = maps._replace(second_places=maps.second_places + 10)
    near = vicregl(match_share=1.0).local_terms(maps).invariance
    alone = vicregl(match_share=1.0).local_terms(far).invariance
    every = vicregl(match_share=1.0, farthest=None).local_terms(far).invariance
    assert alone < near
    assert every > alone
    kept = torch.tensor([[True, False], [False, False]])
    rows, others = torch.zeros(2, 2, 3), torch.full((2, 2, 3), 2.0)
    assert invariance_loss(rows, others, kept) == 2
    assert invariance_loss(rows, others) == 4


def test_the_second_direction_can_keep_fewer_as_in_the_reference():
    maps = maps_for(apart=1.0)._replace(second=torch.randn(4, 8, 6))
    alike = vicregl(match_share=0.5).local_terms(maps)
    fewer = vicregl(match_share=0.5, second_match_share=0.125).local_terms(maps)
    assert alike.invariance != fewer.invariance


def test_the_losses_are_the_weighted_terms():
    method = vicregl(invariance=2.0, variance=3.0, covariance=5.0, global_share=0.6)
    volumes = volumes_for(method)
    losses = method(volumes, step_at()).losses
    first, second, maps = method._embedded(method.views(volumes, step_at()))
    weights = (2.0, 3.0, 5.0)
    terms = (*method.whole_terms(first, second), *method.local_terms(maps))
    shares = (0.6, 0.6, 0.6, 0.4, 0.4, 0.4)
    expected = [s * w * t for s, w, t in zip(shares, weights * 2, terms, strict=True)]
    torch.testing.assert_close(list(losses.values()), expected)
    assert list(losses)[:2] == ["global_invariance", "global_variance"]


def test_gradients_reach_both_views_and_both_heads():
    method = vicregl()
    method.config = method.config.model_copy(update={"variance": 0.0, "covariance": 0.0})
    maps = maps_for()
    leaves = [torch.randn(4, 8, 6, requires_grad=True) for _ in range(2)]
    maps = maps._replace(first=leaves[0], second=leaves[1])
    method.local_terms(maps).invariance.backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


# ---- levels, settings, learning ---------------------------------------------------------------


def test_what_leads_to_the_map_or_the_whole_is_trained():
    network = vicregl(map_level=1).handover().network
    assert network.down.weight.requires_grad
    assert network.deep.weight.requires_grad
    assert not network.up.weight.requires_grad
    assert vicregl(map_level=1).map_projector[0].in_features == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_level": 3}, "from -3 to 2"),
        ({"crop": (4, 4, 4)}, "a single one"),
    ],
)
def test_a_map_that_the_backbone_does_not_have_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        vicregl(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (160, 96, 96)}, "does not fit"),
        ({"blur_probabilities": (1.0, -0.1)}, "must lie in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        VICRegLConfig(**changes)


def test_it_learns_without_collapse():
    method = vicregl(map_level=0, levels="backbone", blur_probabilities=(0, 0))
    levels = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1, 1)
    volumes = levels + 0.05 * torch.rand(6, 1, 12, 12, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for number in range(30):
        outcome = method(volumes, step_at(number))
        totals.append(torch.stack(list(outcome.losses.values())).sum())
        optimizer.zero_grad()
        totals[-1].backward()
        optimizer.step()
    health = method.eval()(volumes, step_at(1000)).health
    assert totals[-1] < 0.8 * totals[0]
    assert health["pair_accuracy"] >= 2 * health["pair_chance"]
    assert health["spread"] > 0.3
    assert health["matched_share"] > 0.3
