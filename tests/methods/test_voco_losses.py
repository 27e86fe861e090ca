"""The losses of VoCo: closed forms, the plain loop, and what is finite."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from voco.geometry import grid_boxes, overlap
from voco.methods.voco import prediction_loss, regularization_loss, similarity

VARIANTS = ("paper", "v0", "v1", "v2")
CODE = ("v0", "v1", "v2")
each = pytest.mark.parametrize("variant", VARIANTS)


def quarters():
    """True shares of the crop that starts at (48, 48) on a grid of 4 x 4 bases of 96."""
    box = torch.tensor([[[48, 48, 0], [144, 144, 96]]])
    return overlap(box, grid_boxes((4, 4, 1), (96, 96, 96)))


def aligned():
    """True shares of the crop that is a base."""
    box = torch.tensor([[[96, 0, 0], [192, 96, 96]]])
    return overlap(box, grid_boxes((4, 4, 1), (96, 96, 96)))


def close(value, expected, tolerance=1e-4):
    torch.testing.assert_close(
        torch.as_tensor(value).float(), torch.tensor(float(expected)), atol=tolerance, rtol=0
    )


# ---- the prediction ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("paper", 0.0719), ("v0", 0.2877), ("v1", 0.2877), ("v2", 0.2877)],
)
def test_predicting_nothing_costs_the_log_of_three_quarters(variant, expected):
    shares = quarters()
    close(prediction_loss(torch.zeros_like(shares), shares, variant), expected)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("paper", 0.5918), ("v0", 0.2877 + 0.25), ("v1", 0.2877 + 0.25), ("v2", 0.2877 + 0.6931)],
)
def test_predicting_a_half_everywhere(variant, expected):
    shares = quarters()
    close(prediction_loss(torch.full_like(shares, 0.5), shares, variant), expected)


@each
def test_predicting_the_truth_costs_nothing(variant):
    for shares in (quarters(), aligned()):
        assert prediction_loss(shares, shares, variant).item() == 0


@pytest.mark.parametrize("variant", CODE)
def test_predicting_nothing_of_an_aligned_crop_costs_the_log_of_epsilon(variant):
    shares = aligned()
    close(prediction_loss(torch.zeros_like(shares), shares, variant), 13.8155, 1e-3)


@each
def test_epsilon_bounds_the_loss_and_its_slope(variant):
    shares = aligned()
    predicted = torch.zeros_like(shares).requires_grad_()
    loss = prediction_loss(predicted, shares, variant, epsilon=1e-3)
    share = 16 if variant == "paper" else 1
    close(loss.detach(), -math.log(1e-3) / share, 1e-3)
    (slope,) = torch.autograd.grad(loss, predicted)
    close(slope.min() * share, -1e3, 1)


def every_start(cells, size=96):
    """Shares of all crops of a grid's reference places, each as a volume of its own."""
    starts = [torch.arange((count - 1) * size) for count in cells[:2]]
    start = torch.cartesian_prod(*starts, torch.zeros(1, dtype=torch.int64))[::7]
    boxes = torch.stack([start, start + size], dim=1)
    return overlap(boxes, grid_boxes(cells, (size, size, size)))[:, None]


@pytest.mark.parametrize(
    ("variant", "cells", "nothing", "best", "least", "nearly_all"),
    [
        ("paper", (4, 4, 1), 0.089, 0.00, 0.089, 5.67),
        ("paper", (3, 3, 1), 0.158, 0.02, 0.156, 4.71),
        ("v0", (4, 4, 1), 0.366, 0.15, 0.249, 2.91),
        ("v1", (4, 4, 1), 0.711, 0.30, 0.361, 1.994),
        ("v2", (3, 3, 1), 0.711, 0.18, 0.583, 7.90),
    ],
)
def test_plateaus_of_constant_predictions(variant, cells, nothing, best, least, nearly_all):
    shares = every_start(cells)

    def constant(value):
        return prediction_loss(torch.full_like(shares, value), shares, variant).item()

    assert constant(0) == pytest.approx(nothing, rel=0.01)
    assert constant(best) == pytest.approx(least, rel=0.01)
    assert constant(best + 0.1) > constant(best) < constant(max(best - 0.1, 0)) + 1e-9
    assert constant(0.999) == pytest.approx(nearly_all, rel=0.01)


