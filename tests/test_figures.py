import xml.etree.ElementTree as ET

import numpy as np
import pytest

from voco.figures import (
    Curve,
    Dots,
    draw_curves,
    draw_dots,
    draw_overlay,
    draw_pairs,
    draw_panels,
)
from voco.figures.charts import smoothed
from voco.figures.overlay import _best_slice, _slice
from voco.geometry import Grid
from voco.method import Panel
from voco.volume import Volume

SQUARE = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
WINDOW = Panel("window", SQUARE, ((0.0, 0.0, 3.0, 3.0, "0 0"), (1.0, 1.0, 3.0, 3.0, "crop 0")))
BARS = Panel("crop 0: true, predicted", bars={"0 0": (0.2, 0.4), "0 1": (0.8, 0.1)})


def is_png(file):
    return file.read_bytes().startswith(b"\x89PNG")


def volume(array, spacing=(1.0, 2.0, 3.0)):
    return Volume(array[None], Grid(array.shape, np.diag([*spacing, 1.0])))


@pytest.mark.parametrize(
    "panels", [[WINDOW, Panel("crop 0 seen", SQUARE), BARS], [WINDOW], [BARS], [WINDOW] * 8, []]
)
def test_any_panels_become_one_picture(tmp_path, panels):
    draw_panels(panels, tmp_path / "method.png", "What it sees")
    assert is_png(tmp_path / "method.png")
    assert [file.name for file in tmp_path.iterdir()] == ["method.png"]


def test_the_same_panels_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_panels([WINDOW, BARS], tmp_path / name, "What it sees")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("low", [-1000, 0])
def test_a_scan_is_drawn_with_any_combination_of_labels(tmp_path, low):
    image = np.random.default_rng(0).integers(low, 1000, (8, 7, 6)).astype(np.int16)
    labels = np.zeros((8, 7, 6), np.uint8)
    labels[2:5, 2:5, 2:5] = 3
    for reference in (None, volume(labels)):
        for prediction in (None, volume(np.zeros_like(labels)), volume(labels)):
            file = tmp_path / "overlay.png"
            draw_overlay(volume(image), reference, prediction, {3: "left_lobe"}, file, "a case")
            assert is_png(file)


def test_the_patients_right_is_at_the_left_and_the_front_at_the_top():
    labels = np.zeros((4, 5, 6), np.uint8)  # axes towards right, front, head
    labels[-1, -1, -1] = 1
    assert _slice(labels, 2, 5)[0, 0] == 1  # axial: right and front
    assert _slice(labels, 1, 4)[0, 0] == 1  # coronal: right and head
    assert _slice(labels, 0, 3)[0, 0] == 1  # sagittal: front and head


def test_the_slice_that_meets_most_structures_is_shown():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1] = 1
    labels[2, 0, 0], labels[2, 1, 1] = 1, 2
    assert _best_slice(labels, 0) == 2


def test_smoothing_follows_the_trend_and_ignores_spikes():
    trend = np.linspace(1, 0, 200)
    spiked = trend.copy()
    spiked[::25] += 5
    assert np.abs(smoothed(spiked) - trend)[5:-5].max() < 0.03


def test_charts_are_svg_elements_that_need_nothing_from_elsewhere():
    steps = list(range(50))
    charts = [
        draw_curves([Curve("loss", steps, np.exp(-np.arange(50) / 9).tolist())], "loss", log=True),
        draw_curves(
            [
                Curve("accuracy", [1, 2], [0.1, float("nan")]),
                Curve("chance", [1, 2], [0.1] * 2, True),
            ],
            "accuracy <of all>",
        ),
        draw_dots(
            [
                Dots("VoCo", {"liver": (0.8, 0.7, 0.9)}, {"liver": [0.7, 0.9]}),
                Dots("scratch", {"liver": (0.7, float("nan"), float("nan"))}, {}),
            ],
            "Dice",
            limits=(0.0, 1.0),
        ),
        draw_pairs({"a": 0.8, "b": 0.6}, {"a": 0.7, "b": 0.7}, ("VoCo", "scratch"), "Dice"),
    ]
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert "var(--ink" in chart


def test_names_and_chance_are_written_into_the_chart():
    chart = draw_curves(
        [Curve("accuracy", [1, 2], [0.1, 0.2]), Curve("chance", [1, 2], [0.1, 0.1], True)], "health"
    )
    assert ">chance<" in chart
    assert ">accuracy<" in chart
