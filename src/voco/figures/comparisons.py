"""Charts of many methods, as SVG for a page."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from voco.figures.style import BLUE, GREEN, INK, MUTED, RED, SERIES, new_figure, styled, to_svg

_COLORS = {"better": GREEN, "worse": RED, "": BLUE, "reference": MUTED}


class Interval(NamedTuple):
    """A dot with its interval.

    Attributes:
        name: Of the row that it is drawn in.
        value: Where the dot is; ``nan`` draws nothing.
        low: Lower end of the interval, ``nan`` if there is none.
        high: Upper end.
        kind: ``better``, ``worse`` or ``reference``, which have colours of their own, or empty.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""


class Line(NamedTuple):
    """A line over numbers of labelled cases.

    Attributes:
        name: Of the line.
        places: Where: numbers of cases.
        values: How much.
        lows: Lower ends of the intervals.
        highs: Upper ends.
        kind: ``reference`` (dashed, dark), ``main`` (coloured, with its intervals) or empty
            (faint, unnamed).
    """

    name: str
    places: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    kind: str = ""


def draw_intervals(
    panels: Sequence[tuple[str, Sequence[Interval]]],
    words: str,
    *,
    unit: str = "",
    zero: float | None = None,
) -> str:
    """Dots with intervals, a row for each name, panels side by side that share the rows.

    Args:
        panels: Title and dots of each; the rows are those of the first, and others after them.
        words: What is seen.
        unit: Of the values.
        zero: Where a line is drawn to compare with.

    Returns:
        An SVG element.
    """
    names = list(dict.fromkeys(dot.name for _, dots in panels for dot in dots))
    with styled():
        figure = new_figure(7.2, 0.85 + 0.21 * len(names))
        grid: Any = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)
        for axes, (title, dots) in zip(grid[0], panels, strict=True):
            _draw_intervals(axes, names, dots, zero)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=max(2, 6 - len(panels))))
            axes.set_title(title)
            axes.set_xlabel(unit)
        return to_svg(figure, words)


def _draw_intervals(
    axes: Axes, names: list[str], dots: Sequence[Interval], zero: float | None
) -> None:
    if zero is not None:
        axes.axvline(zero, color=INK, linewidth=0.9)
    for dot in dots:
        place, color = names.index(dot.name), _COLORS[dot.kind]
        if math.isfinite(dot.low):
            axes.plot([dot.low, dot.high], [place, place], color=color, linewidth=1.8)
        if math.isfinite(dot.value):
            axes.plot([dot.value], [place], "o", color=color, markersize=5)
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def draw_lines(lines: Sequence[Line], title: str, *, unit: str = "") -> str:
    """Lines over numbers of labelled cases, on an axis in which equal factors take equal room.

    Args:
        lines: What to draw; as many ``main`` ones as there are colours.
        title: Of the chart.
        unit: Of the values.

    Returns:
        An SVG element.
    """
    with styled():
        figure = new_figure(7.2, 3.3)
        axes: Axes = figure.subplots()
        colors = iter(SERIES)
        for line in lines:
            _draw_line(axes, line, next(colors, BLUE) if line.kind == "main" else MUTED)
        places = sorted({place for line in lines for place in line.places})
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xlabel("labelled cases")
        axes.set_ylabel(unit)
        axes.set_title(title)
        figure.legend(loc="outside right upper", fontsize=8)
        return to_svg(figure, title)


def _draw_line(axes: Axes, line: Line, color: str) -> None:
    if line.kind == "":
        axes.plot(line.places, line.values, color=color, alpha=0.35, linewidth=1.0)
        return
    if line.kind == "reference":
        look: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1.8}
    else:
        look = {"color": color, "marker": "o", "markersize": 4}
        axes.fill_between(line.places, line.lows, line.highs, color=color, alpha=0.12, linewidth=0)
    axes.plot(line.places, line.values, label=line.name, **look)


def draw_bars(
    names: Sequence[str], panels: Sequence[tuple[str, Sequence[float]]], words: str
) -> str:
    """Bars, a row for each name, panels side by side with axes of their own.

    Args:
        names: Of the rows.
        panels: Title (with its unit) and a number for each name; ``nan`` draws nothing.
        words: What is seen.

    Returns:
        An SVG element.
    """
    with styled():
        figure = new_figure(7.2, 0.75 + 0.21 * len(names))
        grid: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, (title, values) in zip(grid[0], panels, strict=True):
            known = [0.0 if math.isnan(value) else value for value in values]
            axes.barh(range(len(names)), known, height=0.62, color=BLUE)
            axes.set_yticks(range(len(names)), names, color=INK)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.set_title(title)
        return to_svg(figure, words)
