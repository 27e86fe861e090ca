"""VoCo as a method: views, gradient routing, teachers, settings."""

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.errors import ConfigError
from voco.geometry import grid_boxes, overlap
from voco.methods.voco import (
    OWN,
    Embedded,
    VoCo,
    VoCoConfig,
    prediction_loss,
    regularization_loss,
    similarity,
)

VARIANTS = ("paper", "v0", "v1", "v2")
TAUGHT = ("v1", "v2")
each = pytest.mark.parametrize("variant", VARIANTS)
PLAIN = {"flip_probability": 0.0, "turn_probability": 0.0, "shift_probability": 0.0}


def voco(variant="paper", **changes) -> VoCo:
    torch.manual_seed(0)
    small = {"grid": (2, 2, 1), "crop": (8, 8, 8), "hidden": 12, "width": 6, "query_count": 3}
    return VoCoConfig(variant=variant, **(small | changes)).build(TinyConfig().build())


def volumes_for(method, count=2):
    return torch.rand(count, 1, *method.window)


# ---- views ------------------------------------------------------------------------------------


def test_bases_tile_the_window():
    method = voco(**PLAIN)
    volumes = volumes_for(method)
    views = method.views(volumes, step_at())
    rows = [torch.cat(tuple(views.bases[:, i : i + 2].unbind(1)), dim=3) for i in (0, 2)]
    assert torch.equal(torch.cat(rows, dim=2), volumes)


def test_random_crops_are_cut_where_their_boxes_are():
    method = voco(**PLAIN)
    volumes = volumes_for(method)
    views, boxes = method.views(volumes, step_at()), method.query_boxes(2, step_at())
    (x, y, z), (x_stop, y_stop, z_stop) = boxes[1, 2].tolist()
    assert torch.equal(views.queries[1, 2], volumes[1, :, x:x_stop, y:y_stop, z:z_stop])
    bases = grid_boxes((2, 2, 1), (8, 8, 8)).expand(2, -1, -1, -1)
    assert torch.equal(views.overlap, overlap(boxes, bases))
    assert len(method.query_boxes(50, step_at()).flatten(0, 1).unique(dim=0)) > 40


def test_crops_are_ordered_by_volume():
    method = voco(**PLAIN)
    volumes = torch.ones_like(volumes_for(method, 3)) * torch.arange(3.0).view(3, 1, 1, 1, 1)
    views = method.views(volumes, step_at())
    for number in range(3):
        assert (views.queries[number] == number).all()
        assert (views.bases[number] == number).all()


def test_one_layer_of_bases_leaves_no_room_along_z():
    method = voco()
    assert method.window == (16, 16, 8)
    assert (method.query_boxes(50, step_at())[:, :, 0, 2] == 0).all()


def test_several_layers_of_bases_do():
    method = voco(grid=(2, 2, 2))
    assert method.window == (16, 16, 16)
    assert method.query_boxes(50, step_at())[:, :, 0, 2].unique().numel() > 5


def test_a_margin_lets_crops_reach_beyond_the_grid():
    method = voco(margin=(4, 4, 0), **PLAIN)
    assert method.window == (24, 24, 8)
    views = method.views(volumes_for(method, 50), step_at())
    shares = views.overlap.sum(dim=-1)
    assert shares.min() < 0.9
    assert shares.min() > 0
    assert shares.max() <= 1
    assert method.base_boxes()[0, 0].tolist() == [4, 4, 0]


def test_crops_are_resampled_before_the_network():
    method = voco(resize=(4, 4, 4))
    views = method.views(volumes_for(method), step_at())
    assert views.queries.shape == (2, 3, 1, 4, 4, 4)
    assert views.bases.shape == (2, 4, 1, 4, 4, 4)


def test_random_crops_can_have_another_size():
    method = voco(query_crop=(4, 12, 8))
    views = method.views(volumes_for(method), step_at())
    assert views.queries.shape == (2, 3, 1, 4, 12, 8)
    torch.testing.assert_close(views.overlap.sum(dim=-1), torch.ones(2, 3))
    assert torch.isfinite(method(volumes_for(method), step_at()).losses["prediction"])


