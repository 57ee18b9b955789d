"""Steps to a level and last distances, of some runs over others."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from lipbook.notebook.curves import LEVEL, fell_back, quotients, steps_to


@pytest.mark.parametrize(
    ("distances", "level", "expected"),
    [
        ((8, 4, 2), 4, 100),
        ((8, 4, 2), math.sqrt(32), math.sqrt(1000)),  # half way between logarithms
        ((8, 4, 2), 2, 1000),
        ((8, 4, 2), 1, 1000),  # never
        ((8, 4, 2), 9, 10),  # from the first
        ((8, 2, 6), 2, 100),  # a later rise does not count
        ((8, 2, 6), 4, math.sqrt(1000)),
        ((8, 4, 4), 4, 100),  # the first of equals
    ],
)
def test_steps_to_a_distance(distances, level, expected):
    runs = pd.DataFrame([distances, (1, 1, 1)], index=["run", "other"], columns=[10, 100, 1000])
    found = steps_to(runs, level)
    assert found.index.tolist() == ["run", "other"]
    assert found["run"] == pytest.approx(expected)
    assert steps_to(runs, 0.5)["other"] == pytest.approx(1000)


def test_runs_are_compared_seed_by_seed_by_the_steps_to_one_distance():
    steps = [10, 100, 1000]
    ours = pd.DataFrame([(8, 4, 2), (8, 2, 2)], index=[3, 5], columns=steps)
    others = pd.DataFrame([(9, 9, 9), (8, 4, 3.2), (8, 8, 3.2)], index=[1, 3, 5], columns=steps)
    ratio, last = quotients(ours, others)  # 1.25 · 3.2 = 4
    assert ratio.index.tolist() == last.index.tolist() == [3, 5]
    assert ratio[3] == pytest.approx(1)
    assert ratio[5] == pytest.approx(10**1.5 / 10 ** (2 + math.log(2) / math.log(2.5)))
    assert last.tolist() == pytest.approx([2 / 3.2] * 2)
    swapped, _ = quotients(others, ours)
    assert (ratio * swapped).tolist() == pytest.approx([1, 1])


def test_a_run_that_goes_up_again_is_there_for_good_later():
    steps = [10, 100, 1000, 10000]
    runs = pd.DataFrame([(8, 2, 8, 2), (8, 2, 2, 2), (8, 2, 1, 8)], columns=steps)
    first, last = (steps_to(runs, 4, for_good=for_good) for for_good in (False, True))
    assert first.tolist() == pytest.approx([10**1.5] * 3)
    assert last.tolist() == pytest.approx([10**3.5, 10**1.5, 10**4])
    found = quotients(runs.iloc[:1], runs.iloc[1:2].set_axis([0]), 2, for_good=True)
    assert found.steps.tolist() == pytest.approx([100])


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((8, 4, 2), False),
        ((8, 4, 4 * LEVEL), False),  # at the level is not beyond it
        ((8, 4, 4 * LEVEL + 0.01), True),
        ((8, 4, 9, 4), False),  # back again in time
        ((4, 8), True),
    ],
)
def test_a_run_fell_back_if_it_ends_far_beyond_its_nearest(distances, expected):
    runs = pd.DataFrame([distances, [1.0] * len(distances)], index=[3, 7])
    assert fell_back(runs).to_dict() == {3: expected, 7: False}
