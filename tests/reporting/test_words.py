import math

import pytest

from voco.reporting import words


def comparison(low, high, *, names=("VoCo", "scratch"), p=0.01, cases=12, metric="dice"):
    middle = (low + high) / 2
    entry = {
        "cases": cases,
        "first": 0.7 + middle,
        "second": 0.7,
        "difference": middle,
        "interval": [low, high],
        "permutation_p": p,
    }
    return {"names": list(names), "mean": {metric: entry}}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.02, 0.08, "Pre-training helped here."),
        (-0.02, 0.08, "Pre-training did not measurably help here"),
        (-0.08, -0.02, "Pre-training did harm here"),
    ],
)
def test_the_verdict_on_pretraining_follows_the_interval(low, high, verdict):
    assert words.outcome(comparison(low, high))[0].startswith(verdict)


def test_few_cases_do_not_convince():
    verdict = words.outcome(comparison(0.02, 0.08, p=0.06, cases=5))[0]
    assert verdict.endswith("But 5 cases are too few to be sure.")


def test_a_folder_of_masks_from_scratch_is_known_by_its_name():
    verdict = words.outcome(comparison(0.02, 0.08, names=("masks-voco", "masks-scratch")))[0]
    assert verdict == "Pre-training helped here."


def test_of_distances_the_smaller_is_better():
    verdict = words.outcome(comparison(-3.0, -1.0, metric="hd95"))[0]
    assert verdict == "Pre-training helped here."


def test_two_methods_are_called_by_their_names():
    assert words.outcome(comparison(0.01, 0.02, names=("MAE", "VoCo")))[0].startswith("MAE did")
    assert words.outcome(comparison(-0.02, -0.01, names=("MAE", "VoCo")))[0].startswith("VoCo did")
    assert "cannot be told apart" in words.outcome(comparison(-1, 1, names=("MAE", "VoCo")))[0]


def test_the_figures_are_said_with_interval_and_test():
    figures = words.outcome(comparison(0.02, 0.08, p=0.0001))[1]
    assert "0.750 with VoCo and 0.700 with scratch on the same 12 cases" in figures
    assert "+0.050, 95 % interval +0.020 to +0.080, sign-flip test p < 0.001" in figures


def test_one_case_and_no_case_show_nothing():
    one = comparison(0.0, 0.1, cases=1)
    one["mean"]["dice"]["interval"] = [None, None]
    assert "shows nothing about others" in words.outcome(one)[0]
    one["mean"]["dice"]["difference"] = None
    assert words.outcome(one)[0].startswith("Nothing can be compared")


def test_an_accuracy_near_chance_is_called_so():
    health = {"position_accuracy": 0.13, "position_chance": 0.12, "effective_rank": 9.0}
    assert "hardly better than chance" in words.accuracy_against_chance(health, "crops")[0]
    health["position_accuracy"] = 0.0
    assert "no better than chance" in words.accuracy_against_chance(health, "crops")[0]
    health["position_accuracy"] = 0.5
    (sentence,) = words.accuracy_against_chance(health, "the held-out crops")
    assert sentence == (
        "At the end the position is right in 50 % of the held-out crops; chance is 12 %."
    )


def test_numbers_are_short_and_undefined_ones_a_dash():
    assert words.value(0.12345) == "0.123"
    assert words.value(12.345) == "12.3"
    assert words.value(None) == words.value(math.inf) == "–"
    assert words.signed(-0.5) == "−0.500"
    assert words.signed(-0.0001) == words.signed(0.0) == "0.000"
    assert words.duration(90) == "90 s"
    assert words.duration(600) == "10 min"
    assert words.duration(3 * 3600) == "3 h 00 min"
    assert words.size(1.5e9) == "1.5 GB"


def test_a_probe_is_told_beside_the_untrained_network_and_chance():
    figures = {"balanced_accuracy_chance": 1 / 3}
    for name, ours in (("linear", 0.9), ("neighbours", 0.5)):
        figures |= {f"{name}_balanced_accuracy": ours, f"untrained_{name}_balanced_accuracy": 0.5}
    linear, neighbours = words.probed(figures)
    assert "linear probe on frozen features has a balanced accuracy of 0.900" in linear
    assert linear.endswith("untrained network it has 0.500, chance is 0.333.")
    assert neighbours.endswith("chance is 0.333: no better than without training.")
    assert words.probed({"linear_balanced_accuracy": 0.9}) == []