def looped_prediction(similarity, overlap, variant, epsilon=1e-6):
    losses = []
    for predicted, true in zip(similarity, overlap, strict=True):
        pairs = list(zip(predicted.flatten(), true.flatten(), strict=True))
        near = [(-torch.log(1 - (y - p).abs() + epsilon), y) for p, y in pairs]
        if variant == "paper":
            losses.append(sum(loss for loss, _ in near) / len(near))
            continue
        if variant == "v0":
            inside = [loss for loss, y in near if y > 0]
            positive = sum(inside) / len(inside)
        else:
            positive = sum(loss * y for loss, y in near) / sum(y for _, y in near)
        zeros = [p for p, y in pairs if y == 0]
        far = [-torch.log(1 - p + epsilon) if variant == "v2" else p**2 for p in zeros]
        losses.append(positive + sum(far) / len(far))
    return sum(losses) / len(losses)


@each
def test_the_prediction_loss_is_the_plain_loop_in_value_and_gradient(variant):
    shares = every_start((3, 3, 1), size=8)[::5][:6].double().view(3, 2, 9)
    predicted = torch.rand_like(shares).mul(0.9).add(0.05).requires_grad_()
    ours = prediction_loss(predicted, shares, variant)
    looped = looped_prediction(predicted, shares, variant)
    torch.testing.assert_close(ours, looped, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(ours, predicted)
    (expected,) = torch.autograd.grad(looped, predicted)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@each
def test_the_loss_of_a_batch_is_the_mean_over_its_volumes(variant):
    shares = every_start((3, 3, 1), size=8)[::7][:4].view(2, 2, 9)
    predicted = torch.rand_like(shares)
    alone = [prediction_loss(predicted[i], shares[i], variant) for i in range(2)]
    torch.testing.assert_close(
        prediction_loss(predicted, shares, variant), torch.stack(alone).mean()
    )
    swapped = prediction_loss(predicted.flip(0), shares.flip(0), variant)
    torch.testing.assert_close(swapped, prediction_loss(predicted, shares, variant))


# ---- the similarity ---------------------------------------------------------------------------


def test_similarity_is_the_clamped_cosine():
    queries, bases = torch.randn(2, 3, 7), torch.randn(2, 5, 7)
    expected = F.cosine_similarity(queries[:, :, None], bases[:, None], dim=-1).clamp(0, 1)
    torch.testing.assert_close(similarity(queries, bases), expected)


def test_similarity_has_the_gradient_of_the_cosine():
    queries = torch.randn(2, 3, 7, dtype=torch.float64).requires_grad_()
    bases = torch.randn(2, 5, 7, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 3, 5, dtype=torch.float64)
    cosines = F.cosine_similarity(queries[:, :, None], bases[:, None], dim=-1).relu()
    ours = torch.autograd.grad((similarity(queries, bases) * weights).sum(), (queries, bases))
    expected = torch.autograd.grad((cosines * weights).sum(), (queries, bases))
    torch.testing.assert_close(ours, expected)


def test_opposite_vectors_are_unlike_or_by_halves():
    vector = torch.randn(1, 6)
    assert similarity(vector, -vector).item() == 0
    assert similarity(vector, vector).item() == pytest.approx(1)
    assert similarity(vector, -vector, rectify="halve").item() == pytest.approx(0, abs=1e-6)
    orthogonal = torch.eye(2)
    assert similarity(orthogonal[:1], orthogonal[1:], rectify="halve").item() == 0.5


def test_halving_leaves_a_gradient_where_clamping_leaves_none():
    query = torch.tensor([[1.0, 0.2]], requires_grad=True)
    base = torch.tensor([[-1.0, 0.0]])
    for rectify, alive in (("clamp", False), ("halve", True)):
        loss = prediction_loss(similarity(query, base, rectify=rectify), torch.ones(1, 1), "v1")
        (gradient,) = torch.autograd.grad(loss, query)
        assert bool(gradient.abs().sum() > 0) == alive


@pytest.mark.parametrize("length", [1e-30, 1e-12, 1e-4, 1.0, 1e12, 1e37])
def test_similarity_does_not_depend_on_length(length):
    queries, bases = torch.randn(3, 7), torch.randn(5, 7)
    expected = similarity(queries, bases)
    # Below 1e-6 vectors count as short, and fade to zero.
    longest = similarity(queries * length, bases)
    if length > 1e-6:
        torch.testing.assert_close(longest, expected)
    else:
        assert (longest <= expected + 1e-6).all()


# ---- the regularization -----------------------------------------------------------------------


@each
def test_bases_that_are_all_the_same_cost_one(variant):
    close(regularization_loss(torch.randn(1, 8).expand(16, 8), variant), 1, 1e-5)


@each
def test_orthogonal_bases_cost_nothing(variant):
    close(regularization_loss(torch.eye(16), variant), 0, 1e-7)


@pytest.mark.parametrize(("variant", "expected"), [("paper", 16 / 240), *((v, 0) for v in CODE)])
def test_opposite_bases_cost_something_in_the_paper_alone(variant, expected):
    axes = torch.eye(8)
    close(regularization_loss(torch.cat([axes, -axes]), variant), expected)


@each
def test_a_single_base_costs_nothing(variant):
    base = torch.randn(2, 1, 4, requires_grad=True)
    loss = regularization_loss(base, variant)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(base.grad, torch.zeros_like(base))


def looped_regularization(bases, variant):
    losses = []
    for volume in bases:
        terms = []
        for i in range(len(volume) - 1):
            for j in range(i + 1, len(volume)):
                other = volume[j].detach() if variant in ("v1", "v2") else volume[j]
                cosine = F.cosine_similarity(volume[i], other, dim=0)
                terms.append(cosine.abs() if variant == "paper" else cosine.relu() ** 2)
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


@each
def test_the_regularization_is_the_plain_loop_in_value_and_gradient(variant):
    bases = torch.randn(3, 6, 5, dtype=torch.float64).requires_grad_()
    ours, looped = regularization_loss(bases, variant), looped_regularization(bases, variant)
    torch.testing.assert_close(ours, looped)
    (gradient,) = torch.autograd.grad(ours, bases)
    (expected,) = torch.autograd.grad(looped, bases)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("variant", "pair_gradient", "last_moves"),
    [
        ("paper", None, True),
        ("v0", None, True),
        ("v1", None, False),
        ("v2", None, False),
        ("v1", "both", True),
        ("paper", "first", False),
    ],
)
def test_which_bases_of_a_pair_are_pushed(variant, pair_gradient, last_moves):
    bases = (torch.randn(4, 5) + 2).requires_grad_()
    loss = regularization_loss(bases, variant, pair_gradient=pair_gradient)
    (gradient,) = torch.autograd.grad(loss, bases)
    moved = gradient.abs().sum(dim=1) > 1e-9
    assert moved.tolist() == [True, True, True, last_moves]