def test_every_crop_is_changed_on_its_own():
    method = voco(flip_probability=0.5, turn_probability=0.5, shift_probability=0.5)
    ramp = torch.arange(8.0 * 8 * 8).view(8, 8, 8)
    volumes = ramp.repeat(2, 2, 1).expand(3, 1, -1, -1, -1)
    bases = method.views(volumes, step_at()).bases.flatten(0, 1)
    assert len(bases.unique(dim=0)) > 8


# ---- what is computed -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "v0", "v1"])
def test_the_losses_are_those_of_the_embeddings_volume_by_volume(variant):
    method = voco(variant)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    volumes, step = volumes_for(method, 3), step_at()
    views = method.views(volumes, step)

    def embedded(network):
        crops = [*views.queries.flatten(0, 1), *views.bases.flatten(0, 1)]
        pyramids = [network.backbone.encode(one[None]) for one in crops]
        means = [[pyramid[i].mean(dim=(2, 3, 4)) for i in network.levels] for pyramid in pyramids]
        rows = network.projector(torch.cat([torch.cat(levels, dim=1) for levels in means]))
        return rows[:9].view(3, 3, -1), rows[9:].view(3, 4, -1)

    losses, spreads = [], []
    queries, bases = embedded(method.student)
    for number in range(3):
        predicted = similarity(queries[number], bases[number].detach())
        if variant == "v1":
            taught_queries, taught_bases = embedded(method.teacher)
            forth = similarity(queries[number], taught_bases[number])
            predicted = (forth + similarity(taught_queries[number], bases[number])) / 2
        losses.append(prediction_loss(predicted, views.overlap[number], variant))
        spreads.append(regularization_loss(bases[number], variant))
    found = method(volumes, step).losses
    assert list(found) == ["prediction", "regularization"]
    torch.testing.assert_close(found["prediction"], torch.stack(losses).mean())
    torch.testing.assert_close(found["regularization"], torch.stack(spreads).mean())


def leaves(volumes=3):
    """Embeddings of a student (which takes gradients) and of a teacher."""
    student = Embedded(
        (torch.rand(volumes, 2, 6) + 0.1).requires_grad_(),
        (torch.rand(volumes, 4, 6) + 0.1).requires_grad_(),
    )
    return student, Embedded(torch.rand(volumes, 2, 6), torch.rand(volumes, 4, 6))


def shares(volumes=3):
    return torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25] * 4]).expand(volumes, 2, 4)


@pytest.mark.parametrize(
    ("variant", "loss", "to_queries", "to_bases"),
    [
        ("paper", "prediction", True, False),
        ("paper", "regularization", False, True),
        ("v0", "prediction", True, False),
        ("v0", "regularization", False, True),
        ("v1", "prediction", True, True),
        ("v1", "regularization", False, True),
        ("v2", "intra", True, False),
        ("v2", "inter", True, True),
        ("v2", "regularization", False, True),
    ],
)
def test_where_gradients_go(variant, loss, to_queries, to_bases):
    method = voco(variant)
    student, teacher = leaves()
    predicted = method.predicted(student, teacher if method.teacher else None)
    losses = method.losses(student, teacher if method.teacher else None, predicted, shares())
    gradients = torch.autograd.grad(losses[loss], student, allow_unused=True)
    reached = [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients]
    assert reached == [to_queries, to_bases]


def test_the_terms_between_volumes_follow_the_teacher_on_the_next_volume():
    method = voco("v2")
    student, teacher = leaves()
    predicted = method.predicted(student, teacher)
    losses = method.losses(student, teacher, predicted, shares())
    expected = []
    for number in range(3):
        following = (number + 1) % 3
        target = similarity(teacher.queries[number], teacher.bases[following])
        guess = similarity(student.queries[number], student.bases[following])
        expected.append(prediction_loss(guess, target, "v2"))
    torch.testing.assert_close(losses["inter"], torch.stack(expected).mean())
    intra = prediction_loss(similarity(student.queries, teacher.bases), shares(), "v2")
    torch.testing.assert_close(losses["intra"], intra)


def test_a_batch_of_one_has_no_next_volume():
    method = voco("v2")
    with pytest.raises(ConfigError, match="batch_size"):
        method(volumes_for(method, 1), step_at())
    assert method.eval()(volumes_for(method, 1), step_at()).losses["inter"] == 0


