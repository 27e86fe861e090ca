"""Scans with reference and prediction, in three planes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from voco.data.preprocess import to_ras
from voco.figures.style import INK, MUTED, SERIES, YELLOW, new_figure, save_png, styled
from voco.volume import Volume

_CT_WINDOW = (-160.0, 240.0)
"""HU that are black and white: soft tissue."""

_COLORS = (
    *SERIES,
    YELLOW,
    "#9467bd",
    "#8c564b",
    "#17becf",
    "#bcbd22",
    "#ff9896",
    "#c5b0d5",
    "#e7298a",
    "#a6d854",
    "#8da0cb",
)

_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))

_CORNERS = {2: ("R", "L"), 1: ("R", "L"), 0: ("A", "P")}
"""Patient's side at the left and at the right edge of each picture, by the axis cut across."""


class Overlay(NamedTuple):
    """One scan to draw.

    Attributes:
        title: Above its pictures.
        image: The scan; its first channel is drawn.
        reference: True class numbers on the scan's grid, drawn as lines.
        prediction: Predicted class numbers on the scan's grid, drawn as tinted areas.
    """

    title: str
    image: Volume
    reference: Volume | None = None
    prediction: Volume | None = None


def draw_overlay(
    image: Volume,
    reference: Volume | None,
    prediction: Volume | None,
    classes: Mapping[int, str],
    file: Path,
    title: str = "",
) -> None:
    """Draw one scan in three planes into a PNG file; see :func:`draw_overlays`."""
    draw_overlays([Overlay(title, image, reference, prediction)], classes, file)


def draw_overlays(overlays: Sequence[Overlay], classes: Mapping[int, str], file: Path) -> None:
    """Draw scans, one per row, axial, coronal and sagittal, into a PNG file.

    Each slice is the one that meets most structures. The patient's right is at the left, as
    radiologists look at it.

    Args:
        overlays: The scans.
        classes: Class numbers and names, for the legend; numbers that occur are drawn even if
            they have no name.
        file: The PNG file.
    """
    with styled():
        height = 3.1 * len(overlays) + 0.55
        figure = new_figure(9.6, height)
        grid = figure.subplots(len(overlays), len(_PLANES), squeeze=False)
        seen: set[int] = set()
        for row, overlay in zip(grid, overlays, strict=True):
            seen |= _draw_row(list(row), overlay)
        _add_legend(figure, sorted(seen), classes, overlays)
        save_png(figure, file)


def _draw_row(row: Sequence[Axes], overlay: Overlay) -> set[int]:
    image = to_ras(overlay.image)
    maps = [to_ras(m).array[0] if m else None for m in (overlay.reference, overlay.prediction)]
    guide = next((m for m in maps if m is not None and m.any()), None)
    low, high = _window(image.array[0])
    for axes, (plane, axis) in zip(row, _PLANES, strict=True):
        index = _best_slice(guide, axis) if guide is not None else image.grid.shape[axis] // 2
        sides = [side for other, side in enumerate(image.grid.spacing_mm) if other != axis]
        picture = _slice(image.array[0], axis, index).astype(float)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=sides[1] / sides[0])
        _draw_labels(axes, *(None if m is None else _slice(m, axis, index) for m in maps))
        _finish(axes, plane, axis)
    row[0].set_title(overlay.title, fontsize=10, color=INK)
    return {int(value) for m in maps if m is not None for value in np.unique(m)} - {0}


def _draw_labels(
    axes: Axes,
    reference: Integer[np.ndarray, "h w"] | None,
    prediction: Integer[np.ndarray, "h w"] | None,
) -> None:
    if prediction is not None:
        tint = np.zeros((*prediction.shape, 4))
        for value in np.unique(prediction[prediction > 0]):
            tint[prediction == value] = (*to_rgb(_color(int(value))), 0.5)
        axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")
    if reference is not None:
        for value in np.unique(reference[reference > 0]):
            _outline(axes, reference == value, _color(int(value)))


def _outline(axes: Axes, mask: np.ndarray, color: str) -> None:
    # A rim of zeros closes the line where a structure touches the edge of the scan.
    rim = np.pad(mask, 1).astype(float)
    across, down = np.arange(rim.shape[1]) - 1, np.arange(rim.shape[0]) - 1
    axes.contour(across, down, rim, levels=[0.5], colors=[color], linewidths=1.3)


def _finish(axes: Axes, plane: str, axis: int) -> None:
    axes.set(xticks=[], yticks=[], facecolor="black", adjustable="datalim")
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    left, right = _CORNERS[axis]
    mark = {"transform": axes.transAxes, "color": "white", "fontsize": 8, "va": "top"}
    axes.text(0.02, 0.98, left, **mark)
    axes.text(0.98, 0.98, right, ha="right", **mark)
    axes.text(0.5, 0.98, plane, ha="center", alpha=0.8, **mark)


def _add_legend(
    figure: Figure, seen: list[int], classes: Mapping[int, str], overlays: Sequence[Overlay]
) -> None:
    handles: list[Line2D | Patch] = [
        Patch(color=_color(value), label=_name(classes.get(value, f"class {value}")))
        for value in seen
    ]
    if any(overlay.reference for overlay in overlays):
        handles.append(Line2D([], [], color=MUTED, label="line: reference"))
    if any(overlay.prediction for overlay in overlays):
        handles.append(Patch(color=MUTED, alpha=0.5, label="area: prediction"))
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=min(7, len(handles)))


def _slice(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of a RAS array as a picture: rows downwards, patient's right at the left."""
    picture = np.take(array, index, axis=axis).T[::-1]
    # x runs to the patient's right, so the picture is mirrored; y runs to the front likewise.
    return picture[:, ::-1]


def _best_slice(labels: Integer[np.ndarray, "x y z"], axis: int) -> int:
    """The slice that meets most structures, and among those most of their voxels."""
    planes = np.moveaxis(labels, axis, 0)
    structures = [len(np.unique(plane)) for plane in planes]
    voxels = (planes > 0).sum(axis=(1, 2))
    return int(np.lexsort((voxels, structures))[-1])


def _window(
    image: Float[np.ndarray, "x y z"] | Integer[np.ndarray, "x y z"],
) -> tuple[float, float]:
    if image.min() < -500:  # air in HU: a CT
        return _CT_WINDOW
    low, high = np.percentile(image, [0.5, 99.5])
    return (float(low), float(max(high, low + 1e-6)))


def _name(structure: str) -> str:
    return structure.replace("_", " ")


def _color(value: int) -> str:
    return _COLORS[(value - 1) % len(_COLORS)]
