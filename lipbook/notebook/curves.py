"""Curves of training held against one another: the steps to a level, and where they end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

#: A level of two methods, over the larger of their mean last distances, as claim SP5 counts steps.
LEVEL = 1.25


class Quotients(NamedTuple):
    """Some runs over others, one value a seed: below 1 is fewer steps, or nearer at the end."""

    steps: pd.Series[float]
    last: pd.Series[float]


def quotients(
    runs: pd.DataFrame, others: pd.DataFrame, level: float = LEVEL, *, for_good: bool = False
) -> Quotients:
    """Divide the steps of some runs to a common level by those of others, and their last distances.

    Parameters
    ----------
    runs, others : pandas.DataFrame
        Distances, one row a seed and one column a step, in order. Seeds of which one of them has no
        run are left out.
    level : float
        Of the larger of their two mean last distances, the multiple to come down to.
    for_good : bool
        As for :func:`steps_to`.

    Examples
    --------
    >>> runs = pd.DataFrame([[8.0, 4.0, 1.0]], columns=[1, 10, 100])
    >>> quotients(runs, runs / 2, level=4).last.tolist()
    [2.0]
    """
    seeds = runs.index.intersection(others.index)
    runs, others = runs.loc[seeds], others.loc[seeds]
    ends = runs.iloc[:, -1], others.iloc[:, -1]
    height = level * max(float(end.mean()) for end in ends)
    steps = (steps_to(each, height, for_good=for_good) for each in (runs, others))
    return Quotients(next(steps) / next(steps), ends[0] / ends[1])


def steps_to(runs: pd.DataFrame, level: float, *, for_good: bool = False) -> pd.Series[float]:
    """Return how many steps each run takes to a level, by a line between logarithms.

    A run that never comes down to it counts with the last step, so that a quotient errs towards 1.

    Parameters
    ----------
    runs : pandas.DataFrame
        Distances, one row a run and one column a step, in order.
    level : float
        The distance to come down to.
    for_good : bool
        Count until a run stays below, and not until it is there for the first time.

    Examples
    --------
    >>> runs = pd.DataFrame([[8.0, 2.0, 1.0], [8.0, 0.5, 0.5]], columns=[1, 10, 100])
    >>> steps_to(runs, 1.0).round(2).tolist()
    [100.0, 5.62]
    >>> up_and_down = pd.DataFrame([[4.0, 1.0, 4.0, 1.0]], columns=[1, 10, 100, 1000])
    >>> [steps_to(up_and_down, 2.0, for_good=f).round(2).item() for f in (False, True)]
    [3.16, 316.23]
    """
    back = runs.iloc[:, ::-1]
    falling = back.cummax(axis=1) if for_good else runs.cummin(axis=1).iloc[:, ::-1]
    steps = np.log(falling.columns.to_numpy(float))
    heights = np.log(falling.to_numpy(float))
    found = [np.exp(np.interp(np.log(level), row, steps)) for row in heights]
    return pd.Series(found, runs.index, dtype=float)


def fell_back(runs: pd.DataFrame) -> pd.Series[bool]:
    """Tell which runs end farther off than `LEVEL` times the nearest that they came.

    Parameters
    ----------
    runs : pandas.DataFrame
        Distances, one row a run and one column a step, in order.

    Examples
    --------
    >>> runs = pd.DataFrame([[8.0, 2.0, 1.0], [8.0, 2.0, 2.4], [8.0, 2.0, 2.6]])
    >>> fell_back(runs).tolist()
    [False, False, True]
    """
    return runs.iloc[:, -1] > LEVEL * runs.min(axis=1)
