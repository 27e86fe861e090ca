"""Charts of numbers, as SVG for a page."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from voco.figures.style import BLUE, INK, MUTED, ORANGE, SERIES, new_figure, styled, to_svg

_MOST_POINTS = 600
"""More do not show; a page of long runs would grow by megabytes."""


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        name: Shown at the line, if there are several.
        steps: Where.
        values: How much; ``nan`` leaves a gap.
        level: Whether it is a level to compare with (chance): dashed, not smoothed.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    level: bool = False


class Dots(NamedTuple):
    """One method in a chart of structures.

    Attributes:
        name: Of the method.
        means: By structure: mean and the two ends of its interval (``nan`` if there is none).
        cases: By structure: the values of the cases, drawn faintly.
    """

    name: str
    means: Mapping[str, tuple[float, float, float]]
    cases: Mapping[str, Sequence[float]]


def draw_curves(curves: Sequence[Curve], title: str, *, unit: str = "", log: bool = False) -> str:
    """A chart of curves over training steps.

    Curves with many points are smoothed (a running median over a twentieth of the points); the
    raw values stay behind them, faint.

    Args:
        curves: What to draw.
        title: Of the chart.
        unit: Of the values.
        log: Whether equal factors take equal room.

    Returns:
        An SVG element.
    """
    with styled():
        figure = new_figure(3.9, 2.4)
        axes: Axes = figure.subplots()
        colors = iter(SERIES)
        for curve in curves:
            _draw_curve(axes, curve, MUTED if curve.level else next(colors))
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.margins(x=0.01)
        if log:
            axes.set_yscale("log")
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=1.4)
        return to_svg(figure, title)


def _draw_curve(axes: Axes, curve: Curve, color: str) -> None:
    if curve.level:
        axes.plot(
            curve.steps, curve.values, color=color, linestyle=(0, (4, 3)), lw=1.2, label=curve.name
        )
        return
    values = np.asarray(curve.values, float)
    if len(values) < 20:
        marker = "o" if len(values) < 8 else ""
        axes.plot(curve.steps, values, color=color, marker=marker, markersize=4, label=curve.name)
        return
    thin = max(1, len(values) // _MOST_POINTS)
    steps = curve.steps[::thin]
    axes.plot(steps, values[::thin], color=color, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smoothed(values)[::thin], color=color, label=curve.name)


def smoothed(values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """A running median over a twentieth of the points, at least 5; shorter at both ends."""
    half = max(2, len(values) // 40)
    reach = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])


def draw_dots(
    methods: Sequence[Dots],
    title: str,
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
) -> str:
    """A chart of structures: a dot for the mean, a line for its interval, faint dots for cases.

    Args:
        methods: One or two.
        title: Of the chart.
        unit: Of the values.
        limits: Ends of the axis.

    Returns:
        An SVG element.
    """
    structures = list(dict.fromkeys(name for method in methods for name in method.means))
    with styled():
        room = 0.16 + 0.12 * len(methods)
        figure = new_figure(7.2, 0.95 + room * len(structures))
        axes: Axes = figure.subplots()
        for number, (method, color) in enumerate(zip(methods, (BLUE, ORANGE), strict=False)):
            shift = 0.0 if len(methods) == 1 else (number - 0.5) * 0.4
            for row, structure in enumerate(structures):
                _draw_dot(axes, method, structure, row + shift, color)
            axes.plot([], [], "o", color=color, label=method.name)
        axes.set_yticks(range(len(structures)), structures, color=INK)
        axes.set_ylim(len(structures) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(unit)
        if limits:
            axes.set_xlim(*limits)
        axes.set_title(title)
        if len(methods) > 1:
            figure.legend(loc="outside upper right", ncols=2)
        return to_svg(figure, title)


def _draw_dot(axes: Axes, method: Dots, structure: str, place: float, color: str) -> None:
    cases = [value for value in method.cases.get(structure, ()) if math.isfinite(value)]
    axes.plot(
        cases, [place] * len(cases), "o", color=color, alpha=0.3, ms=3.5, mew=0, clip_on=False
    )
    mean, low, high = method.means.get(structure, (math.nan,) * 3)
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [place, place], color=color, linewidth=2)
    axes.plot([mean], [place], "o", color=color, markersize=6.5, clip_on=False)


def draw_pairs(
    first: Mapping[str, float], second: Mapping[str, float], names: tuple[str, str], title: str
) -> str:
    """A chart of paired cases: a line per case from the second method to the first.

    Args:
        first: By case: the value of the first method, drawn at the right.
        second: The same of the second, drawn at the left.
        names: Of the first and the second.
        title: Of the chart.

    Returns:
        An SVG element.
    """
    with styled():
        figure = new_figure(7.2, 2.9)
        axes: Axes = figure.subplots()
        shared = [case for case in first if case in second]
        for case in shared:
            pair = [second[case], first[case]]
            color = BLUE if pair[1] >= pair[0] else ORANGE
            axes.plot([0, 1], pair, color=color, alpha=0.55, linewidth=1.2, marker="o", ms=3.5)
        means = [float(np.nanmean([part[c] for c in shared])) for part in (second, first)]
        axes.plot([0, 1], means, color=INK, linewidth=2.6, marker="o", markersize=6)
        for place, mean, side in ((0, means[0], "right"), (1, means[1], "left")):
            offset = (-8 if place == 0 else 8, 0)
            axes.annotate(
                f"{mean:.3f}",
                (place, mean),
                xytext=offset,
                textcoords="offset points",
                ha=side,
                va="center",
                color=INK,
                weight="bold",
            )
        axes.set_xticks([0, 1], [names[1], names[0]], color=INK)
        axes.set_xlim(-0.4, 1.4)
        axes.grid(visible=False, axis="x")
        axes.set_title(title)
        return to_svg(figure, title)