@each
def test_the_weight_of_the_regularization_is_in_the_loss(variant):
    volumes = volumes_for(voco(variant))
    one = voco(variant)(volumes, step_at()).losses
    half = voco(variant, regularization_weight=0.5)(volumes, step_at()).losses
    torch.testing.assert_close(half["regularization"], one["regularization"] / 2)
    assert one.keys() == half.keys()


@each
def test_passing_crops_in_pieces_changes_neither_losses_nor_gradients(variant):
    volumes = volumes_for(voco(variant)).double()
    results = []
    for at_once in (None, 3):
        method = voco(variant, crops_at_once=at_once).double()
        losses = method(volumes, step_at()).losses
        torch.stack(list(losses.values())).sum().backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        results.append([*losses.values(), *gradients])
    torch.testing.assert_close(*results)


def test_crops_are_dropped_in_training_alone():
    volumes = volumes_for(voco("v2"))

    def intra(method):
        return method(volumes, step_at()).losses["intra"].item()

    assert intra(voco("v2", crop_dropout=0.6)) != intra(voco("v2", crop_dropout=0.0))
    dropping = voco("v2", crop_dropout=0.6).eval()
    assert intra(dropping) == intra(voco("v2", crop_dropout=0.0).eval())


def test_the_similarity_can_be_halved_instead_of_clamped():
    volumes = volumes_for(voco())
    clamped = voco()(volumes, step_at())
    halved = voco(rectify="halve")(volumes, step_at())
    assert halved.health["similarity_outside"] > clamped.health["similarity_outside"]
    assert halved.health["dead_share"] == 0


def test_the_last_level_alone_trains_what_leads_to_it():
    method = voco("v0")
    assert method.student.levels == (2,)
    assert method.student.projector[0].in_features == 8
    assert voco("paper").student.projector[0].in_features == 18


# ---- teachers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", TAUGHT)
def test_the_teacher_of_a_step_has_followed_the_student_before_its_optimizer_step(variant):
    method = voco(variant, teacher_from_student=False)
    followed = method.student if variant == "v1" else method.student.projector
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    old = [tensor.clone() for tensor in method.teacher.parameters()]
    before = [tensor.detach().clone() for tensor in followed.parameters()]
    trained = [tensor.requires_grad for tensor in followed.parameters()]
    method.before_step(step_at())
    losses = method(volumes_for(method), step_at()).losses
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    method.after_step(step_at())
    # The decoder is in neither's use: it stays.
    expected = [0.9 * a + 0.1 * b if c else a for a, b, c in zip(old, before, trained, strict=True)]
    torch.testing.assert_close(list(method.teacher.parameters()), expected)
    assert any(not torch.equal(a, b) for a, b in zip(followed.parameters(), before, strict=True))


@pytest.mark.parametrize("variant", TAUGHT)
def test_a_forward_pass_does_not_move_the_teacher(variant):
    method = voco(variant, teacher_from_student=False)
    before = [tensor.clone() for tensor in method.teacher.parameters()]
    method(volumes_for(method), step_at())
    for now, old in zip(method.teacher.parameters(), before, strict=True):
        assert torch.equal(now, old)
        assert not now.requires_grad


@pytest.mark.parametrize("variant", TAUGHT)
def test_the_teacher_starts_as_the_student_unless_asked_otherwise(variant):
    volumes = volumes_for(voco(variant))
    assert voco(variant)(volumes, step_at()).health["teacher_distance"] == 0
    apart = voco(variant, teacher_from_student=False)(volumes, step_at())
    assert apart.health["teacher_distance"] > 0.5


@pytest.mark.parametrize("variant", ["paper", "v0"])
def test_paper_and_v0_have_no_teacher(variant):
    method = voco(variant)
    assert method.teacher is None
    assert "teacher_distance" not in method(volumes_for(method), step_at()).health


def test_the_teachers_backbone_can_be_handed_over():
    assert voco("v1").handover() is not voco("v1").teacher.backbone
    method = voco("v1", handed_over="teacher")
    assert method.handover() is method.teacher.backbone
    assert voco("v1").handover().network.stem.weight.requires_grad


# ---- health and pictures ----------------------------------------------------------------------


