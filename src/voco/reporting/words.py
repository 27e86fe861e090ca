"""Numbers in words, and what came out in a sentence that claims no more than was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from voco.evaluation.standing import LOWER_IS_BETTER

Number = float | int
"""JSON tells them apart, a reader does not."""

METRICS = {
    "dice": "Dice",
    "nsd": "NSD",
    "hd95": "HD95",
    "accuracy": "accuracy",
    "correct": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "f1": "F1",
}
"""Metrics as they are written in a sentence."""

PROBES = {"linear": "linear probe", "neighbours": "vote of nearest neighbours"}
"""Probes as they are written in a sentence."""

FROM_SCRATCH = ("scratch", "none", "random")
"""How the name of a second method ends that means: without pre-training."""


def primary(entries: Mapping[str, Any]) -> str | None:
    """The metric that a sentence is about: Dice, else AUROC, else whatever is there."""
    known = [name for name in ("dice", "auroc", *entries) if name in entries]
    return next((name for name in known if _value(entries[name]) is not None), None)


def outcome(comparison: Mapping[str, Any]) -> list[str]:
    """What a paired comparison shows, as sentences: the verdict, then the figures."""
    metric = primary(comparison["mean"])
    if metric is None:
        return ["Nothing can be compared: no case has a finite value from both."]
    entry, (first, second) = comparison["mean"][metric], comparison["names"]
    low, high = entry["interval"]
    cases = count(entry["cases"], "case")
    figures = (
        f"Mean {METRICS.get(metric, metric)} {value(entry['first'])} with {first} and "
        f"{value(entry['second'])} with {second} on the same {cases}: "
        f"a difference of {signed(entry['difference'])}"
    )
    if low is None:
        return [f"{figures}. One case shows nothing about others."]
    figures += f", 95 % interval {signed(low)} to {signed(high)}"
    if entry.get("permutation_p") is not None:
        figures += f", sign-flip test {p_equals(entry['permutation_p'])}"
    better, worse = (low > 0, high < 0)
    if metric in LOWER_IS_BETTER:
        better, worse = worse, better
    # A bootstrap over few cases is too narrow; the exact test is not fooled.
    doubtful = entry.get("permutation_p") is not None and entry["permutation_p"] > 0.05
    verdict = _verdict(first, second, better=better, worse=worse)
    if doubtful and (better or worse):
        verdict += f" But {cases} are too few to be sure."
    return [verdict, f"{figures}."]


def _verdict(first: str, second: str, *, better: bool, worse: bool) -> str:
    unclear = "the interval of the difference includes zero."
    if second.lower().endswith(FROM_SCRATCH):
        if better:
            return "Pre-training helped here."
        return (
            "Pre-training did harm here: training from scratch did better."
            if worse
            else f"Pre-training did not measurably help here: {unclear}"
        )
    if better or worse:
        winner, loser = (first, second) if better else (second, first)
        return f"{winner} did better than {loser} here."
    return f"{first} and {second} cannot be told apart here: {unclear}"


def measured(summary: Mapping[str, Any]) -> str:
    """What an evaluation shows, as a sentence."""
    metric = primary(summary.get("mean", {}))
    if metric is None:
        return "No metric is defined on these cases."
    entry = summary["mean"][metric]
    over = "mean over structures, then over" if summary.get("task") == "segmentation" else "over"
    return (
        f"{METRICS.get(metric, metric)} {estimate(entry)} "
        f"({over} {count(entry['cases'], 'case')}; brackets: 95 % bootstrap interval)."
    )


def accuracy_against_chance(health: Mapping[str, Number], where: str) -> list[str]:
    """For every accuracy with a known chance level, how it compares."""
    sentences = []
    for name, right in health.items():
        stem = name.removesuffix("_accuracy")
        chance = health.get(f"{stem}_chance")
        if stem == name or chance is None:
            continue
        judged = "" if right > 1.25 * chance else ": hardly better than chance"
        judged = ": no better than chance" if right <= chance else judged
        sentences.append(
            f"At the end the {stem.replace('_', ' ')} is right in {percent(right)} of {where}; "
            f"chance is {percent(chance)}{judged}."
        )
    return sentences


def probed(figures: Mapping[str, Number]) -> list[str]:
    """For every probe, its balanced accuracy against the untrained network's and chance."""
    chance = figures.get("balanced_accuracy_chance")
    sentences = []
    for name, called in PROBES.items():
        ours = figures.get(f"{name}_balanced_accuracy")
        theirs = figures.get(f"untrained_{name}_balanced_accuracy")
        if ours is None or theirs is None or chance is None:
            continue
        judged = ": no better than without training" if ours <= theirs else ""
        sentences.append(
            f"At the end a {called} on frozen features has a balanced accuracy of {value(ours)}; "
            f"on those of the untrained network it has {value(theirs)}, chance is "
            f"{value(chance)}{judged}."
        )
    return sentences


def estimate(entry: Mapping[str, Any], *, unit: bool = True) -> str:
    """A mean, with its unit where that is not said elsewhere, and its interval in brackets."""
    low, high = entry["interval"]
    interval = "" if low is None else f" [{value(low)}, {value(high)}]"
    said = f" {entry['unit']}" if unit and entry.get("unit") else ""
    return f"{value(entry['mean'])}{said}{interval}"


def difference(entry: Mapping[str, Any]) -> str:
    """A difference with its interval in brackets."""
    low, high = entry["interval"]
    interval = "" if low is None else f" [{signed(low)}, {signed(high)}]"
    return f"{signed(entry['difference'])}{interval}"


def value(number: Number | None) -> str:
    """Three digits after the point below 10, one above; a dash for what is not defined."""
    if number is None or not math.isfinite(number):
        return "–"
    return f"{number:.3f}" if abs(number) < 10 else f"{number:.1f}"


def signed(number: Number | None) -> str:
    """The same with its sign, and a true minus."""
    text = value(number)
    if number is None or text == "–":
        return text
    if float(text) == 0:
        return text.removeprefix("-")
    return f"+{text}" if number >= 0 else text.replace("-", "−")


def percent(share: Number) -> str:
    """A share as per cent."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def p_equals(p: Number) -> str:
    """A p value in a sentence."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def p_value(p: Number | None) -> str:
    """A p value with two digits that count."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number: int, thing: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def duration(seconds: Number) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count_bytes: Number) -> str:
    """Bytes as GB or MB."""
    return f"{count_bytes / 1e9:.1f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.0f} MB"


def listed(values: Sequence[Any]) -> str:
    """``a, b, c``; the first few of many."""
    words = [str(value) for value in values]
    more = f", … ({len(words)} in all)" if len(words) > 8 else ""
    return ", ".join(words[:8]) + more


def plain(name: str) -> str:
    """A name as a reader sees it: blanks for underscores."""
    return name.replace("_", " ")


def _value(entry: Mapping[str, Any]) -> Number | None:
    return entry.get("mean", entry.get("difference"))
