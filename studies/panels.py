"""Chapter 6's study of the article's two panels: its example on faces, divided inside or after.

- **Compared**: the article's example on drawn faces of 64×64, its weights divided inside or after
  the step, with BatchNorm in the critic and without.
- **Tuned**: nothing: all have the article's step size, 2e-4.
- **Criteria**: planned ones only; nothing is judged by this table.
- **Seeds**: one.
- **Not done**: five of the six trainings to their end, for want of time on the GPU; half and full
  width, other seeds, other step sizes and an exact norm after the step were not begun.

The article shows faces from its own Keras example, once with the weights divided after each step
and once with the division inside the forward pass. The plan has both, with the example's networks,
optimizer and schedule, at its width or a fraction of it: the weights divided inside by the
article's estimate (five iterations from the vector of ones, differentiated) or by one warm step of
power iteration, or after the step by the article's estimate or exactly; BatchNorm's γ divided or
free. Initial weights are torch's, not Keras's.

Cost and parts of the plan, of which the first was begun. "equal": every variant at the article's
step size, 2e-4, at a quarter of the width, and the main pair also at half and at full width.
"tuning" and "best": the main variants on two further seeds at four step sizes, then each at the one
that ended nearest.

Cost, guessed before the run, of one generator step with its five critic steps on an H100: 10 ms at
full width (0.8 TFLOP in TF32), 3 ms at half, 1 ms at a quarter, where a dozen run side by side. So
35 runs of 4,000 steps at a quarter, 6 of 4,000 at half and 2 of 4,000 at full width are some 40,
70 and 80 s of the whole card; tuning and best, 32 runs of 1,000 and 20 of 4,000, 35 s. On one core
of a CPU a step at a quarter of the width takes half a second: a table like it takes days there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import pandas as pd
import torch

from lipbook.lab.gan import Rules
from studies._pictures import N_JUDGED, TINY, networks, normalize, numbers, project, watched

KIND, LATENT_DIM = "faces 64", 100
LR, BATCH_SIZE, CRITIC_STEPS = 2e-4, 64, 5
STOPS = (1, 30, 100, 200, 400, 700, 1000, 1500, 2000, 2500, 3000, 4000)

#: Of which steps images are kept: of the first seed, and of wide networks all of these.
SHOWN = (200, 700, 1500, 2500, 4000)

# As comments, types leave the digests of what was measured alone. They say "any length" since mypy
# loses track of a tuple of known length that is cut by a variable slice.

#: Where the weights are divided, and by which norm.
INSIDE, AFTER = "inside, article", "after, article"
DIVISIONS = (INSIDE, AFTER, "inside, warm", "after, exact")
#: BatchNorm in the critic and what happens to its γ.
NORMS = ("γ divided", "none", "γ free")
#: What is trained: all four with and without BatchNorm, and the article's with a free γ.
VARIANTS = (*product(DIVISIONS, ("γ divided", "none")), (INSIDE, "γ free"))  # type: tuple[tuple[str, str], ...]
#: The article's two panels, and the same without BatchNorm.
MAIN = ((INSIDE, "γ divided"), (AFTER, "γ divided"))
TUNED = (*MAIN, (INSIDE, "none"), (AFTER, "none"))  # type: tuple[tuple[str, str], ...]
STEP_SIZES = (5e-5, 2e-4, 7e-4, 2e-3)  # type: tuple[float, ...]
SEEDS, MORE_SEEDS, TUNING_SEEDS = (0, 1, 2), (3, 4), (100, 101)  # type: tuple[int, ...], tuple[int, ...], tuple[int, ...]

#: How far the logarithm of a distance may be off where it is measured on another kind of machine,
#: in the rows of `beginning`. Later, trainings part.
TOLERANCE = {"log distance": 0.35}

#: A training that ran out of time is a shorter training.
PARTIAL = True
#: The claims whose criteria it is measured under.
CLAIMS = ("SP7", "SP8", "SP9")
#: The grids that chapter 6 shows, by what their cells hold, and the step.
PICTURES = tuple(
    ({"part": "equal", "division": division, "norm": "none", "width": 16, "seed": 0}, step)
    for division, step in ((INSIDE, 1500), (AFTER, 1500), (AFTER, 4000))
)

Cell = dict[str, Any]


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority; those of "best" need the rows of "tuning", and wait for them."""
    full, half, quarter, steps = (4, 3, 2, TINY) if tiny else (64, 32, 16, STOPS[-1])
    short = 1 if tiny else 1000
    few = slice(1) if tiny else slice(None)
    tuned, step_sizes, tuning_seeds = TUNED[few], STEP_SIZES[few], TUNING_SEEDS[few]

    def cell(
        part: str, variant: tuple[str, str], width: int, steps: int, lr: float, seed: int
    ) -> Cell:
        division, norm = variant
        names = {"part": part, "division": division, "norm": norm, "width": width}
        return {**names, "lr": lr, "steps": steps, "seed": seed}

    plan = [cell("equal", variant, quarter, steps, LR, 0) for variant in VARIANTS]
    plan += [cell("equal", variant, full, steps, LR, 0) for variant in MAIN]
    plan += [
        cell("equal", v, quarter, steps, LR, seed) for seed in SEEDS[1:][few] for v in VARIANTS[few]
    ]
    plan += [cell("equal", v, quarter, steps, LR, seed) for seed in MORE_SEEDS[few] for v in tuned]
    plan += [cell("equal", v, half, steps, LR, seed) for seed in SEEDS[few] for v in MAIN]
    tuning = [
        cell("tuning", v, quarter, short, lr, seed)
        for v, lr, seed in product(tuned, step_sizes, tuning_seeds)
    ]
    if found is not None and "log distance" in found:
        for variant in tuned:
            lr = best(found, variant, len(step_sizes) * len(tuning_seeds), short)
            if lr is not None:
                tuning += [
                    cell("best", variant, quarter, steps, lr, s) for s in (*SEEDS, *MORE_SEEDS)[few]
                ]
    return plan + tuning


