"""Chapter 6's study of SP5 on faces, as far as two processor cores reach.

`rivals` plans drawn faces at 32×32 too, in runs that want a GPU. These are the two of its blocks
that matter most, the Wasserstein loss with five critic steps and the hinge loss with one, small
enough for a laptop: networks of half the width, batches of 32 and half the steps. What "fewer
steps" and "ends better" mean is said in `rivals`, and stood in the catalogue long before.

The search has three rounds. That of `rivals` had one, of runs a tenth as long as the tests, and
every method took the largest step sizes there. Here every method has three strengths times five
pairs of step sizes on four seeds, a twentieth of the steps long (*probe*); its three best are
trained again, three tenths long (*tuning*). Where the best of these lies at an edge of what was
tried, its neighbours beyond that edge are trained as long (*wider*): each value moved alone, and
all of them together. The best of both rounds is trained on five other seeds (*test*).

The block of the Wasserstein loss was measured first, when there was no third round. The tests of
the settings that two rounds had chosen stay in the table as *earlier test*.

Cost, from forty cycles of each method on one core: 0.06 to 0.10 s a cycle with five critic steps,
0.02 to 0.03 s with one. Of the first block, 2.8 core-hours were spent before there was a third
round; that takes 48 runs × 600 cycles, and 15 tests where it finds better settings: 1.3 core-hours.
Of the second, 180 probes × 200 cycles, 84 runs × 1,200 and 15 tests × 4,000: 1.4 core-hours. R1,
which no criterion names, comes last.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import pandas as pd

from lipbook.lab.gan import Loss, Rules
from studies._pictures import N_JUDGED, TINY, networks, normalize, numbers, watched
from studies.rivals import (
    METHODS,
    SETTING,
    SHARES,
    STEP_SIZES,
    STRENGTHS,
    mean_ends,
    penalty_of,
    told,
)

DATA, WIDTH, LATENT_DIM, BATCH_SIZE = "faces 32", 8, 64, 32
#: Loss and critic steps. The first to be measured stands last: what is new comes first.
SCHEDULES = (("hinge", 1), ("wasserstein", 5))  # type: tuple[tuple[Loss, int], ...]
SEARCH_SEEDS, TEST_SEEDS = (100, 101, 102, 103), (0, 1, 2, 3, 4)
#: Generator steps of a run, by the critic steps for each and by its part.
STEPS = {
    1: {"probe": 200, "tuning": 1200, "wider": 1200, "test": 4000},
    5: {"probe": 100, "tuning": 600, "wider": 600, "test": 2000},
}
#: How many settings of a method the second round of the search tries.
FINALISTS = 3
#: From a value at the edge to the next beyond it.
BEYOND = {"SN": 2.0, "two-sided": 10.0, "one-sided": 10.0, "R1": 10.0, "step size": 3.0}

#: How far the logarithm of a distance may be off on another machine, in the row of `beginning`.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step. Of seed 1, at which no
#: run went astray.
PICTURES = tuple(
    ({"part": "test", "seed": 1, "critic_steps": n}, parts["test"]) for n, parts in STEPS.items()
)

Cell = dict[str, Any]


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority: each part of a method begins when the one before has ended."""
    # R1 last, of both blocks.
    order = sorted(product(SCHEDULES, METHODS), key=lambda at: at[1] == "R1")
    return [cell for block, method in order for cell in _rounds(found, *block, method, tiny)]


def _rounds(
    found: pd.DataFrame | None, loss: Loss, critic_steps: int, method: str, tiny: bool
) -> Iterator[Cell]:
    """Yield the runs of a method in a block, as far as those that have ended tell them."""
    settings: Sequence[Sequence[float]] = [
        (strength, *step_sizes) for strength, step_sizes in product(STRENGTHS[method], STEP_SIZES)
    ][: 1 if tiny else None]
    rivals: list[Cell] = []
    for part, steps in STEPS[critic_steps].items():
        runs: list[Cell] = [
            {"part": part, "loss": loss, "critic_steps": critic_steps, "method": method}
            | dict(zip(SETTING, setting, strict=True))
            | {"steps": TINY if tiny else steps, "seed": seed}
            for seed in (TEST_SEEDS if part == "test" else SEARCH_SEEDS)[: 1 if tiny else None]
            for setting in settings
        ]
        yield from runs
        rivals = rivals + runs if part == "wider" else runs
        ranked = _ranked(found, rivals)
        if not ranked:
            return
        after = {"probe": ranked[:FINALISTS], "tuning": _beyond(method, ranked[0])}
        settings = after.get(part, ranked[:1])


def _beyond(method: str, setting: Sequence[float]) -> list[tuple[float, ...]]:
    """Return the neighbours of a setting outside what was tried, if it lies at an edge of that."""
    moved = list(setting)
    tried = (STRENGTHS[method], *zip(*STEP_SIZES, strict=True))
    for i, values in enumerate(tried):
        factor = BEYOND["step size" if i else method]
        if setting[i] in (min(values), max(values)):
            next_one = setting[i] * factor if setting[i] == max(values) else setting[i] / factor
            moved[i] = float(f"{next_one:.1g}")
    alone = [(*setting[:i], moved[i], *setting[i + 1 :]) for i in range(len(moved))]
    return [other for other in dict.fromkeys([*alone, tuple(moved)]) if other != tuple(setting)]


def _ranked(found: pd.DataFrame | None, runs: Sequence[Cell]) -> list[tuple[float, ...]]:
    """Order the settings of some runs by the mean logarithm of their last distance.

    Empty as long as one of them has not ended. A run that broke down counts as far off.
    """
    if found is None or "log distance" not in found:
        return []
    ends = found.groupby([*runs[0]], sort=False).tail(1).merge(pd.DataFrame(runs))
    if len(ends) < len(runs):
        return []
    return list(mean_ends(ends, SETTING).sort_values(kind="stable").index)


def watch(
    part: str,
    loss: Loss,
    critic_steps: int,
    method: str,
    strength: float,
    critic_lr: float,
    generator_lr: float,
    steps: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Train one generator; return what the yardstick says at the end, in a test along the way."""
    nets = networks(DATA, WIDTH, LATENT_DIM, seed)
    if method == "SN":
        normalize(nets[1], "warm", coefficient=strength)
    shares = SHARES if part == "test" else (0.1, 1.0)
    seen = watched(
        DATA,
        nets,
        Rules(
            loss,
            penalty_of(method),
            strength,
            critic_steps,
            critic_lr,
            generator_lr,
            BATCH_SIZE,
        ),
        latent_dim=LATENT_DIM,
        stops=sorted({1, *(max(1, round(share * steps)) for share in shares)}),
        seed=seed,
        n_judged=N_JUDGED if steps > TINY else 100,
    )
    return told(seen, steps if part == "test" else None)


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning is repeated, for `workflow.study.recheck`."""
    probes = table[table["part"] == "probe"]
    return (
        probes[["part", "loss", "critic_steps", "method", *SETTING, "steps", "seed"]]
        .drop_duplicates()
        .to_dict("records")
    )


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows up to a tenth of a cell."""
    return numbers(islice(watch(**cell), 2))
