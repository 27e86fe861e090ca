import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voco.evaluation.probe import (
    Rows,
    chances,
    judge,
    linear_scores,
    neighbour_scores,
    standardised,
    with_chance,
)

LINEAR = {"ridge": 1.0, "iterations": 200}
VOTE = {"neighbours": 2, "temperature": 0.5}
ALL = {**LINEAR, "neighbours": 5, "temperature": 0.07}


def numbers(*values):
    return torch.tensor(values)


def rows(features, classes, cases=None):
    cases = torch.zeros(len(classes), dtype=torch.int64) if cases is None else cases
    return Rows(features, classes, cases)


def clouds(count, seed, width=6, classes=3, distance=10.0):
    """Points around one centre per class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=generator)
    return rows(noise + distance * torch.eye(width)[labels], labels, torch.arange(count) // 10)


def test_separable_classes_are_all_told_apart():
    result = judge(clouds(60, 0), clouds(30, 1), 3, **ALL)
    for probe in ("linear", "neighbours"):
        assert result.figures[probe] == {"accuracy": 1.0, "balanced_accuracy": 1.0}
        assert result.found[probe] == {0: 1.0, 1: 1.0, 2: 1.0}
        assert result.by_case[probe] == [1.0, 1.0, 1.0]


def test_labels_without_reason_are_told_apart_by_chance_only():
    generator = torch.Generator().manual_seed(0)
    train, test = (
        rows(
            torch.randn(count, 4, generator=generator),
            torch.randint(0, 4, (count,), generator=generator),
        )
        for count in (400, 2000)
    )
    result = judge(train, test, 4, **ALL)
    for metrics in result.figures.values():
        # Three standard deviations of 2000 guesses.
        assert metrics["balanced_accuracy"] == pytest.approx(0.25, abs=0.03)


def test_classes_along_one_line_are_told_apart():
    """A regression onto indicators would never name the class in the middle."""
    places = torch.arange(90.0) / 30
    classes = torch.arange(90) // 30
    known, asked = standardised(places[:, None], places[:, None])
    scores = linear_scores(known, classes, asked, 3, **LINEAR | {"ridge": 1e-3})
    assert (scores.argmax(dim=1) == classes).double().mean() > 0.95


def test_the_linear_probe_is_where_its_gradient_vanishes():
    """The probabilities p of the optimum: sum of x (p - y) = - ridge * coefficients, closed."""
    train = clouds(40, 0, distance=1.0)
    known, _ = standardised(train.features, train.features)
    truth = torch.nn.functional.one_hot(train.classes, 3).double()
    ridge = 2.0
    # Asked about its own axes and about the origin, the probe gives away its coefficients.
    axes = torch.cat([torch.zeros(1, 6), torch.eye(6)])
    logits = (
        linear_scores(known, train.classes, axes, 3, ridge=ridge, iterations=500).double().log()
    )
    logits = logits - logits.mean(dim=1, keepdim=True)
    weight = logits[1:] - logits[:1]
    found = linear_scores(known, train.classes, known, 3, ridge=ridge, iterations=500).double()
    gradient = known.double().mT @ (found - truth) + ridge * weight
    assert gradient.abs().max() < 1e-2
    assert (found - truth).sum(dim=0).abs().max() < 1e-2  # biases are not penalised


def test_a_larger_penalty_makes_answers_more_even():
    train = clouds(30, 0, distance=2.0)
    known, asked = standardised(train.features, train.features)
    sure = [
        linear_scores(known, train.classes, asked, 3, ridge=ridge, iterations=200).amax(dim=1)
        for ridge in (0.1, 10.0, 1e6)
    ]
    assert sure[0].mean() > sure[1].mean() > sure[2].mean()
    torch.testing.assert_close(sure[2], torch.full((30,), 1 / 3), atol=1e-3, rtol=0)


def test_more_features_than_rows_are_no_obstacle():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 300, generator=generator)
    classes = torch.arange(8) % 2
    known, asked = standardised(features, features)
    scores = linear_scores(known, classes, asked, 2, **LINEAR)
    assert torch.equal(scores.argmax(dim=1), classes)


def test_neighbours_vote_by_their_cosine_as_computed_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    angle = math.radians(30)
    asked = torch.tensor([[3 * math.cos(angle), 3 * math.sin(angle)]])
    scores = neighbour_scores(train, numbers(0, 1, 1, 2), asked, 3, **VOTE)
    # The two nearest have the cosines cos 30 and sin 30.
    weights = [math.exp(math.cos(angle) / 0.5), math.exp(math.sin(angle) / 0.5)]
    expected = torch.tensor([[weights[0], weights[1], 0.0]]) / sum(weights)
    torch.testing.assert_close(scores, expected)


def test_all_rows_vote_where_fewer_are_there_than_asked_for():
    train = torch.eye(2)
    votes = neighbour_scores(
        train, numbers(0, 1), torch.ones(1, 2), 2, neighbours=20, temperature=1.0
    )
    torch.testing.assert_close(votes, torch.tensor([[0.5, 0.5]]))


def test_a_class_that_was_never_shown_is_never_named():
    train, test = clouds(20, 0, classes=2), clouds(20, 1, classes=3)
    for scores in (
        linear_scores(train.features, train.classes, test.features, 4, **LINEAR),
        neighbour_scores(train.features, train.classes, test.features, 4, **VOTE),
    ):
        assert torch.equal(scores[:, 2:], torch.zeros(20, 2))
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(20))


def test_standardised_features_have_mean_0_and_deviation_1():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    known, asked = standardised(features, torch.tensor([[4.0, 9.0]]))
    assert known.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert asked.tolist() == [[2.0, 0.0]]  # of a constant nothing is known


@given(
    value=st.sampled_from([0.0, 1e30, -1e30, math.inf, -math.inf, math.nan]),
    everywhere=st.booleans(),
)
def test_whatever_features_are_the_figures_are_finite(value, everywhere):
    train, test = clouds(12, 0), clouds(9, 1)
    for part in (train, test):
        part.features[:, 1] = value
        part.features[0] = value
    if everywhere:
        train.features[:] = value
    result = judge(train, test, 3, **ALL)
    assert all(0 <= figure <= 1 for figure in result.flat().values())


def test_two_classes_have_an_auroc_too():
    result = judge(clouds(20, 0, classes=2), clouds(20, 1, classes=2), 2, **ALL)
    assert result.flat()["linear_auroc"] == 1
    one = clouds(20, 1, classes=1)
    assert "linear_auroc" not in judge(clouds(20, 0, classes=2), one, 2, **ALL).flat()


def test_chance_is_the_most_frequent_class_and_one_over_the_classes():
    found = chances(numbers(0, 1, 1), numbers(0, 0, 0, 1, 2))
    assert found == {"accuracy": 1 / 5, "balanced_accuracy": 1 / 3, "auroc": 0.5}


def test_features_that_say_nothing_reach_chance_exactly():
    train, test = clouds(30, 0), clouds(30, 1)
    train.features[:], test.features[:] = 1.0, 1.0
    result = judge(train, test, 3, **ALL)
    chance = chances(train.classes, test.classes)
    assert result.figures["linear"] == pytest.approx(
        {name: chance[name] for name in ("accuracy", "balanced_accuracy")}
    )


def test_figures_of_a_line_stand_beside_the_untrained_and_chance():
    result = judge(clouds(30, 0), clouds(30, 1), 3, **ALL)
    line = with_chance(result, {"linear_accuracy": 0.5}, chances(numbers(0, 1), numbers(0, 1)))
    assert line["linear_accuracy"] == 1
    assert line["untrained_linear_accuracy"] == 0.5
    assert line["balanced_accuracy_chance"] == 0.5
    assert "auroc_chance" not in line
