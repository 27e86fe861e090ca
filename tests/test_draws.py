import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.draws import Draws, mixed_seed

KINDS = {
    "uniform": lambda draws, count: draws.uniform(count, 3, 2),
    "normal": lambda draws, count: draws.normal(count, 5),
    "integers": lambda draws, count: draws.integers(count, 4, low=2, high=9),
    "permutations": lambda draws, count: draws.permutations(count, 6),
    "choose": lambda draws, count: draws.choose(count, (0.5, 1.5, 2.5), 3),
    "noise": lambda draws, count: draws.noise_like(torch.zeros(count, 2, 3)),
    "even noise": lambda draws, count: draws.uniform_like(torch.zeros(count, 2, 3)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_the_same_seed_and_step_give_the_same_numbers(kind):
    assert torch.equal(kind(Draws(1, 2), 4), kind(Draws(1, 2), 4))


@pytest.mark.parametrize("other", [Draws(2, 2), Draws(1, 3), Draws(1, 2, micro=1)])
def test_another_seed_step_or_part_gives_other_numbers(kind, other):
    # A generator is used up, so each test of a kind draws from a fresh one.
    assert not torch.equal(kind(Draws(1, 2), 8), kind(other.child(0), 8))
    assert not torch.equal(kind(Draws(1, 2), 8), kind(other, 8))


def test_the_seed_and_the_step_are_not_interchangeable(kind):
    assert not torch.equal(kind(Draws(1, 2), 8), kind(Draws(2, 1), 8))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_out_what_one_would_draw(kind, world):
    whole = kind(Draws(5, 6), 8)
    parts = [kind(Draws(5, 6, rank=rank, world=world), 8 // world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_later_draws_do_not_depend_on_the_number_of_processes():
    one, two = Draws(0, 0), Draws(0, 0, rank=1, world=2)
    one.uniform(4, 3)
    two.uniform(2, 3)
    assert torch.equal(one.integers(4, high=100)[2:], two.integers(2, high=100))


def test_a_shared_number_is_the_same_for_all_processes_and_no_other_draw_depends_on_them():
    one, two = Draws(0, 0), Draws(0, 0, rank=1, world=2)
    assert one.shared() == two.shared()
    assert torch.equal(one.uniform(4, 3)[2:], two.uniform(2, 3))
    several = [Draws(0, step).shared() for step in range(200)]
    assert len(set(several)) == 200
    assert 0 <= min(several) < 0.05
    assert 0.95 < max(several) < 1


def test_a_child_does_not_depend_on_what_its_parent_drew(kind):
    used = Draws(3, 4)
    used.uniform(5)
    assert torch.equal(kind(used.child(1), 4), kind(Draws(3, 4).child(1), 4))
    assert not torch.equal(kind(used.child(1), 8), kind(used.child(2), 8))


def test_numbers_do_not_touch_the_global_generator(kind):
    before = torch.get_rng_state()
    kind(Draws(0, 0), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_keep_their_range():
    draws = Draws(0, 0)
    uniform, integers = draws.uniform(1000), draws.integers(1000, low=-2, high=3)
    assert 0 <= uniform.min() < 0.05
    assert 0.95 < uniform.max() < 1
    assert integers.unique().tolist() == [-2, -1, 0, 1, 2]
    assert set(draws.choose(100, (0.5, 2.0)).tolist()) == {0.5, 2.0}
    assert abs(draws.normal(4000).std().item() - 1) < 0.05


def test_permutations_hold_every_thing_once():
    orders = Draws(0, 0).permutations(5, 7)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(7).expand(5, 7))


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
def test_a_mixed_seed_is_a_valid_seed(parts):
    assert 0 <= mixed_seed(*parts) < 2**63


def test_near_seeds_are_unrelated():
    seeds = {mixed_seed(seed, step) for seed in range(50) for step in range(50)}
    assert len(seeds) == 2500
    flipped = bin(mixed_seed(0, 0) ^ mixed_seed(0, 1)).count("1")
    assert 16 < flipped < 48
