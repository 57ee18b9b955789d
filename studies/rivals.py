"""Chapter 6's study of SP5: steps and ends of spectral normalization and of gradient penalties.

- **Compared**: normalization by one step of power iteration from the last vectors, the two-sided
  (19) and the one-sided penalty (20), and R1, on MNIST digits of 28×28, with the Wasserstein loss
  and five critic steps.
- **Tuned**: three strengths × five pairs of step sizes a method (four corners and the centre of a
  square), four seeds, 300 steps, a tenth of the tests; the least mean logarithm of the last
  distance is taken.
- **Criteria**: committed before the table; they ask for the opposite of the claim.
- **Seeds**: six for normalization and the two-sided penalty, five for the others; ten were planned.
- **Not done**: seven of eight blocks, among them all faces; a search beyond the edge, where each
  method's step sizes and the weights of all three penalties were the largest tried.

A *block* is data, loss and schedule: digits or drawn faces of 32×32, Wasserstein or hinge loss,
five critic steps for each of the generator or one. The networks are convolutional, of the article's
kind; the distance is that of the study `yardstick`.

What "fewer steps" means was decided before the first test seed was run, and stands in the
catalogue: seed by seed, the logarithm of the ratio of the steps to a level, which is a multiple of
the larger of the two methods' mean last distances (1.1, 1.25, 1.5 or 2; the verdict is taken at
1.25).

Cost, guessed before the run: a cycle takes 0.6 (one critic step) to 3.5 ms (five, with a penalty)
in a graph on an H100, and a dozen processes share it. A block of digits is 240 tuning runs of a
second and 40 test runs of 7 s, about 45 s of wall time; one of faces 240 of 1.3 s and 20 of 12 s,
the same. Eight blocks take six minutes. In order: Wasserstein and five critic steps, which is the
article's case, on both data; hinge and one; then the crosses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, get_args

import numpy as np
import pandas as pd

from lipbook.lab.gan import Loss, Penalty, Rules
from lipbook.notebook.curves import LEVEL, Quotients, quotients
from studies._pictures import N_JUDGED, TINY, networks, normalize, numbers, watched

DATA = ("mnist", "faces 32")
METHODS = ("SN", "two-sided", "one-sided", "R1")
WIDTH = {"mnist": 32, "faces 32": 16}
LATENT_DIM = 64
#: Loss and critic steps, in order of priority.
SCHEDULES: tuple[tuple[Loss, int], ...] = (
    ("wasserstein", 5),
    ("hinge", 1),
    ("wasserstein", 1),
    ("hinge", 5),
)
# As comments, these types leave the digests of what was measured alone.

#: The norm of each layer, λ or γ.
STRENGTHS = {
    "SN": (1.0, 2.0, 4.0),
    "two-sided": (0.1, 1.0, 10.0),
    "one-sided": (0.1, 1.0, 10.0),
    "R1": (0.1, 1.0, 10.0),
}  # type: dict[str, tuple[float, ...]]
#: Step sizes of critic and generator.
STEP_SIZES = ((2e-4, 2e-4), (2e-4, 2e-3), (6e-4, 6e-4), (2e-3, 2e-4), (2e-3, 2e-3))  # type: tuple[tuple[float, float], ...]
TUNING_SEEDS = (100, 101, 102, 103)  # type: tuple[int, ...]
TEST_SEEDS = {"mnist": tuple(range(10)), "faces 32": tuple(range(5))}

#: Generator steps of a tuning and of a test run, by the critic steps of each.
TUNING_STEPS = {1: 600, 5: 300}
TEST_STEPS = {("mnist", 1): 6000, ("mnist", 5): 3000, ("faces 32", 1): 8000, ("faces 32", 5): 4000}
#: Where a run is judged, as shares of its steps, after the first step.
SHARES = (0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 0.9, 1.0)

#: How far the logarithm of a distance may be off on another kind of machine, in the
#: row of `beginning`. Later, trainings part.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step.
PICTURES = (
    (
        {"part": "test", "data": "mnist", "loss": "wasserstein", "critic_steps": 5, "seed": 0},
        TEST_STEPS["mnist", 5],
    ),
)

Cell = dict[str, Any]
SETTING = ["strength", "critic_lr", "generator_lr"]
BLOCK = ["data", "loss", "critic_steps"]


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs by priority: of each block the tuning, and the tests once it has ended."""
    plan: list[Cell] = []
    for (loss, critic_steps), data in product(SCHEDULES[: 1 if tiny else None], DATA):
        block = {"data": data, "loss": loss, "critic_steps": critic_steps}
        tuning = _tuning(block, tiny=tiny)
        plan += tuning
        chosen = {} if found is None or "log distance" not in found else best(found, block, tuning)
        seeds = TEST_SEEDS[data][: 1 if tiny else None]
        steps = TINY + 1 if tiny else TEST_STEPS[data, critic_steps]
        plan += [
            {"part": "test", **block, "method": method, **setting, "steps": steps, "seed": seed}
            for seed in seeds
            for method, setting in chosen.items()
        ]
    return plan


