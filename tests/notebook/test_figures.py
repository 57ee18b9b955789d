from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from lipbook.notebook import figures
from lipbook.notebook.verdicts import interval

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _as_matplotlib_ships():
    """Leave no figure and no setting behind."""
    with mpl.rc_context():
        yield
    plt.close("all")


def test_the_style_holds_for_later_figures():
    figures.use_style()
    figure, ax = plt.subplots()
    lines = [ax.plot([0, 1])[0] for _ in figures.PALETTE]
    assert [to_hex(line.get_color()).upper() for line in lines] == list(figures.PALETTE.values())
    assert figure.get_dpi() == 110
    assert to_rgb(figure.get_facecolor()) == (1, 1, 1)


@pytest.mark.parametrize("name", [figures.DIVERGING, figures.SEQUENTIAL])
def test_colour_maps_exist(name):
    assert name in mpl.colormaps


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_panels_are_always_an_array(columns, rows):
    figure, axes = figures.panels(columns, rows, size=(2.0, 1.0))
    assert axes.shape == (columns * rows,)
    assert tuple(figure.get_size_inches()) == (2.0 * columns, 1.0 * rows)


def test_a_band_is_the_mean_between_the_extremes():
    _, (ax,) = figures.panels(1)
    figures.band(ax, [0, 1, 2], [[1, 2, 3], [3, 2, 7]], label="loss", linestyle="--")
    (line,) = ax.lines
    assert line.get_label() == "loss"
    assert line.get_linestyle() == "--"
    np.testing.assert_array_equal(line.get_xydata(), [[0, 2], [1, 2], [2, 5]])
    (area,) = ax.collections
    corners = area.get_paths()[0].vertices
    assert corners[:, 1].min() == 1
    assert corners[:, 1].max() == 7
    assert to_rgb(area.get_facecolor()[0]) == to_rgb(line.get_color())


@pytest.mark.parametrize(("middle", "expected"), [("mean", [2.0, 4.0]), ("median", [1.0, 4.0])])
def test_a_training_curve_is_a_geometric_middle_between_the_extremes(middle, expected):
    _, (ax,) = figures.panels(1)
    runs = pd.DataFrame([[1.0, 2.0], [1.0, 4.0], [8.0, 8.0]], columns=[10, 100])
    colour = figures.training_curve(ax, runs, middle=middle, ls="--")
    (line,) = ax.lines
    assert to_hex(line.get_color()) == colour
    assert line.get_linestyle() == "--"
    np.testing.assert_allclose(line.get_xydata(), [[10, expected[0]], [100, expected[1]]])
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1, 8)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_forest_has_a_row_a_label_and_a_bar_a_colour():
    _, (ax,) = figures.panels(1)
    figures.forest(ax, {"digits": [[1.0, 4.0], [2.0, 8.0]], "faces": [[3.0], [9.0]]}, ("C0", "C1"))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["digits", "faces"]
    dots, bar, middle = ax.lines[:3]
    np.testing.assert_allclose(dots.get_xdata(), [1, 4])
    np.testing.assert_allclose(middle.get_xdata(), [2])
    low, high = bar.get_xdata()
    assert low * high == pytest.approx(4)
    assert low < 1 < 4 < high
    # The first label stands above the second, and a dashed line at one.
    assert ax.get_ylim() == (1.5, -0.5)
    assert list(ax.lines[-1].get_xdata()) == [1, 1]


def test_a_forest_draws_the_runs_that_are_named_as_rings():
    _, (ax,) = figures.panels(1)
    rows = {"digits": [[1.0, 4.0, 2.0]], "faces": [[3.0]]}
    figures.forest(ax, rows, hollow={"digits": [[False, True, False]]})
    dots, rings, _, middle = ax.lines[:4]
    np.testing.assert_allclose(dots.get_xdata(), [1, 2])
    np.testing.assert_allclose(rings.get_xdata(), [4])
    assert rings.get_markerfacecolor() == "white"
    assert dots.get_markerfacecolor() == rings.get_color() == middle.get_color()
    np.testing.assert_allclose(middle.get_xdata(), [2])  # a ring counts like a dot


def test_a_forest_of_differences_is_linear():
    _, (ax,) = figures.panels(1)
    figures.forest(ax, {"digits": [[-1.0, 1.0, 3.0]]}, scale="linear")
    _, bar, middle, line = ax.lines
    assert ax.get_xscale() == "linear"
    assert list(line.get_xdata()) == [0, 0]
    assert list(middle.get_xdata()) == [1]
    assert list(bar.get_xdata()) == list(interval([-1.0, 1.0, 3.0]))


def test_the_bars_of_a_row_of_a_forest_do_not_reach_the_next_row():
    _, (ax,) = figures.panels(1)
    figures.forest(ax, {"a": [[1.0, 2.0]] * 3, "b": [[1.0, 2.0]] * 3}, ("C0", "C1", "C2"))
    heights = [line.get_ydata()[0] for line in ax.lines[:-1]]
    assert max(heights[:9]) < min(heights[9:])
    assert min(heights) > -0.5
    assert max(heights) < 1.5


def test_a_band_reads_tensors():
    _, (ax,) = figures.panels(1)
    figures.band(ax, torch.arange(2), torch.tensor([[1.0, 2.0]]), label="one seed")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 2])


@pytest.mark.parametrize("runs", [[1, 2, 3], [[1, 2]], [[[1, 2, 3]]]])
def test_a_band_needs_a_row_a_seed(runs):
    _, (ax,) = figures.panels(1)
    with pytest.raises(ValueError, match=r"runs must have shape \(seeds, 3\), got \("):
        figures.band(ax, [0, 1, 2], runs, label="loss")


TRIANGLE, SQUARE = [(0, 0), (1, 0), (0, 1)], [(1, 0), (2, 0), (2, 1), (1, 1)]


def test_polygons_take_their_colours_from_their_values():
    figure, (ax,) = figures.panels(1)
    figures.polygons(ax, [TRIANGLE, torch.tensor(SQUARE)], [2.0, 5.0], label="slope")
    (drawn,) = ax.collections
    np.testing.assert_array_equal(drawn.get_array(), [2, 5])
    np.testing.assert_array_equal(drawn.get_paths()[1].vertices[:4], SQUARE)
    assert drawn.get_clim() == (2, 5)
    assert [other.get_ylabel() for other in figure.axes if other is not ax] == ["slope"]


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], 3.0])
def test_polygons_and_values_pair_up(values):
    _, (ax,) = figures.panels(1)
    with pytest.raises(ValueError, match="got 2 regions and values of shape"):
        figures.polygons(ax, [TRIANGLE, SQUARE], values, label="slope")
