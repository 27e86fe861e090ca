"""PCRL: what is restored, what is remembered, its losses, its settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.draws import Draws
from voco.methods.pcrl import (
    PCRL,
    PCRLConfig,
    Queue,
    contrast_chance,
    draw_codes,
    enqueued,
    first_scale,
    memory_bank_loss,
    mixed,
    queue_loss,
    restoration_loss,
    transformed,
)
from voco.task import Step

STILL = {"flip_probability": 0.0, "scale": 0.0, "degrees": 0.0}
WHOLE = {"blur": 0.0, "shuffle_probability": 0.0, "paint_probability": 0.0}


def config_of(**changes) -> PCRLConfig:
    small = {
        "window": (12, 12, 8),
        "sizes": ((8, 8, 8), (12, 12, 8)),
        "crop": (8, 8, 8),
        "shuffle_blocks": 20,
        "queue": 7,
        "width": 6,
        "code_hidden": 8,
    }
    return PCRLConfig.model_validate(small | changes)


def pcrl(**changes) -> PCRL:
    torch.manual_seed(0)
    return config_of(**changes).build(TinyConfig().build())


def volumes_for(count=3):
    shape = (count, 1, 12, 12, 8)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# ---- what is restored -------------------------------------------------------------------------


def undone(crop, code):
    """A crop turned and mirrored back, by what the code says, one number after the other."""
    crop = torch.rot90(crop, -code[3:].tolist().index(1), dims=(1, 2))
    return crop.flip([axis + 1 for axis in range(3) if code[axis]])


@pytest.mark.parametrize("targets", ["clean", "damaged"])
def test_the_code_says_what_was_done_to_the_target(targets):
    views = pcrl(**STILL, **WHOLE, targets=targets).views(volumes_for(8), step_at())
    for looks, goals, codes in zip(views.looks, views.targets, views.codes, strict=True):
        for look, target, code in zip(looks, goals, codes, strict=True):
            assert torch.equal(undone(target, code), look)


def test_clean_targets_are_without_damage_and_damaged_ones_with_it():
    volumes = volumes_for(8)
    looks = {}
    for targets in ("clean", "damaged"):
        views = pcrl(targets=targets).views(volumes, step_at())
        looks[targets] = views.looks
        back = torch.stack(
            [
                undone(*pair)
                for pair in zip(views.targets.flatten(0, 1), views.codes.flatten(0, 1), strict=True)
            ]
        )
        assert torch.equal(back, views.looks.flatten(0, 1)) == (targets == "damaged")
        assert torch.equal(back, views.clean.flatten(0, 1)) == (targets == "clean")
    assert torch.equal(looks["clean"], looks["damaged"])


def test_aligned_targets_of_mixtures_move_with_the_crops_and_unaligned_ones_do_not():
    volumes, moving = volumes_for(8), {"flip_probability": 1.0, "scale": 0.0, "degrees": 0.0}
    aligned = pcrl(**WHOLE, **moving).views(volumes, step_at())
    torch.testing.assert_close(aligned.clean, aligned.looks)
    unaligned = pcrl(**WHOLE, **moving, mixed_targets="unaligned").views(volumes, step_at())
    assert torch.equal(unaligned.looks, aligned.looks)
    torch.testing.assert_close(unaligned.clean, aligned.looks.flip(3), atol=1e-5, rtol=0)


def test_every_mirroring_and_every_turn_is_equally_likely():
    codes = draw_codes(Draws(0, 0), 500, 4, square=True).flatten(0, 1).float()
    assert codes[:, :3].mean(dim=0).tolist() == pytest.approx([0.5] * 3, abs=0.04)
    assert codes[:, 3:].mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.04)
    assert (codes[:, 3:].sum(dim=1) == 1).all()
    oblong = draw_codes(Draws(0, 0), 500, 4, square=False).flatten(0, 1).float()
    assert oblong[:, 3:].mean(dim=0).tolist() == pytest.approx([0.5, 0, 0.5, 0], abs=0.04)


def test_the_larger_share_is_the_volumes_own():
    shares = pcrl().views(volumes_for(200), step_at()).shares
    assert shares.min() >= 0.5
    assert shares.max() > 0.98
    assert shares.mean() == pytest.approx(0.75, abs=0.02)


def test_another_range_of_intensities_means_the_same():
    volumes = volumes_for()
    views = pcrl().views(volumes, step_at())
    wide = pcrl(intensities=(-5.0, 5.0)).views(volumes * 10 - 5, step_at())
    torch.testing.assert_close(wide.looks, views.looks * 10 - 5, atol=1e-3, rtol=0)
    torch.testing.assert_close(wide.targets, views.targets, atol=1e-4, rtol=0)


@given(st.integers(0, 7), st.integers(0, 3))
def test_a_transform_moves_voxels_and_makes_none(mirrored, turns):
    flags = [mirrored & 1, mirrored >> 1 & 1, mirrored >> 2 & 1]
    codes = torch.tensor([[[*flags, *(int(turn == turns) for turn in range(4))]]])
    crop = torch.arange(2.0 * 64).view(1, 1, 2, 4, 4, 4)
    found = transformed(crop, codes)
    assert torch.equal(undone(found[0, 0], codes[0, 0]), crop[0, 0])
    assert torch.equal(found.flatten(3).sort(dim=3).values, crop.flatten(3))


# ---- the queue --------------------------------------------------------------------------------


def test_the_queue_goes_round_at_16384():
    size = PCRLConfig().queue
    assert size == 16_384
    queue = Queue(size, 2)
    start = queue.rows.clone()
    queue.add(torch.ones(size - 1, 2))
    assert torch.equal(queue.rows[-1], start[-1])
    assert queue.empty().nonzero().flatten().tolist() == [size - 1]
    queue.add(torch.full((3, 2), 2.0))
    assert queue.taken == size + 2
    assert not queue.empty().any()
    assert (queue.rows == 2).all(dim=1).nonzero().flatten().tolist() == [0, 1, size - 1]


def test_of_more_keys_than_a_queue_holds_the_last_stay():
    keys = torch.arange(11.0)[:, None].expand(11, 2)
    found = enqueued(torch.zeros(4, 2), keys, torch.tensor(2))
    # The key that was taken as number n lies at n modulo 4; the last four are 9, 10, 11, 12.
    assert found[:, 0].tolist() == [10, 7, 8, 9]


@pytest.mark.parametrize(("queued", "kept"), [("keys", 3), ("all", 9)])
def test_the_queue_takes_the_keys_of_a_step_when_it_is_done(queued, kept):
    method = pcrl(queued=queued, queue=20)
    before = method.queue.rows.clone()
    method.before_step(step_at())
    method(volumes_for(), step_at())
    assert torch.equal(method.queue.rows, before)
    method.after_step(step_at())
    assert method.queue.taken == kept
    assert torch.equal(method.queue.rows[kept:], before[kept:])
    _, key = method.teacher(method.views(volumes_for(), step_at()).looks[:, 1])
    torch.testing.assert_close(method.queue.rows[:3], F.normalize(key))


def test_what_is_only_looked_at_is_not_remembered():
    method = pcrl().eval()
    method(volumes_for(), step_at())
    method.after_step(step_at())
    assert method.queue.taken == 0


def test_what_the_queue_started_with_does_not_count_as_told_apart():
    method = pcrl(queue=7)
    found = []
    for number in range(3):
        step = step_at(number)
        method.before_step(step)
        found.append(method(volumes_for(), step).health)
        method.after_step(step)
    # Of the key alone, of three keys before it, of six.
    assert [health["pair_chance"].item() for health in found] == pytest.approx([1, 1 / 4, 1 / 7])
    filled = [health["queue_filled"].item() for health in found]
    assert filled == pytest.approx([0, 3 / 7, 6 / 7])
    assert found[0]["pair_accuracy"] == 1


# ---- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [1, 5, 300])
def test_equal_embeddings_cost_what_chance_says(queue):
    rows, others = torch.ones(4, 3), torch.ones(queue, 3)
    found = queue_loss(rows, rows, others, 0.2)
    assert found.item() == pytest.approx(math.log(queue + 1), rel=1e-5)
    assert found.item() == pytest.approx(contrast_chance(queue, "infonce"), rel=1e-5)
    scale = first_scale(rows, rows, others, 0.2, everywhere=False)
    assert scale.item() == pytest.approx(5.0)
    found = memory_bank_loss(rows, rows, others, 0.2, scale)
    assert found.item() == pytest.approx(contrast_chance(queue, "memory_bank"), rel=1e-5)


def test_a_key_unlike_all_others_is_found():
    query = torch.eye(3)[:2]
    queue = torch.eye(3)[2:].expand(4, 3)
    expected = math.log(math.exp(1 / 0.2) + 4) - 1 / 0.2
    assert queue_loss(query, query, queue, 0.2).item() == pytest.approx(expected, rel=1e-4)


def test_keys_of_other_queries_are_no_candidates():
    query, queue = torch.randn(3, 4), torch.randn(5, 4)
    key = torch.randn(3, 4)
    alone = [queue_loss(query[row : row + 1], key[row : row + 1], queue, 0.2) for row in range(3)]
    torch.testing.assert_close(queue_loss(query, key, queue, 0.2), torch.stack(alone).mean())


def test_the_memory_bank_is_the_two_way_guess_of_the_reference():
    torch.manual_seed(0)
    query, key, queue = (F.normalize(torch.randn(count, 4)) for count in (3, 3, 5))
    images, bank = 1000, len(queue)
    right = ((query * key).sum(dim=1) / 0.2).exp()
    wrong = (query @ queue.mT / 0.2).exp()
    z = torch.cat([right[:, None], wrong], dim=1).mean() * images
    noise = bank / images
    found = (right / z) / (right / z + noise), noise / (wrong / z + noise)
    expected = -(found[0].log().sum() + found[1].log().sum()) / len(query)
    scale = first_scale(query, key, queue, 0.2, everywhere=False)
    torch.testing.assert_close(memory_bank_loss(query, key, queue, 0.2, scale), expected)


def test_the_scale_of_the_memory_bank_is_that_of_the_first_step_for_ever():
    method = pcrl(contrast="memory_bank")
    assert method.bank_scale.isinf()
    scales = []
    for number in range(2):
        step = step_at(number)
        method.before_step(step)
        method(volumes_for(), step)
        method.after_step(step)
        scales.append(method.bank_scale.item())
    assert math.isfinite(scales[0])
    assert scales[0] == scales[1]


@given(st.floats(1e-3, 1e30), st.integers(0, 1 << 20))
def test_losses_are_finite_for_whatever_embeddings(size, seed):
    draw = torch.Generator().manual_seed(seed)
    query, key, queue = (torch.randn(count, 3, generator=draw) * size for count in (2, 2, 4))
    query[0] = 0
    assert torch.isfinite(queue_loss(query.requires_grad_(), key, queue, 0.2))
    scale = first_scale(query, key, queue, 0.2, everywhere=False)
    loss = memory_bank_loss(query, key, queue, 0.2, scale)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_a_mixture_has_its_share_of_each():
    rows, others = torch.zeros(2, 1, 2, 2, 2), torch.ones(2, 1, 2, 2, 2)
    found = mixed(rows, others, torch.tensor([1.0, 0.7])).flatten(1)
    torch.testing.assert_close(found, torch.tensor([[0.0], [0.3]]).expand(2, 8))


@pytest.mark.parametrize("contrast", ["infonce", "memory_bank"])
@pytest.mark.parametrize("queued", ["keys", "all"])
@pytest.mark.parametrize("mixed_targets", ["aligned", "unaligned"])
def test_the_losses_are_those_written_out_volume_by_volume(contrast, queued, mixed_targets):
    method = pcrl(contrast=contrast, queued=queued, mixed_targets=mixed_targets, temperature=0.3)
    with torch.no_grad():
        for tensor in method.teacher.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    views = method.views(volumes_for(), step_at())
    found = method(volumes_for(), step_at()).losses
    expected = written_out(method, views)
    assert found["contrast"].item() == pytest.approx(expected[0], rel=1e-4)
    assert found["restoration"].item() == pytest.approx(expected[1], rel=1e-4)


@torch.no_grad()
def written_out(method, views):
    """Contrast and restoration, a volume and a term at a time."""
    decode = method.student.backbone.decode

    def restored(pyramid):
        return method.output(decode(pyramid)).sigmoid()[0]

    def gated(pyramid, code):
        return [*pyramid[:-1], pyramid[-1] * method.gates(code[None]).view(1, -1, 1, 1, 1)]

    queries, keys, errors = ([], [], []), ([], [], []), []
    count = len(views.looks)
    for at in range(count):
        following = (at + 1) % count
        blend, share, mixed_blend = views.shares[at].tolist()
        first, second = views.looks[at]
        pyramid, query = method.student(first[None])
        others, key = method.teacher(second[None])
        pyramid = gated(pyramid, views.codes[at, 0])
        others = gated(others, views.codes[at, 1])
        goal, other_goal = views.targets[at]
        both = [blend * a + (1 - blend) * b for a, b in zip(pyramid, others, strict=True)]
        errors.append((restored(pyramid) - goal).square().mean())
        blended = blend * goal + (1 - blend) * other_goal
        errors.append((restored(both) - blended).square().mean())
        mixtures = share * views.looks[at] + (1 - share) * views.looks[following]
        goals = share * views.clean[at] + (1 - share) * views.clean[following]
        pyramid, mixed_query = method.student(mixtures[:1])
        others, mixed_key = method.teacher(mixtures[1:])
        both = [
            mixed_blend * a + (1 - mixed_blend) * b for a, b in zip(pyramid, others, strict=True)
        ]
        errors.append((restored(pyramid) - goals[0]).square().mean())
        blended = mixed_blend * goals[0] + (1 - mixed_blend) * goals[1]
        errors.append((restored(both) - blended).square().mean())
        _, next_key = method.teacher(views.looks[following, 1][None])
        for many, one in zip(queries, (query, mixed_query, mixed_query), strict=True):
            many.append(one)
        of_keys = share * key + (1 - share) * next_key
        for many, one in zip(keys, (key, mixed_key, of_keys), strict=True):
            many.append(one)
    return contrast_written_out(method, queries, keys), torch.stack(errors).mean().item()


def contrast_written_out(method, queries, keys):
    config, queue, level, total = method.config, method.queue.rows.clone(), None, 0.0
    taken = 0
    for query, key in zip(queries, keys, strict=True):
        rows = F.normalize(torch.cat(query)), F.normalize(torch.cat(key))
        right = (rows[0] * rows[1]).sum(dim=1) / config.temperature
        wrong = rows[0] @ F.normalize(queue).mT / config.temperature
        logits = torch.cat([right[:, None], wrong], dim=1)
        if config.contrast == "infonce":
            total += -logits.log_softmax(dim=1)[:, 0].mean().item()
        else:
            level = logits.exp().mean() * len(queue) if level is None else level
            inside, outside = (1 + level / right.exp()).log(), (1 + wrong.exp() / level).log()
            total += (inside + outside.sum(dim=1)).mean().item()
        if config.queued == "all":
            for row in rows[1]:
                queue[taken % len(queue)] = row
                taken += 1
    return total / 3


def test_constant_restorations_cost_their_distance():
    found = [torch.full((2, 1, 2, 2, 2), value) for value in (0.0, 0.5)]
    targets = (torch.ones(2, 1, 2, 2, 2), torch.ones(2, 1, 2, 2, 2))
    assert restoration_loss(found, targets).item() == pytest.approx((1 + 0.25) / 2)


def test_guesses_cost_what_health_says():
    volumes = torch.zeros(2, 1, 12, 12, 8)
    volumes[:, :, :, :, 4:] = 1.0
    same = {"sizes": ((12, 12, 8),), "crop": (12, 12, 8)}
    method = pcrl(**STILL, **WHOLE, **same, contrast_weight=2.0, restoration_weight=3.0)
    health = method(volumes, step_at()).health
    # Half of each target is 0, half 1, and mixtures are of equal volumes; but where one of two
    # crops is mirrored along z, a blend of both has shares s and 1 - s.
    views = method.views(volumes, step_at())
    apart = views.codes[:, 0, 2] != views.codes[:, 1, 2]
    share = views.shares[:, 0]
    blend = torch.where(apart, (share - 0.5).square(), torch.tensor(0.25)).mean()
    assert health["restoration_chance"].item() == pytest.approx((0.75 + blend.item()) / 4, rel=1e-3)
    assert health["contrast_chance"].item() == pytest.approx(math.log(8))
    total = 2 * health["contrast_chance"] + 3 * health["restoration_chance"]
    torch.testing.assert_close(health["loss_chance"], total)
    assert health["outside_share"] == 0


# ---- the copy ---------------------------------------------------------------------------------


def test_the_copy_starts_as_the_network_and_moves_by_its_share_of_the_gap():
    assert PCRLConfig().momentum == 0.999
    method = pcrl(momentum=0.9)
    assert method(volumes_for(), step_at()).health["teacher_distance"] == 0
    before = [tensor.clone() for tensor in method.teacher.parameters()]
    with torch.no_grad():
        for tensor in method.student.parameters():
            tensor.add_(1.0)
    method.before_step(step_at(0))
    for now, old, other in zip(
        method.teacher.parameters(), before, method.student.parameters(), strict=True
    ):
        moved = 0.1 * (other - old) if other.requires_grad else torch.zeros_like(old)
        torch.testing.assert_close(now - old, moved.detach(), atol=1e-6, rtol=1e-4)


def test_no_gradient_reaches_the_copy_or_the_queue():
    method = pcrl()
    losses = method(volumes_for(), step_at()).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(tensor.grad is None for tensor in method.teacher.parameters())
    assert not method.queue.rows.requires_grad
    assert all(tensor.grad.abs().sum() > 0 for tensor in method.gates.parameters())


# ---- settings, learning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ((96, 96, 160),)}, "does not fit into the window"),
        ({"sizes": ()}, "at least 1 item"),
        ({"intensities": (1.0, 1.0)}, "not below the largest"),
        ({"contrast": "softmax"}, "memory_bank"),
        ({"queue": 0}, "greater than 0"),
        ({"least_overlap": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        PCRLConfig(**changes)


def test_every_channel_is_restored():
    torch.manual_seed(0)
    method = config_of().build(TinyConfig(in_channels=2).build())
    assert method.output.out_channels == 2
    assert torch.isfinite(method(torch.rand(2, 2, 12, 12, 8), step_at()).losses["restoration"])


def test_it_learns_to_tell_volumes_apart_and_to_restore():
    # The queue holds an older key of every volume, which is as right: at best the loss is log 2.
    method = pcrl(**STILL, **WHOLE, queue=4, momentum=0.9)
    volumes = torch.linspace(0, 1, 4).view(4, 1, 1, 1, 1) + 0.05 * volumes_for(4)
    before = method.eval()(volumes, step_at(1000)).losses["restoration"].item()
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for number in range(60):
        step = Step(number, 1000, Draws(0, number))
        method.before_step(step)
        losses = method(volumes, step).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.after_step(step)
    losses, health = method.eval()(volumes, step_at(1000))
    assert losses["contrast"] < 0.85 * health["contrast_chance"]
    assert health["similarity_pairs"] > health["similarity_others"] + 0.3
    assert losses["restoration"] < before / 2