def _tuning(block: Cell, *, tiny: bool) -> list[Cell]:
    kept = slice(1) if tiny else slice(None)
    return [
        {
            "part": "tuning",
            **block,
            "method": method,
            "strength": strength,
            "critic_lr": critic_lr,
            "generator_lr": generator_lr,
            "steps": TINY if tiny else TUNING_STEPS[block["critic_steps"]],
            "seed": seed,
        }
        for seed in TUNING_SEEDS[kept]
        for method in METHODS
        for strength in STRENGTHS[method][kept]
        for critic_lr, generator_lr in STEP_SIZES[kept]
    ]


def best(
    table: pd.DataFrame, block: Mapping[str, Any], tuning: Sequence[Cell]
) -> dict[str, dict[str, float]]:
    """Choose each method's setting in a block: the least mean logarithm of the last distance.

    Empty as long as a run of `tuning` has not ended. A run that broke down counts as far off.
    """
    own = table[(table[list(block)] == pd.Series(dict(block))).all(axis=1)]
    own = own[own["part"] == "tuning"]
    ends = own.sort_values("step").groupby(["method", *SETTING, "seed"], sort=False).tail(1)
    if len(ends) < len(tuning):
        return {}
    means = mean_ends(ends, ["method", *SETTING])
    return {
        method: dict(zip(SETTING, means[method].idxmin(), strict=True))
        for method in METHODS
        if method in means
    }


def mean_ends(ends: pd.DataFrame, by: list[str]) -> pd.Series[Any]:
    """Return the mean logarithm of the last distance, infinite where a run broke down."""
    off = np.where(ends["step"] == ends["steps"], ends["log distance"], np.inf)
    return ends.assign(off=off).groupby(by, sort=False)["off"].mean()


def penalty_of(method: str) -> Penalty:
    """Return the penalty of a method; none where the weights are divided."""
    assert method in METHODS
    return method if method in get_args(Penalty) else "none"  # type: ignore[return-value]


def told(seen: Iterator[dict[str, Any]], pictured: int | None) -> Iterator[dict[str, Any]]:
    """Say what was seen as rows of the table, with the images of one step or of none."""
    for row in seen:
        distance = row.pop("distance")
        if row["step"] != pictured:
            row.pop("grid")
        yield {"step": row.pop("step"), "log distance": float(np.log(distance)), **row}


def watch(
    part: str,
    data: str,
    loss: Loss,
    critic_steps: int,
    method: str,
    strength: float,
    critic_lr: float,
    generator_lr: float,
    steps: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Train one generator, and return what the yardstick says along the way."""
    nets = networks(data, WIDTH[data], LATENT_DIM, seed)
    if method == "SN":
        normalize(nets[1], "warm", coefficient=strength)
    stops = sorted({1, *(max(1, round(share * steps)) for share in SHARES)})
    seen = watched(
        data,
        nets,
        Rules(loss, penalty_of(method), strength, critic_steps, critic_lr, generator_lr),
        latent_dim=LATENT_DIM,
        stops=stops if part == "test" else sorted({max(1, steps // 10), max(1, steps // 2), steps}),
        seed=seed,
        n_judged=N_JUDGED if steps > 10 else 100,
    )
    return told(seen, steps if part == "test" and seed == 0 else None)


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


def runs_of(table: pd.DataFrame, block: Mapping[str, Any], method: str) -> pd.DataFrame:
    """Return the distance of a method's test runs in a block: one row a seed, one column a step."""
    chosen = {**block, "part": "test", "method": method}
    own = table[(table[list(chosen)] == pd.Series(chosen)).all(axis=1)]
    return np.exp(own.pivot_table("log distance", "seed", "step"))  # type: ignore[return-value]


def over(
    table: pd.DataFrame,
    block: Mapping[str, Any],
    rival: str,
    level: float = LEVEL,
    *,
    for_good: bool = False,
) -> Quotients:
    """Divide normalization's steps and last distances by a rival's, seed by seed."""
    ours, theirs = (runs_of(table, block, method) for method in ("SN", rival))
    return quotients(ours, theirs, level, for_good=for_good)


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning a CPU can repeat, for `workflow.study.recheck`."""
    tuning = table[table["part"] == "tuning"]
    names = ["part", *BLOCK, "method", *SETTING, "steps", "seed"]
    return tuning[names].drop_duplicates().to_dict("records")


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the row of the first stop of a cell."""
    return numbers(islice(watch(**cell), 1))
