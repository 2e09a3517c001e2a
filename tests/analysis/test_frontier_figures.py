"""The frontier's figures, drawn from frames made by hand."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from pudica.analysis.attacks.base import GOALS
from pudica.analysis.drawing import plot_style
from pudica.analysis.frontier_figures import NAMES, draw_heat_map, draw_trade_off
from pudica.analysis.frontiers import of_all_releases, order_attacks

TABLE = pd.DataFrame(
    {
        "run": ["a", "a", "b"],
        "system": ["split", "split", "dlmt"],
        "case": ["plain", "noise", "plain"],
        "accuracy": [97.0, 90.0, 96.0],
        "accuracy_ci": [0.5, math.nan, 1.0],
        "image": [99.0, 20.0, math.nan],
        "image_ci": [1.0, 2.0, math.nan],
        "image_chance": [0.1, 0.1, math.nan],
        "bytes_per_image": [1e3, 1e5, 1e4],
    }
)
CELLS = pd.DataFrame(
    [
        ("a", "split", "plain", "matching", "image", 1.0, 80.0, 0.1, "", ""),
        ("a", "split", "plain", "matching", "image", 8.0, 99.0, 0.1, "", ""),
        ("a", "split", "plain", "labels", "attribute", 8.0, 95.0, 10.0, "", ""),
        ("a", "split", "noise", "matching", "image", 8.0, 0.1, 0.1, "", ""),
        ("a", "split", "noise", "labels", "attribute", math.nan, math.nan, math.nan, "", "why"),
        ("b", "dlmt", "plain", "known-pairs", "image", 1.0, 100.0, 0.1, "some pairs", ""),
    ],
    columns=[
        *("run", "system", "case", "attack", "goal", "releases", "success", "chance"),
        *("assumes", "reason"),
    ],
)


def test_points_are_where_the_frame_has_them_and_as_large_as_traffic() -> None:
    with plot_style():
        figure = draw_trade_off(TABLE, "image")
    assert figure is not None
    (axes,) = figure.axes
    points = [each for each in axes.collections if isinstance(each, PathCollection)]
    drawn = [point for point in points if len(point.get_offsets())]
    places = np.concatenate([np.asarray(point.get_offsets()) for point in drawn])
    assert places.tolist() == [[99.0, 97.0], [20.0, 90.0]]
    sizes = [float(point.get_sizes()[0]) for point in drawn]
    assert sizes[1] > sizes[0]
    texts = {text.get_text() for text in axes.texts}
    assert {"split: plain", "noise"} <= texts


def test_nothing_is_drawn_of_what_nobody_measured() -> None:
    assert draw_trade_off(TABLE.assign(image=math.nan), "image") is None
    assert draw_heat_map(CELLS.assign(success=math.nan)) is None


def test_cells_say_what_was_measured_of_all_releases() -> None:
    with plot_style():
        figure = draw_heat_map(CELLS)
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("matching", "known-pairs *", "labels")
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["split: plain", "noise", "dlmt: plain"]
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert texts["99"] == (0, 0)
    assert texts["0.1"] == (0, 1)
    assert texts["100"] == (1, 2)
    assert "80" not in texts
    image = np.ma.asarray(axes.images[0].get_array())
    assert image[0, 0] > 0.98
    assert image[1, 0] == pytest.approx(0, abs=1e-6)
    assert image.mask[1, 2]


def test_every_goal_has_words_and_a_place() -> None:
    assert set(NAMES) == set(GOALS)
    assert [goal for goal, _ in order_attacks(CELLS)] == ["image", "image", "attribute"]


def test_of_several_numbers_of_releases_the_most_counts() -> None:
    found = of_all_releases(CELLS)
    one = found[(found["case"] == "plain") & (found["attack"] == "matching")]
    assert list(one["success"]) == [99.0]


def test_drawing_leaves_the_callers_style_alone() -> None:
    before = mpl.rcParams["font.size"]
    with plot_style():
        draw_heat_map(CELLS)
    assert mpl.rcParams["font.size"] == before
