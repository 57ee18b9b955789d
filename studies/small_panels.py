"""Chapter 6's study of the article's two panels, as far as two processor cores reach.

- **Compared**: the article's example on faces of 64×64 at an eighth of its width: its weights
  divided inside or after the step, with BatchNorm in the critic and without.
- **Tuned**: four step sizes a variant, on two seeds of their own, 300 steps; the nearest end, by
  the mean of logarithms, is taken (*best*). Besides, the article's, 2e-4 (*equal*).
- **Criteria**: each was stated before the first run that it judges.
- **Seeds**: three, 1,500 steps each.
- **Not done**: the article's width; two more seeds, for want of time; a search beyond 0.006, the
  largest step size, which the division after the step without BatchNorm chose, hardly before 0.002.

`panels` plans the article's example at a quarter of its width and more, in trainings that want a
GPU. This is the same example small enough for a laptop: batches of 32, five critic steps to each of
the generator and the Wasserstein loss, as there. The weights are divided by the article's estimate,
five iterations from the vector of ones, inside the forward pass or after each step; BatchNorm has a
divided γ, as in the article's program.

Cost, from ten cycles on one core: 0.3 to 0.45 s a cycle. With BatchNorm, 16 runs × 300 cycles and
12 × 1,500 take 2.5 core-hours; without it, as much again (2.7, beside other work).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import pandas as pd

from studies._pictures import N_JUDGED, TINY, numbers
from studies.panels import LR, MAIN, TUNED, best, followed

WIDTH, BATCH_SIZE = 8, 32
STEPS = {"tuning": 300, "best": 1500, "equal": 1500}
STOPS = (1, 30, 100, 200, 300, 450, 600, 800, 1000, 1250, 1500)
# As comments: mypy loses track of a tuple of known length that is cut by a variable slice.
STEP_SIZES = (2e-4, 7e-4, 2e-3, 6e-3)  # type: tuple[float, ...]
SEEDS, MORE_SEEDS, TUNING_SEEDS = (0, 1, 2), (3, 4), (100, 101)  # type: tuple[int, ...], tuple[int, ...], tuple[int, ...]
#: Of which steps images are kept.
SHOWN = (100, 600, 1500)

#: How far the logarithm of a distance may be off on another kind of machine, in the rows of
#: `beginning`. Later, trainings part.
TOLERANCE = {"log distance": 0.35}
#: A training that ran out of time is a shorter training.
PARTIAL = True
#: The claims whose criteria it is measured under.
CLAIMS = ("SP8", "SP9")
#: The grids that a page shows, by what their cells hold, and the step.
PICTURES = tuple(
    ({"part": part, "division": division, "norm": norm, "seed": seed}, step)
    for part in ("best", "equal")
    for division, norm in TUNED
    for seed, step in (
        [(0, s) for s in SHOWN] if norm != "none" else [(s, SHOWN[-1]) for s in SEEDS]
    )
)

Cell = dict[str, Any]


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority; those of "best" wait for the tuning of their variant."""
    few = slice(1) if tiny else slice(None)

    def cell(part: str, variant: tuple[str, str], lr: float, seed: int) -> Cell:
        division, norm = variant
        steps = TINY if tiny else STEPS[part]
        return {
            "part": part,
            "division": division,
            "norm": norm,
            "lr": lr,
            "steps": steps,
            "seed": seed,
        }

    def runs(variants: Sequence[tuple[str, str]], seeds: tuple[int, ...]) -> list[Cell]:
        chosen = {variant: chosen_lr(found, variant, tiny=tiny) for variant in variants}
        at_best = [
            cell("best", variant, lr, seed)
            for seed in seeds[few]
            for variant, lr in chosen.items()
            if lr is not None
        ]
        equal = [
            cell("equal", variant, LR, seed)
            for seed in seeds[few]
            for variant, lr in chosen.items()
            if lr not in (None, LR)
        ]
        return at_best + equal

    def tuning(variants: Sequence[tuple[str, str]]) -> list[Cell]:
        return [
            cell("tuning", variant, lr, seed)
            for seed, lr, variant in product(TUNING_SEEDS[few], STEP_SIZES[few], variants)
        ]

    normed, plain = list(MAIN)[few], [variant for variant in TUNED if variant not in MAIN][few]
    plan = tuning(normed) + runs(normed, SEEDS) + tuning(plain) + runs(plain, SEEDS)
    return plan + runs(normed, MORE_SEEDS) + runs(plain, MORE_SEEDS)


def chosen_lr(found: pd.DataFrame | None, variant: tuple[str, str], *, tiny: bool) -> float | None:
    """Return the best step size of "tuning", or None while a run of it has not ended."""
    if found is None or "log distance" not in found:
        return None
    runs = 1 if tiny else len(STEP_SIZES) * len(TUNING_SEEDS)
    return best(found, variant, runs, TINY if tiny else STEPS["tuning"])


def watch(
    part: str, division: str, norm: str, lr: float, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Train one variant, and yield what the yardstick says along the way, with its images."""
    rows = followed(
        division,
        norm,
        WIDTH,
        lr,
        seed,
        stops=[stop for stop in STOPS if stop < steps] + [steps],
        batch_size=BATCH_SIZE,
        n_judged=N_JUDGED if steps > TINY else 100,
    )
    for row in rows:
        if part == "tuning" or row["step"] not in SHOWN:
            row.pop("grid")
        yield row


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning is repeated, for `workflow.study.recheck`."""
    names = ["part", "division", "norm", "lr", "steps", "seed"]
    return table[names].drop_duplicates().to_dict("records")


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of the first 30 steps of a cell."""
    return numbers(islice(watch(**cell), 2))
