"""Chapter 6's study of SP5 on faces, as far as two processor cores reach.

`rivals` plans drawn faces at 32×32 too, in runs that want a GPU. This is its first block of them
(Wasserstein loss, five critic steps) made small enough for a laptop: networks of half the width,
batches of 32 and half the steps. What "fewer steps" and "ends better" mean is said in `rivals`, and
stood in the catalogue long before.

The search has two rounds. That of `rivals` had one, of runs a tenth as long as the tests, and every
method took the largest step sizes there. Here every method has three strengths times five pairs of
step sizes on four seeds, a twentieth of the steps long (*probe*); its three best are trained again,
three tenths long (*tuning*); the best of these is trained on five other seeds (*test*).

Cost, from twenty cycles of each method on one core: 0.10 s a cycle with normalization or the
two-sided penalty, 0.12 s with R1. Probes 240 × 100 cycles, tuning 48 × 600, tests 20 × 2,000:
93,000 cycles, some 2.7 core-hours. R1, which no criterion names, comes last.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import product
from typing import Any

import pandas as pd

from lipbook.lab.gan import Rules
from studies._pictures import N_JUDGED, TINY, networks, normalize, watched
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
SEARCH_SEEDS, TEST_SEEDS = (100, 101, 102, 103), (0, 1, 2, 3, 4)
#: Generator steps of a run, by its part.
STEPS = {"probe": 100, "tuning": 600, "test": 2000}
#: How many settings of a method the second round of the search tries.
FINALISTS = 3

#: How far the logarithm of a distance may be off on another machine, in the row of `beginning`.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step.
PICTURES = (({"part": "test", "seed": 0}, STEPS["test"]),)

Cell = dict[str, Any]


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority: each part of a method begins when the one before has ended."""
    plan: list[Cell] = []
    for method in METHODS:
        settings: Sequence[Sequence[float]] = [
            (strength, *step_sizes)
            for strength, step_sizes in product(STRENGTHS[method], STEP_SIZES)
        ][: 1 if tiny else None]
        for part in STEPS:
            steps = TINY if tiny else STEPS[part]
            seeds = (TEST_SEEDS if part == "test" else SEARCH_SEEDS)[: 1 if tiny else None]
            runs = [
                {"part": part, "method": method, **dict(zip(SETTING, setting, strict=True))}
                | {"steps": steps, "seed": seed}
                for seed in seeds
                for setting in settings
            ]
            plan += runs
            ranked = _ranked(found, runs)
            if not ranked:
                break
            settings = ranked[: FINALISTS if part == "probe" else 1]
    return plan


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
            "wasserstein",
            penalty_of(method),
            strength,
            critic_lr=critic_lr,
            generator_lr=generator_lr,
            batch_size=BATCH_SIZE,
        ),
        latent_dim=LATENT_DIM,
        stops=sorted({1, *(max(1, round(share * steps)) for share in shares)}),
        seed=seed,
        n_judged=N_JUDGED if steps > TINY else 100,
    )
    return told(seen, steps if part == "test" else None)


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return [{k: v for k, v in row.items() if k != "grid"} for row in watch(**cell)]


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning is repeated, for `workflow.study.recheck`."""
    probes = table[table["part"] == "probe"]
    return (
        probes[["part", "method", *SETTING, "steps", "seed"]].drop_duplicates().to_dict("records")
    )


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows up to a tenth of a cell."""
    rows = watch(**cell)
    return [next(rows), next(rows)]
