"""One look for all drawings, and the two ways out: PNG files and SVG for a page.

Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

import io
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from voco.data.store import write_atomically

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PINK, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"

SERIES = (BLUE, ORANGE, GREEN, RED, PINK, SKY)
"""Colours of lines and dots, in order."""

INK, MUTED, RULE = "#1b1f24", "#6a737d", "#d8dde3"
"""Text and axes, second-rank text, grid lines."""

_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    PINK: "pink",
    SKY: "sky",
}

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 130,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, not known to pyplot; width and height in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def styled() -> Any:  # noqa: ANN401 (a private class of contextlib)
    """A block in which everything is drawn in the one style."""
    return rc_context(STYLE)


def save_png(figure: Figure, file: Path) -> None:
    """Write a PNG, whole or not at all; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    write_atomically(file, stream.getvalue())


def to_svg(figure: Figure, words: str) -> str:
    """The figure as an SVG element for a page.

    Its colours are CSS variables (``--ink``, ``--blue``, ...) that fall back to those of the
    style, so a page may set them for a dark background. It takes the width that it is given.

    Args:
        figure: The figure.
        words: What is seen, for those who cannot see it.
    """
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": words}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(words)}"', 1)


def _attribute(words: str) -> str:
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        words = words.replace(sign, entity)
    return words
