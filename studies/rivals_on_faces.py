"""Chapter 6's study of SP5 on faces, as far as two processor cores reach.

`rivals` plans drawn faces at 32×32 too, in runs that want a GPU. These are the two of its blocks
that matter most, the Wasserstein loss with five critic steps and the hinge loss with one, small
enough for a laptop: networks of half the width, batches of 32 and half the steps. What "fewer
steps" and "ends better" mean is said in `rivals`, and stood in the catalogue long before.

The search has three rounds. That of `rivals` had one, of runs a tenth as long as the tests, and
every method took the largest step sizes there. Here every method has three strengths times five
pairs of step sizes on four seeds, a twentieth of the steps long; its three best are trained again,
three tenths long, and then what lies beyond the edge, if the best lies at one (`studies._search`).
The best of all is trained on five other seeds.

The block of the Wasserstein loss was measured first, when there was no third round. The tests of
the settings that two rounds had chosen stay in the table as *earlier test*.

Cost, from forty cycles of each method on one core: 0.06 to 0.10 s a cycle with five critic steps,
0.02 to 0.03 s with one. Of the first block, 2.8 core-hours were spent before there was a third
round; that takes 48 runs × 600 cycles, and 15 tests where it finds better settings: 1.3 core-hours.
Of the second, 180 probes × 200 cycles, 84 runs × 1,200 and 15 tests × 4,000: 1.4 core-hours. R1,
which no criterion names, comes last.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import pandas as pd

from studies._pictures import numbers
from studies._search import Block, Cell, Search, probes

#: Loss and critic steps. The first to be measured stands last: what is new comes first.
SCHEDULES: tuple[Block, ...] = (("hinge", 1), ("wasserstein", 5))
#: Generator steps of a run, by the critic steps for each and by its part.
STEPS = {
    1: {"probe": 200, "tuning": 1200, "wider": 1200, "test": 4000},
    5: {"probe": 100, "tuning": 600, "wider": 600, "test": 2000},
}
SEARCH = Search("faces 32", 8, 64, 32, STEPS, (0, 1, 2, 3, 4))

#: How far the logarithm of a distance may be off on another machine, in the row of `beginning`.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step. Of seed 1, at which no
#: run went astray.
PICTURES = tuple(
    ({"part": "test", "seed": 1, "critic_steps": n}, parts["test"]) for n, parts in STEPS.items()
)


#: Trains one generator, and yields what the yardstick says, in a test along the way.
watch = SEARCH.watch


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority: each part of a method begins when the one before has ended."""
    return SEARCH.cells(found, SCHEDULES, tiny=tiny)


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


#: The cells whose beginning is repeated, for `workflow.study.recheck`.
repeatable = probes


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows up to a tenth of a cell."""
    return numbers(islice(watch(**cell), 2))
