"""Chapter 6's study of normalization against the penalty with the networks of the article's example.

The patches, networks and optimizer are those of `sn_images`: an eighth of the example's width, no
BatchNorm in the critic except for the example's own variant, one step size for both networks. Every
method has two strengths and two step sizes to choose from, on seeds of their own.

Decided before a cell was measured, after ten pilot runs on seed 200 that set the step sizes: as in
`sn_generation`, and by its functions, a method needs fewer steps than another (SP5) if it takes
fewer to 1.25 times the larger of their mean last distances, and ends better if its last distances
are smaller; over ten test seeds, at the settings that are best and at those that are fastest on the
tuning seeds.
"""

from __future__ import annotations

import math
from itertools import product

from lipbook.sweeps import sn_generation, sn_images

TASK = "patches"
SNAPSHOTS = (1, 25, 50, 100, 150, 200, 300, 400)

#: What is tried: the norm of a kernel for the normalized critics, λ for the penalties.
STRENGTHS = {
    "SN": (1.0, 3.0),
    "SN, BatchNorm": (1.0, 3.0),
    "one-sided": (1.0, 10.0),
    "two-sided": (1.0, 10.0),
}
STEP_SIZES = (1e-3, 3e-3)
Setting = tuple[float, float, float]
#: The settings that `sn_generation.best` and `fastest` find on the tuning seeds.
CHOSEN: dict[tuple[str, str], Setting] = {}
FASTEST: dict[tuple[str, str], Setting] = {}

TUNING_SEEDS, TEST_SEEDS = sn_generation.TUNING_SEEDS, sn_generation.TEST_SEEDS
#: As in `sn_generation`, where trainings part by up to a factor of 1.6 on another machine.
TOLERANCE = {"log distance": 0.7}


def cells() -> list[dict[str, int | float | str]]:
    """List the runs: all settings on the tuning seeds, the best and the fastest on others."""
    tried = [
        (method, strength, lr, lr)
        for method, strengths in STRENGTHS.items()
        for strength, lr in product(strengths, STEP_SIZES)
    ]
    fast = [item for item in FASTEST.items() if item not in CHOSEN.items()]
    kept = [(method, *setting) for (_, method), setting in (*CHOSEN.items(), *fast)]
    names = ("method", "strength", "critic_lr", "generator_lr")
    plan = [*product(TUNING_SEEDS, tried), *product(TEST_SEEDS, kept)]
    return [{"task": TASK, **dict(zip(names, run, strict=True)), "seed": s} for s, run in plan]


def measure(
    task: str,  # noqa: ARG001  (a column that the functions of `sn_generation` look for)
    method: str,
    strength: float,
    critic_lr: float,
    generator_lr: float,
    seed: int,
) -> list[dict[str, float]]:
    """Train one generator, and look at it along the way."""
    if critic_lr != generator_lr:
        raise ValueError(
            f"critic_lr and generator_lr must be equal here, got {critic_lr} and {generator_lr}"
        )
    division, norm = ("SN", "BatchNorm") if method == "SN, BatchNorm" else (method, "none")
    rows = sn_images.watched(
        division, norm, lr=critic_lr, seed=seed, snapshots=SNAPSHOTS, strength=strength
    )
    return [{**row, "log distance": math.log(row["distance"])} for row in rows]
