"""Jigsaw: orders, patches, what solves the puzzle."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.geometry import grid_boxes
from voco.methods.jigsaw import (
    Jigsaw,
    JigsawConfig,
    random_orders,
    reordered,
    spread_orders,
    standardised,
)

PLAIN = {"patch": (8, 8, 8), "standardise": False, "orders": 24}
choices = pytest.mark.parametrize("choose", [spread_orders, random_orders])


def jigsaw(**changes) -> Jigsaw:
    torch.manual_seed(0)
    small = {"grid": (2, 2, 1), "cell": (8, 8, 8), "patch": (6, 6, 6), "size": (8, 8, 8)}
    values = {**small, "orders": 6, "hidden": (16,), "dropout": 0.0, **changes}
    return JigsawConfig(**values).build(TinyConfig().build())


def apart(orders):
    return (orders[:, None] != orders[None]).sum(dim=-1)


# ---- orders -----------------------------------------------------------------------------------


@choices
@pytest.mark.parametrize(("count", "length"), [(24, 4), (100, 27), (1000, 8)])
def test_orders_are_different_permutations(choose, count, length):
    orders = choose(count, length, seed=3)
    assert orders.shape == (count, length)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(length).expand(count, -1))
    assert len(orders.unique(dim=0)) == count


@choices
def test_orders_depend_on_their_seed_alone(choose):
    assert torch.equal(choose(10, 27, seed=1), choose(10, 27, seed=1))
    assert not torch.equal(choose(10, 27, seed=1), choose(10, 27, seed=2))


def test_spread_orders_differ_at_more_places_than_random_ones():
    spread, blind = spread_orders(100, 27, seed=0), random_orders(100, 27, seed=0)
    other = ~torch.eye(100, dtype=torch.bool)
    assert apart(spread)[other].min() > apart(blind)[other].min()


def test_the_first_orders_of_few_pieces_share_no_place():
    # Of n pieces at most n orders have no place in common.
    orders = spread_orders(2, 4, seed=0)
    assert apart(orders)[0, 1] == 4


def test_the_inverse_order_restores_the_patches():
    patches = torch.randn(3, 8, 1, 2, 2, 2)
    orders = spread_orders(3, 8, seed=0)
    shown = reordered(patches, orders)
    assert torch.equal(shown[1, 0], patches[1, orders[1, 0]])
    assert not torch.equal(shown, patches)
    assert torch.equal(reordered(shown, orders.argsort(dim=1)), patches)


def test_orders_are_kept_with_the_checkpoint():
    first, second = jigsaw(orders_seed=0), jigsaw(orders_seed=1)
    assert not torch.equal(first.orders, second.orders)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.orders, second.orders)


# ---- patches ----------------------------------------------------------------------------------


def test_undoing_the_order_gives_back_the_window():
    method = jigsaw(**PLAIN)
    volumes = torch.rand(2, 1, *method.window)
    views = method.views(volumes, step_at())
    cells = reordered(views.patches, method.orders[views.labels].argsort(dim=1))
    rows = [torch.cat(tuple(cells[:, i : i + 2].unbind(1)), dim=3) for i in (0, 2)]
    assert torch.equal(torch.cat(rows, dim=2), volumes)


def test_patches_lie_in_their_cells_anywhere_in_training_and_in_the_middle_otherwise():
    method = jigsaw()
    boxes = method.boxes(50, step_at())
    inside = boxes - grid_boxes((2, 2, 1), (8, 8, 8))[:, :1]
    assert inside[:, :, 0].min() == 0
    assert inside[:, :, 1].max() == 8
    assert len(inside.flatten(0, 1).unique(dim=0)) == 27
    method.eval()
    inside = method.boxes(50, step_at()) - grid_boxes((2, 2, 1), (8, 8, 8))[:, :1]
    assert (inside[:, :, 0] == 1).all()


def test_every_order_occurs_and_the_label_is_its_number():
    method = jigsaw()
    labels = method.views(torch.rand(100, 1, *method.window), step_at()).labels
    assert labels.unique().tolist() == list(range(6))


def test_a_patch_keeps_neither_its_brightness_nor_its_contrast():
    patches = torch.rand(4, 1, 6, 6, 6)
    torch.testing.assert_close(
        standardised(patches), standardised(3 * patches - 1), atol=1e-4, rtol=1e-4
    )
    assert (standardised(torch.ones(1, 1, 4, 4, 4)) == 0).all()


# ---- what is computed -------------------------------------------------------------------------


def test_a_head_that_knows_nothing_is_at_chance():
    method = jigsaw()
    torch.nn.init.zeros_(method.head.out.weight)
    torch.nn.init.zeros_(method.head.out.bias)
    outcome = method(torch.rand(2, 1, *method.window), step_at())
    assert outcome.losses["order"].item() == pytest.approx(math.log(6), rel=1e-6)
    assert float(outcome.health["loss_chance"]) == pytest.approx(math.log(6), rel=1e-6)


def test_patches_at_once_change_nothing():
    volumes = torch.rand(2, 1, 16, 16, 8)
    together = jigsaw()(volumes, step_at()).losses["order"]
    one_by_one = jigsaw(crops_at_once=1)(volumes, step_at()).losses["order"]
    torch.testing.assert_close(together, one_by_one)


def test_volumes_whose_quarters_differ_are_put_in_order():
    method = jigsaw()
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    waves = torch.stack([(torch.arange(8.0) * f).sin() for f in (0.4, 0.9, 1.6, 2.6)])
    quarters = waves.view(2, 2, 8).repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)
    volumes = quarters.view(1, 1, 16, 16, 8).expand(16, -1, -1, -1, -1)
    for number in range(60):
        outcome = method(volumes, step_at(number))
        optimizer.zero_grad()
        outcome.losses["order"].backward()
        optimizer.step()
    assert outcome.health["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"patch": (9, 8, 8)}, "does not fit"), ({"orders": 25}, "24")],
)
def test_settings_that_cannot_be_are_refused(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        jigsaw(**changes)
