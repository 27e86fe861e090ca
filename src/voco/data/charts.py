"""Small charts as SVG text: no library, no script, sharp on paper."""

from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from voco.data.store import ChannelStatistics

_WIDTH, _HEIGHT, _FOOT = 300, 84, 18
_WIDE, _TALL, _LEFT = 920, 200, 64


def bars(values: Sequence[float] | np.ndarray, unit: str) -> Markup:
    """A histogram.

    Args:
        values: At least one number.
        unit: Of the values.
    """
    values = np.asarray(values, float)
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(1.0, abs(high)):
        return Markup(f'<p class="same">{_number(low)} {escape(unit)}, all</p>')
    bins = int(np.clip(np.sqrt(len(values)) * 2, 6, 30))
    counts, edges = np.histogram(values, bins)
    step = _WIDTH / bins
    drawn = []
    for place, count in enumerate(counts):
        tall = count / counts.max() * (_HEIGHT - 4)
        title = f"{_number(edges[place])} to {_number(edges[place + 1])} {unit}: {count}"
        drawn.append(
            f'<rect x="{place * step + 0.5:.1f}" y="{_HEIGHT - tall:.1f}" '
            f'width="{step - 1:.1f}" height="{tall:.1f}"><title>{escape(title)}</title></rect>'
        )
    foot = _HEIGHT + _FOOT - 4
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" class="bars">{"".join(drawn)}'
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f'<text x="0" y="{foot}">{_number(low)}</text>'
        f'<text x="{_WIDTH / 2}" y="{foot}" class="middle">median {_number(np.median(values))} '
        f"{escape(unit)}</text>"
        f'<text x="{_WIDTH}" y="{foot}" class="end">{_number(high)}</text></svg>'
    )


def ranges(rows: Sequence[tuple[str, ChannelStatistics]]) -> Markup:
    """For each case a line from its 0.5th to its 99.5th percentile and a dot at its median.

    In the order of their medians. The axis is linear, or logarithmic away from 0 where the cases
    differ by more than a factor of 20.
    """
    rows = sorted(rows, key=lambda row: row[1].percentiles["50"])
    ends = np.array([[facts.percentiles[p] for p in ("0.5", "50", "99.5")] for _, facts in rows])
    tops = np.abs(ends).max(axis=1)
    logarithmic = bool(tops.max() > 20 * np.percentile(tops, 5))
    bend = np.arcsinh if logarithmic else np.asarray
    low, high = float(bend(ends).min()), float(bend(ends).max())
    if high <= low:
        high = low + 1

    def across(value: float) -> float:
        return _TALL - 6 - (float(bend(value)) - low) / (high - low) * (_TALL - 12)

    step = (_WIDE - _LEFT) / len(rows)
    drawn = [_gridline(tick, across(tick)) for tick in _ticks(low, high, logarithmic=logarithmic)]
    radius = min(3, max(1, step / 2))
    for place, ((name, facts), (start, middle, stop)) in enumerate(zip(rows, ends, strict=True)):
        x = _LEFT + (place + 0.5) * step
        title = (
            f"{name}: {_number(start)} to {_number(stop)}, median {_number(middle)}, "
            f"extremes {_number(facts.minimum)} and {_number(facts.maximum)}"
        )
        drawn.append(
            f'<g><title>{escape(title)}</title><line class="range" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{across(start):.1f}" y2="{across(stop):.1f}" '
            f'stroke-width="{min(6, max(1, step * 0.6)):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{across(middle):.1f}" r="{radius:.1f}"/></g>'
        )
    return Markup(f'<svg viewBox="0 0 {_WIDE} {_TALL}" class="ranges">{"".join(drawn)}</svg>')


def _gridline(value: float, y: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{_number(value)}</text>'
    )


def _ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """A few round numbers between two ends (which are bent if the axis is)."""
    if logarithmic:
        powers = [10.0**power for power in range(2, 12, 2)]
        every = [*(-power for power in reversed(powers)), 0.0, *powers]
        return [tick for tick in every if low <= np.arcsinh(tick) <= high]
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 6:
        step *= 2 if (high - low) / step <= 12 else 2.5
    first = int(np.ceil(low / step))
    return [float(place * step) for place in range(first, int(high / step + 1e-9) + 1)]


def _number(value: float | int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