def test_a_network_that_knows_its_place_is_told_from_one_that_does_not():
    method = voco(**PLAIN)
    volumes, step = volumes_for(method, 20), step_at()
    health = method(volumes, step).health
    assert 0 < health["position_chance"] < 0.5
    assert health["position_accuracy"] < 0.6
    assert 1 <= health["effective_rank"] <= 6
    assert 0 <= health["dead_share"] <= 1


@pytest.mark.parametrize("grid", [(2, 2, 1), (2, 1, 2)])
def test_the_picture_shows_bases_crops_and_shares(grid):
    method = voco(grid=grid)
    panels = method.show(volumes_for(method), step_at())
    window, crop, bars = panels[:3]
    boxes = method.query_boxes(1, step_at())[0]
    x, y, _ = boxes[0, 0].tolist()
    assert (x, y, 8.0, 8.0, "crop 0") in window.rectangles
    in_slice = [mark for mark in window.rectangles if not mark[4].startswith("crop")]
    assert len(in_slice) == grid[0] * grid[1]
    assert window.image.shape == (16, 8 * grid[1])
    assert crop.image.shape == (8, 8)
    shares = method.views(volumes_for(method), step_at()).overlap[0, 0]
    assert [pair[0] for pair in bars.bars.values()] == pytest.approx(shares.tolist())
    assert len(panels) == 1 + 2 * 3


# ---- settings ---------------------------------------------------------------------------------


def test_each_variant_has_its_own_settings():
    assert VoCoConfig().choices() == OWN["v1"]
    assert VoCoConfig(variant="v1").choices().crop == (96, 96, 96)
    assert VoCoConfig(variant="v1").choices().resize == (64, 64, 64)
    assert VoCoConfig(variant="v2").choices().grid == (3, 3, 1)
    assert VoCoConfig(variant="v2").choices().hidden == 1024


def test_what_is_given_goes_before_what_the_variant_has():
    chosen = VoCoConfig(variant="v1", crop=(64, 64, 64), query_count=5).choices()
    assert chosen.crop == (64, 64, 64)
    assert chosen.resize is None
    assert chosen.query_count == 5
    assert chosen.pair_gradient == "first"
    assert VoCoConfig(variant="v2", crop_dropout=0.0).choices().crop_dropout == 0


@each
def test_resolved_settings_say_everything_and_mean_the_same(variant):
    config = VoCoConfig(variant=variant)
    resolved = config.resolved()
    assert resolved.choices() == config.choices()
    assert resolved.grid == config.choices().grid
    assert VoCoConfig.model_validate(resolved.model_dump()) == resolved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (1, 1, 1)}, "at least two"),
        ({"grid": (0, 4, 1)}, "greater than 0"),
        ({"crop": (8, 8, 8), "margin": (8, 0, 0)}, "every crop touches the grid"),
        ({"crop": (8, 8, 8), "query_crop": (8, 8, 9)}, "does not fit"),
        ({"variant": "v3"}, "paper"),
        ({"epsilon": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        VoCoConfig(**changes)


def test_a_crop_the_backbone_cannot_take_is_refused_with_the_nearest_that_fits():
    with pytest.raises(ConfigError, match=r"\(8, 12, 8\)"):
        voco(crop=(8, 12, 10))
    with pytest.raises(ConfigError, match="multiples of 4"):
        voco(query_crop=(8, 6, 8))


# ---- it learns --------------------------------------------------------------------------------


@each
def test_it_learns_where_crops_lie(variant):
    torch.manual_seed(0)
    config = VoCoConfig(
        variant=variant, grid=(2, 2, 1), crop=(8, 8, 8), hidden=32, width=32, query_count=8, **PLAIN
    )
    method = config.build(TinyConfig(in_channels=2).build())
    # Two channels that say where a voxel is, and nothing else.
    line = torch.linspace(-1, 1, 16)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None, ..., None]
    volumes = places.expand(4, -1, -1, -1, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for number in range(50):
        method.before_step(step_at(number))
        outcome = method(volumes, step_at(number))
        history.append(next(iter(outcome.losses.values())).item())
        optimizer.zero_grad()
        torch.stack(list(outcome.losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
    health = method.eval()(volumes, step_at(1000)).health
    assert sum(history[-5:]) < 0.8 * sum(history[:5])
    assert health["position_accuracy"] > 2 * health["position_chance"]
    assert health["similarity_inside"] > health["similarity_outside"] + 0.2
