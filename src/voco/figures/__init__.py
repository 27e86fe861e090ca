"""Pictures and charts. The only importers of matplotlib; import this package when drawing only."""

from voco.figures.charts import Curve as Curve
from voco.figures.charts import Dots as Dots
from voco.figures.charts import draw_curves as draw_curves
from voco.figures.charts import draw_dots as draw_dots
from voco.figures.charts import draw_pairs as draw_pairs
from voco.figures.overlay import Overlay as Overlay
from voco.figures.overlay import draw_overlay as draw_overlay
from voco.figures.overlay import draw_overlays as draw_overlays
from voco.figures.panels import draw_panels as draw_panels

__all__ = [
    "Curve",
    "Dots",
    "Overlay",
    "draw_curves",
    "draw_dots",
    "draw_overlay",
    "draw_overlays",
    "draw_pairs",
    "draw_panels",
]
