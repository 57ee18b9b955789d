"""The look of the book's figures, and the few kinds of picture that several chapters draw.

Colours are Okabe and Ito's palette, which readers with any common colour vision tell apart
(Okabe & Ito 2008, *Color Universal Design*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike

from lipbook.notebook.verdicts import interval

#: Okabe and Ito's colours, in the order in which a plot's lines take them.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
    "amber": "#E69F00",
    "yellow": "#F0E442",
    "black": "#000000",
}
#: The colour map for signed values: neutral at zero, equally readable without red and green.
DIVERGING = "PuOr"
#: The colour map for magnitudes.
SEQUENTIAL = "cividis"

_STYLE: Any = {
    "axes.prop_cycle": cycler(color=list(PALETTE.values())),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.6),
    "figure.facecolor": "white",  # readable on the dark theme too
    "grid.alpha": 0.3,
    "image.cmap": SEQUENTIAL,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 110,
    "savefig.facecolor": "white",
}


def use_style() -> None:
    """Draw every later figure of this process in the book's style.

    Examples
    --------
    >>> use_style()
    >>> plt.rcParams["figure.dpi"]
    110.0
    """
    plt.rcParams.update(_STYLE)


def panels(n_columns: int, n_rows: int = 1, *, size: tuple[float, float] = (3.2, 3.0)) -> Any:
    """Return a figure of `n_rows` × `n_columns` axes, each `size` inches, and the axes.

    Returns
    -------
    figure : Figure
    axes : ndarray of Axes
        Always an array, of shape ``(n_rows * n_columns,)``.

    Examples
    --------
    >>> figure, axes = panels(2)
    >>> axes.shape
    (2,)
    >>> plt.close(figure)
    """
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(size[0] * n_columns, size[1] * n_rows), squeeze=False
    )
    return figure, axes.ravel()


def band(ax: Axes, x: ArrayLike, runs: ArrayLike, *, label: str, **line: Any) -> None:
    """Draw the mean of several seeds as a line and their range as a band.

    Parameters
    ----------
    ax : Axes
    x : array_like, shape (n,)
    runs : array_like, shape (seeds, n)
        One row a seed.
    label : str
        For the legend.
    **line
        Passed to :meth:`~matplotlib.axes.Axes.plot`.

    Raises
    ------
    ValueError
        If `runs` is not a row a seed with one value for each `x`.

    Examples
    --------
    >>> figure, axes = panels(1)
    >>> band(axes[0], [0, 1], [[1, 2], [3, 4]], label="loss")
    >>> band(axes[0], [0, 1], [1, 2, 3], label="loss")
    Traceback (most recent call last):
    ValueError: runs must have shape (seeds, 2), got (3,)
    >>> plt.close(figure)
    """
    x, runs = np.asarray(x), np.asarray(runs)
    if runs.ndim != 2 or runs.shape[1] != len(x):
        raise ValueError(f"runs must have shape (seeds, {len(x)}), got {runs.shape}")
    (drawn,) = ax.plot(x, runs.mean(axis=0), label=label, **line)
    ax.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=drawn.get_color(), alpha=0.2, lw=0)


def polygons(ax: Axes, regions: Sequence[ArrayLike], values: ArrayLike, *, label: str) -> None:
    """Colour polygons of the plane by a value each, with a colour bar.

    Parameters
    ----------
    ax : Axes
    regions : sequence of array_like, each of shape (n_vertices, 2)
        The vertices of each polygon, in order.
    values : array_like, shape (len(regions),)
    label : str
        What the colour means, with its unit.

    Raises
    ------
    ValueError
        If there are not as many values as polygons.

    Examples
    --------
    >>> figure, axes = panels(1)
    >>> polygons(axes[0], [[(0, 0), (1, 0), (0, 1)]], [2.0], label="slope")
    >>> polygons(axes[0], [[(0, 0), (1, 0), (0, 1)]], [2.0, 3.0], label="slope")
    Traceback (most recent call last):
    ValueError: regions and values must pair up, got 1 regions and values of shape (2,)
    >>> plt.close(figure)
    """
    values = np.asarray(values)
    if values.shape != (len(regions),):
        raise ValueError(
            "regions and values must pair up, "
            f"got {len(regions)} regions and values of shape {values.shape}"
        )
    drawn = PolyCollection(
        [np.asarray(region) for region in regions], array=values, edgecolor="face"
    )
    ax.add_collection(drawn)
    ax.figure.colorbar(drawn, ax=ax, label=label)
    ax.grid(visible=False)


def training_curve(ax: Axes, runs: pd.DataFrame, *, middle: str = "mean", **line: Any) -> str:
    """Draw a quantity of several trainings against their steps, both on logarithmic axes.

    Parameters
    ----------
    ax : Axes
    runs : DataFrame
        One row a seed, one column a step; positive.
    middle : {"mean", "median"}
        Of the logarithms: the line. The band is the range.
    **line
        Passed to :meth:`~matplotlib.axes.Axes.plot`.

    Returns
    -------
    colour : str
        Of the line, for its label.

    Examples
    --------
    >>> figure, axes = panels(1)
    >>> training_curve(axes[0], pd.DataFrame([[1.0, 0.5], [4.0, 2.0]], columns=[10, 100]))
    '#1f77b4'
    >>> axes[0].lines[0].get_ydata().round(3).tolist()
    [2.0, 1.0]
    >>> plt.close(figure)
    """
    height = np.exp(runs.map(np.log).agg(middle))
    (drawn,) = ax.plot(runs.columns, height, **line)
    colour = to_hex(drawn.get_color())
    ax.fill_between(runs.columns, runs.min(), runs.max(), color=colour, alpha=0.2, lw=0)
    ax.set(xscale="log", yscale="log")
    return colour


def forest(
    ax: Axes,
    found: Mapping[str, Sequence[ArrayLike]],
    colours: Sequence[str] = ("C0",),
    hollow: Mapping[str, Sequence[ArrayLike]] | None = None,
    scale: str = "log",
) -> None:
    """Draw ratios, or differences, as rows: a dot a run, and below them the mean's 95 % interval.

    Parameters
    ----------
    ax : Axes
        Gets a logarithmic axis and a dashed line at 1, or a linear one and a line at 0.
    found : mapping of str to sequence of array_like
        The label of each row, and its ratios, one array a colour.
    colours : sequence of str, default ("C0",)
    hollow : mapping of str to sequence of array_like, optional
        As `found`, true for each run whose dot is to be a ring; a row left out has none.
    scale : {"log", "linear"}
        Of the axis, and of the mean: the geometric one of ratios, that of differences.

    Examples
    --------
    >>> figure, axes = panels(1)
    >>> forest(axes[0], {"faces": [[1.0, 2.0, 4.0]]})
    >>> [label.get_text() for label in axes[0].get_yticklabels()]
    ['faces']
    >>> plt.close(figure)
    """
    for y, (name, group) in enumerate(found.items()):
        apart = 0.88 / len(group)
        rings = (hollow or {}).get(name, [()] * len(group))
        for k, (values, colour, rung) in enumerate(zip(group, colours, rings, strict=True)):
            height = y + apart * (k - (len(group) - 1) / 2)
            _row(ax, height, np.asarray(values), colour, np.asarray(rung, dtype=bool), scale)
    ax.axvline(1 if scale == "log" else 0, color="black", ls="--", lw=1)
    ax.set(xscale=scale, ylim=(len(found) - 0.5, -0.5))
    ax.set_yticks(range(len(found)), list(found))
    if scale == "log":
        plain_ticks(ax.xaxis)


def _row(
    ax: Axes,
    y: float,
    values: np.ndarray[Any, Any],
    colour: str,
    hollow: np.ndarray[Any, np.dtype[np.bool_]],
    scale: str,
) -> None:
    full = ~hollow if hollow.size else np.ones(len(values), dtype=bool)
    ax.plot(values[full], np.full(full.sum(), y - 0.1), "o", ms=3, color=colour)
    if not full.all():
        ring: Any = {"ms": 4, "mfc": "white", "mew": 1, "color": colour}
        ax.plot(values[~full], np.full((~full).sum(), y - 0.1), "o", **ring)
    mean, bar = np.exp(np.log(values).mean()) if scale == "log" else values.mean(), y + 0.08
    ax.plot(interval(values.tolist(), scale), [bar, bar], lw=3, color=colour)
    ax.plot(mean, bar, "o", ms=7, color=colour)


def plain_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, at 1, 2 and 5 times powers of ten.

    Examples
    --------
    >>> figure, axes = panels(1)
    >>> axes[0].set_yscale("log")
    >>> plain_ticks(axes[0].yaxis)
    >>> axes[0].yaxis.get_major_formatter()(5.0)
    '5'
    >>> plt.close(figure)
    """
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
