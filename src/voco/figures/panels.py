"""What a pre-training method sees and predicts, as one picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from voco.figures.style import BLUE, INK, MUTED, ORANGE, SERIES, new_figure, save_png, styled
from voco.method import Panel

_SIDE = 1.45
"""Inches of a small panel."""

_LARGE = 5.2
"""Inches of a panel with rectangles."""

Marked = tuple[float, float, float, float, str]
"""A rectangle of a panel: x, y, width, height, text."""


def draw_panels(panels: Sequence[Panel], file: Path, title: str) -> None:
    """Draw the panels of a method into a PNG file.

    A first panel with rectangles is drawn large, the others beside it. Rectangles whose text
    begins with a letter have a colour each, and so have the frames of the panels whose titles
    begin with the same text.

    Args:
        panels: What to draw.
        file: The PNG file.
        title: Above all.
    """
    with styled():
        figure = _figure(list(panels))
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
        save_png(figure, file)


def _figure(panels: list[Panel]) -> Figure:
    large = panels[:1] if panels and panels[0].rectangles else []
    rows = list(_rows(panels[len(large) :]))
    width = max((sum(map(_weight, row)) for row in rows), default=0.0) * _SIDE
    height = 0.4 + max(_SIDE * len(rows), _LARGE if large else 1.0)
    figure = new_figure(max(width + (_LARGE if large else 0), 4.0), height)
    if not large:
        _draw_rows(figure, rows, {}) if rows else None
        return figure
    colors: dict[str, str] = dict(zip(_names(large[0]), SERIES, strict=False))
    if not rows:
        _draw_image(figure.subplots(), large[0], colors)
        return figure
    parts: Any = figure.subfigures(1, 2, width_ratios=[_LARGE, width])
    left, right = parts
    _draw_image(left.subplots(), large[0], colors)
    _draw_rows(right, rows, colors)
    return figure


def _rows(panels: list[Panel]) -> Iterator[tuple[Panel, ...]]:
    """Panels in rows; an image and the bars that belong to it stay together."""
    length = 2 if any(panel.bars for panel in panels) else 6
    for start in range(0, len(panels), length):
        yield tuple(panels[start : start + length])


def _weight(panel: Panel) -> float:
    return 2.9 if panel.bars else 1.0


def _draw_rows(
    figure: Figure | SubFigure, rows: list[tuple[Panel, ...]], colors: dict[str, str]
) -> None:
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(rows), 1), dtype=object))
    longest = max(rows, key=len)
    for part, row in zip(parts, rows, strict=True):
        ratios = [_weight(panel) for panel in longest]
        for axes, panel in zip(
            part.subplots(1, len(longest), width_ratios=ratios, squeeze=False)[0],
            [*row, *[None] * (len(longest) - len(row))],
            strict=True,
        ):
            _draw(axes, panel, colors)


def _draw(axes: Axes, panel: Panel | None, colors: dict[str, str]) -> None:
    if panel is None:
        axes.set_axis_off()
    elif panel.bars:
        _draw_bars(axes, panel)
    else:
        _draw_image(axes, panel, colors)


def _draw_image(axes: Axes, panel: Panel, colors: dict[str, str]) -> None:
    narrow = 60 if panel.rectangles else 20
    axes.set_title(fill(_sentence(panel.title), narrow), fontsize=8.5, color=INK)
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    if panel.image is not None:
        axes.imshow(panel.image.T, origin="lower", cmap="gray", vmin=0, vmax=1)
    for name, color in colors.items():
        if panel.title.startswith(name):
            axes.spines[:].set(visible=True, color=color, linewidth=3)
            return
    axes.spines[:].set_visible(False)
    for rectangle in panel.rectangles:
        _draw_rectangle(axes, rectangle, colors)


def _draw_rectangle(axes: Axes, marked: Marked, colors: dict[str, str]) -> None:
    x, y, width, height, text = marked
    named = text in colors
    color = colors.get(text, "white")
    patch = Rectangle(
        (x - 0.5, y - 0.5),
        width,
        height,
        fill=False,
        edgecolor=color,
        linewidth=2.4 if named else 0.8,
        alpha=1.0 if named else 0.8,
    )
    axes.add_patch(patch)
    if named:
        label = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
        place = {"ha": "left", "va": "top", "color": "black", "bbox": label}
        axes.text(x, y + height - 1, text, fontsize=7.5, **place)
    else:
        axes.text(x + 1, y + 0.5, text, fontsize=7, color="white", alpha=0.9, va="bottom")


def _draw_bars(axes: Axes, panel: Panel) -> None:
    bars = panel.bars or {}
    axes.set_title(_sentence(panel.title), fontsize=8.5, color=INK)
    table = np.array(list(bars.values()), float).reshape(len(bars), -1)
    places = np.arange(len(bars))
    width = 0.8 / max(1, table.shape[1])
    for column, (values, color) in enumerate(zip(table.T, (BLUE, ORANGE, MUTED), strict=False)):
        axes.bar(places + (column + 0.5) * width - 0.4, values, width, color=color)
    axes.set_xmargin(0.01)
    axes.set_xticks(places, list(bars), rotation=90 if len(bars) > 6 else 0, fontsize=7)
    axes.set_ylim(0, max(1.0, float(table.max(initial=0.0))))
    axes.set_yticks([0, 0.5, 1])
    axes.grid(visible=False, axis="x")
    names = _series(panel.title)
    if names:
        axes.legend(names, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=8)


def _series(title: str) -> list[str]:
    """The names of the series, from a title like ``crop 0: true share, predicted similarity``."""
    _, colon, names = title.partition(": ")
    return [name.strip() for name in names.split(",")] if colon else []


def _names(panel: Panel) -> list[str]:
    return [text for *_, text in panel.rectangles if text[:1].isalpha()]


def _sentence(text: str) -> str:
    head, _, _ = text.partition(": ")
    return head[:1].upper() + head[1:]
