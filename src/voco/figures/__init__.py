"""Pictures and charts. The only importers of matplotlib; import this package when drawing only."""

from voco.figures.charts import Curve as Curve
from voco.figures.charts import Dots as Dots
from voco.figures.charts import draw_curves as draw_curves
from voco.figures.charts import draw_dots as draw_dots
from voco.figures.charts import draw_pairs as draw_pairs
from voco.figures.comparisons import Interval as Interval
from voco.figures.comparisons import Line as Line
from voco.figures.comparisons import draw_bars as draw_bars
from voco.figures.comparisons import draw_intervals as draw_intervals
from voco.figures.comparisons import draw_lines as draw_lines
from voco.figures.overlay import Overlay as Overlay
from voco.figures.overlay import draw_overlay as draw_overlay
from voco.figures.overlay import draw_overlays as draw_overlays
from voco.figures.panels import draw_panels as draw_panels

__all__ = [
    "Curve",
    "Dots",
    "Interval",
    "Line",
    "Overlay",
    "draw_bars",
    "draw_curves",
    "draw_dots",
    "draw_intervals",
    "draw_lines",
    "draw_overlay",
    "draw_overlays",
    "draw_pairs",
    "draw_panels",
]