def best(table: pd.DataFrame, variant: tuple[str, str], runs: int, last: int) -> float | None:
    """Return the step size with the least mean logarithm of the last distance in "tuning".

    None as long as one of its `runs` has not ended. A run that broke down counts as far off.
    """
    division, norm = variant
    own = table[
        (table["part"] == "tuning") & (table["division"] == division) & (table["norm"] == norm)
    ]
    ends = own.sort_values("step").groupby(["lr", "seed"]).tail(1)
    if len(ends) < runs:
        return None
    off = np.where(ends["step"] == last, ends["log distance"], np.inf)
    return float(ends.assign(off=off).groupby("lr")["off"].mean().idxmin())  # type: ignore[arg-type]


def watch(
    part: str,
    division: str,
    norm: str,
    width: int,
    lr: float,
    steps: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Train one variant, and yield what the yardstick says along the way, with its images."""
    torch.backends.cudnn.benchmark = width >= 32  # it takes seconds, which narrow networks don't
    stops = [stop for stop in STOPS if stop < steps] + [steps]
    n_judged = N_JUDGED if width > 4 else 100
    for row in followed(division, norm, width, lr, seed, stops=stops, n_judged=n_judged):
        kept = row["step"] == steps if seed or width <= 16 else row["step"] in SHOWN
        if part != "equal" or not (kept or (seed == 0 and row["step"] in SHOWN[::2])):
            row.pop("grid")
        yield row


def followed(
    division: str,
    norm: str,
    width: int,
    lr: float,
    seed: int,
    *,
    stops: Sequence[int],
    batch_size: int = BATCH_SIZE,
    n_judged: int = N_JUDGED,
) -> Iterator[dict[str, Any]]:
    """Train one variant on faces; yield at each stop what the yardstick says, and images."""
    nets = networks(KIND, width, LATENT_DIM, seed, batch_norm=norm != "none")
    where, how = division.split(", ")
    if where == "inside":
        normalize(nets[1], how, scales=norm == "γ divided")
    seen = watched(
        KIND,
        nets,
        Rules(critic_steps=CRITIC_STEPS, critic_lr=lr, generator_lr=lr, batch_size=batch_size),
        latent_dim=LATENT_DIM,
        stops=stops,
        seed=seed,
        after_step=project(how) if where == "after" else None,
        n_judged=n_judged,
    )
    for row in seen:
        distance = float(np.log(row.pop("distance")))
        yield {"step": row.pop("step"), "log distance": distance, **row}


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning a CPU can repeat, for `workflow.study.recheck`."""
    names = ["part", "division", "norm", "width", "lr", "steps", "seed"]
    narrow = table[(table["width"] <= 16) & (table["part"] != "tuning")]
    return narrow[names].drop_duplicates().to_dict("records")


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of the first 30 steps of a cell."""
    return numbers(islice(watch(**cell), 2))