# ---- finite for every input -------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-20, 1e-7, 1e20, 3e38, -3e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def rows(count, width=3):
    return st.lists(
        st.lists(numbers, min_size=width, max_size=width), min_size=count, max_size=count
    )


@given(rows(2), rows(3), st.sampled_from(VARIANTS), st.sampled_from(["clamp", "halve"]))
def test_losses_of_any_embeddings_are_finite_and_so_are_their_gradients(q, k, variant, rectify):
    queries = torch.tensor(q).requires_grad_()
    bases = torch.tensor(k).requires_grad_()
    shares = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    alike = similarity(queries, bases, rectify=rectify)
    assert ((alike >= 0) & (alike <= 1)).all()
    loss = prediction_loss(alike, shares, variant) + regularization_loss(bases, variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(bases.grad).all()


@given(rows(2), rows(2), st.sampled_from(VARIANTS))
def test_any_similarity_and_share_has_a_finite_loss_and_gradient(a, b, variant):
    predicted = torch.tensor(a).requires_grad_()
    loss = prediction_loss(predicted, torch.tensor(b), variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(predicted.grad).all()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_out_as_float32_and_finite(variant, dtype):
    # In these types the cosine of a vector with itself can exceed 1, and 1 + 1e-6 is 1.
    queries = torch.randn(4, 2048).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        alike = similarity(queries, queries)
        loss = prediction_loss(alike, 1 - torch.eye(4, dtype=dtype), variant)
        loss = loss + regularization_loss(queries, variant)
    assert alike.dtype == loss.dtype == torch.float32
    assert alike.max() <= 1
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()


@each
def test_autocast_changes_nothing(variant):
    queries, bases = torch.randn(2, 64), torch.randn(3, 64)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])

    def loss():
        alike = similarity(queries, bases)
        return prediction_loss(alike, shares, variant) + regularization_loss(bases, variant)

    with torch.autocast("cpu", torch.bfloat16):
        inside = loss()
    assert torch.equal(inside, loss())
