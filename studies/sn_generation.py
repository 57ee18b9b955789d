"""Chapter 6's study of small generators: every constraint at its best, spectral ones in detail.

- **Compared**: seventeen ways to hold a critic on digits of 8×8, three of them on eight Gaussians
  too.
- **Tuned**: one or two strengths × two step sizes of the critic × three of the generator, on two
  seeds (and digits) of their own, by the last distance.
- **Criteria**: the rule was decided before the table; the catalogue's entries, with their bounds,
  were written after it.
- **Seeds**: ten for what the criteria compare, five or three for the others.
- **Not done**: other strengths. The tuning seeds were asked later what lies beyond the edges for
  the methods of SP5: one choice of six would have moved, by a fortieth of its distance.

What counts is the distance to held-out samples along the way: W₁ for the Gaussians, for digits the
Fréchet distance between the features of a classifier.

The rule: a method needs fewer steps than another (SP5) if it takes fewer to 1.25 times the larger
of their mean last distances; it ends better if its last distances are smaller; a division repairs
another (SP8) if it ends better, each at its best step sizes. All of it over the test seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import studies
from lipbook.groupsort import GroupSort
from lipbook.lab.data import Splits, digits, split
from lipbook.lab.fidelity import digit_features, frechet_distance
from lipbook.lab.networks import mlp
from lipbook.lab.training import train_wgan
from lipbook.lab.transport import wasserstein_distance
from lipbook.normalization import (
    OrthonormalPenalty,
    SpectralProjection,
    article_spectral_normalize,
    spectral_normalize,
)
from lipbook.notebook.curves import LEVEL, steps_to
from lipbook.wgan import Constraint, GradientPenalty, Unconstrained, WeightClipping
from studies import wgan_generation as ring

LATENT_DIM, WIDTH = 16, 128  # for digits; the ring has chapter 5's networks
STEPS, N_SAMPLES = 400, 360
SNAPSHOTS = (25, 50, 75, 100, 150, 200, 300, 400)

#: The strengths tried for each method and task: λ, c, the norm of a row, the norm of a weight.
STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "digits": {
        "none": (0.0,),
        "weight clipping": (0.03, 0.1),
        "two-sided": (1.0, 10.0),
        "one-sided": (1.0, 10.0),
        "weight norm": (0.5, 1.0),
        "layer norm": (0.0,),
        "orthonormal": (1.0, 10.0),
        "SN": (1.0, 3.0),
        "SN, article": (1.0,),
        "after the step": (1.0,),
        "after, exact": (1.0,),
        "SN, GroupSort": (1.0,),
        "SN, residual": (1.0,),
        "SN, residual halved": (1.0,),
        "BN, free γ": (1.0,),
        "BN, γ by length": (1.0,),
        "BN, γ by norm": (1.0,),
    },
    "ring": {"two-sided": (1.0, 10.0), "one-sided": (1.0, 10.0), "SN": (1.0, 3.0)},
}
#: (When all was measured, the tuning seeds were asked what lies beyond the edges for the methods of
#: SP5: strengths of .3, 10 and 30, a critic's step size of 1e-2, on the ring 3e-4. What is chosen
#: below would have stayed, but for the two-sided penalty on digits, at 1.65 where it has 1.69.)
CRITIC_LRS = (1e-3, 3e-3)
GENERATOR_LRS = (1e-3, 3e-3, 1e-2)
#: The best strength and step sizes of each method on the tuning seeds (`best`).
CHOSEN: dict[tuple[str, str], tuple[float, float, float]] = {
    ("digits", "none"): (0.0, 0.001, 0.003),
    ("digits", "weight clipping"): (0.1, 0.003, 0.003),
    ("digits", "two-sided"): (1.0, 0.001, 0.003),
    ("digits", "one-sided"): (10.0, 0.003, 0.003),
    ("digits", "weight norm"): (0.5, 0.003, 0.003),
    ("digits", "layer norm"): (0.0, 0.001, 0.01),
    ("digits", "orthonormal"): (1.0, 0.003, 0.003),
    ("digits", "SN"): (1.0, 0.003, 0.003),
    ("digits", "SN, article"): (1.0, 0.001, 0.001),
    ("digits", "after the step"): (1.0, 0.001, 0.01),
    ("digits", "after, exact"): (1.0, 0.001, 0.003),
    ("digits", "SN, GroupSort"): (1.0, 0.003, 0.003),
    ("digits", "SN, residual"): (1.0, 0.001, 0.003),
    ("digits", "SN, residual halved"): (1.0, 0.001, 0.003),
    ("digits", "BN, free γ"): (1.0, 0.003, 0.01),
    ("digits", "BN, γ by length"): (1.0, 0.001, 0.003),
    ("digits", "BN, γ by norm"): (1.0, 0.001, 0.01),
    ("ring", "two-sided"): (1.0, 0.003, 0.003),
    ("ring", "one-sided"): (10.0, 0.001, 0.003),
    ("ring", "SN"): (3.0, 0.001, 0.003),
}
#: Divided after the step, at the step sizes that are best for the division inside.
EQUAL = {("digits", "after the step"): CHOSEN["digits", "SN, article"]}
#: The methods of SP5, and the settings with which they are fastest on the tuning seeds (`fastest`).
RIVALS = ("SN", "one-sided", "two-sided")
FASTEST = {
    ("digits", "SN"): (1.0, 0.001, 0.003),
    ("digits", "one-sided"): (10.0, 0.003, 0.003),
    ("digits", "two-sided"): (1.0, 0.003, 0.003),
    ("ring", "SN"): (3.0, 0.003, 0.01),
    ("ring", "one-sided"): (10.0, 0.003, 0.003),
    ("ring", "two-sided"): (1.0, 0.003, 0.003),
}

TUNING_SEEDS, TEST_SEEDS = (100, 101), tuple(range(10))
#: Methods beside the comparison, which take long and are trained on the first test seeds only.
N_SEEDS = {
    "after, exact": 5,
    "SN, GroupSort": 5,
    "SN, residual": 5,
    "SN, residual halved": 5,
    "BN, free γ": 3,
    "BN, γ by length": 3,
    "BN, γ by norm": 3,
}


def parting(rows: pd.DataFrame) -> NDArray[Any]:
    """Return how far the logarithms of distances may be off where sums are rounded otherwise.

    On another machine, that is. Between two makes of processor, 334 beginnings of this study and
    of those on patches parted by up to .16 in 25 steps and by up to .36 in 50; nine in ten by less
    than .02 and .13. Whole trainings part by more. One method in the place of another, with the
    same step sizes, is refused in more than half of the cases, and on patches in more than a third
    (a test counts them).
    """
    tolerance: NDArray[Any] = np.where(rows["step"] <= 25, 0.25, 0.4)
    return tolerance


TOLERANCE = {"log distance": parting}


def cells() -> list[dict[str, int | float | str]]:
    """List the runs: all settings on the tuning seeds, the chosen and the equal ones on others."""
    tried = [
        (task, method, *setting)
        for task, methods in STRENGTHS.items()
        for method, strengths in methods.items()
        for setting in product(strengths, CRITIC_LRS, GENERATOR_LRS)
    ]
    others = [*EQUAL.items(), *(item for item in FASTEST.items() if item not in CHOSEN.items())]
    kept = [(*key, *setting) for key, setting in (*CHOSEN.items(), *others)]
    plan = [(seed, run) for seed in TUNING_SEEDS for run in tried]
    plan += [(s, run) for s in TEST_SEEDS for run in kept if s < N_SEEDS.get(run[1], s + 1)]
    names = ("task", "method", "strength", "critic_lr", "generator_lr")
    return [{**dict(zip(names, run, strict=True)), "seed": seed} for seed, run in plan]


def best(table: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Choose strength and step sizes of each method by its last distances on the tuning seeds."""
    last = table[table["seed"].isin(TUNING_SEEDS) & (table["step"] == STEPS)]
    setting = ["strength", "critic_lr", "generator_lr"]
    mean = last.groupby(["task", "method", *setting])["distance"].mean().reset_index()
    top = mean.loc[mean.groupby(["task", "method"], sort=False)["distance"].idxmin()]
    keys = zip(top["task"], top["method"], strict=True)
    settings = zip(*(top[name] for name in setting), strict=True)
    return dict(zip(keys, settings, strict=True))


def fastest(
    table: pd.DataFrame, methods: Sequence[str] = RIVALS
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Choose the settings of some methods by their steps to one distance, on the tuning seeds.

    Written after `best` had left normalization behind in SP5, to see if it is the choice's doing.
    The distance is 1.25 times the largest of their mean last ones at the settings of `best`.
    """
    tuning = table[table["seed"].isin(TUNING_SEEDS) & table["method"].isin(methods)]
    chosen = {}
    for task, runs in tuning.groupby("task", sort=False):
        setting = ["method", "strength", "critic_lr", "generator_lr"]
        distances = runs.pivot_table("distance", [*setting, "seed"], "step")
        mean = distances[STEPS].groupby(level=setting).mean()
        level = LEVEL * mean.groupby(level="method").min().max()
        steps = steps_to(distances, level)
        mean = steps.groupby(level=setting).mean()
        for method, *values in mean.groupby(level="method").idxmin():
            chosen[str(task), method] = tuple(values)
    return chosen


def runs_of(
    table: pd.DataFrame,
    task: str,
    method: str,
    setting: tuple[float, float, float] | None = None,
) -> pd.DataFrame:
    """Return a method's distances on the test seeds, one row a seed and one column a step.

    With the settings in `CHOSEN` unless others are given.
    """
    names = ("task", "method", "strength", "critic_lr", "generator_lr")
    cell = (task, method, *(setting or CHOSEN[task, method]))
    rows = studies.rows(table[table["seed"].isin(TEST_SEEDS)], dict(zip(names, cell, strict=True)))
    return rows.pivot_table("distance", "seed", "step")


def critic(task: str, method: str, strength: float) -> nn.Module:
    """Return a critic with what the method builds into it; weights from torch's global seed."""
    inputs, width = (64, WIDTH) if task == "digits" else (2, ring.WIDTH)
    sizes = [inputs, width, width, 1]
    match method:
        case "SN":
            return _normalized(mlp(sizes, _leaky), strength)
        case "SN, article":
            return article_spectral_normalize(mlp(sizes, _leaky))
        case "SN, GroupSort":
            return _normalized(mlp(sizes, lambda: GroupSort(2)))
        case "SN, residual" | "SN, residual halved":
            blocks = [Residual(width, halved="halved" in method) for _ in range(2)]
            net = nn.Sequential(nn.Linear(inputs, width), *blocks, nn.Linear(width, 1))
            return _normalized(net)
        case "weight norm":
            net = mlp(sizes, _leaky)
            for layer in _dense(net):
                parametrizations.weight_norm(layer)
                lengths = layer.get_parameter("parametrizations.weight.original0")
                nn.init.constant_(lengths, strength).requires_grad_(False)
            return net
        case "layer norm":
            return mlp(sizes, lambda: nn.Sequential(nn.LayerNorm(width), _leaky()))
        case "BN, free γ" | "BN, γ by length" | "BN, γ by norm":
            return _normalized(mlp(sizes, lambda: nn.Sequential(_batch_norm(method), _leaky())))
    return mlp(sizes, _leaky)


class Residual(nn.Module):
    """A block ``x + φ(W x + b)``, or half of it."""

    def __init__(self, width: int, *, halved: bool) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(width, width), _leaky()
        self.factor = 0.5 if halved else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        added: Tensor = x + self.activation(self.dense(x))
        return self.factor * added


def constraint(method: str, strength: float = 1.0) -> Constraint:
    """Return what a method adds to the loss or does after the step."""
    match method:
        case "weight clipping":
            return WeightClipping(strength)
        case "two-sided" | "one-sided":
            return GradientPenalty(strength, one_sided=method == "one-sided")
        case "orthonormal":
            return OrthonormalPenalty(strength)
        case "after the step":
            return SpectralProjection("article")
        case "after, exact":
            return SpectralProjection("exact")
    return Unconstrained()


def latent_dim(task: str) -> int:
    """Return how many normal numbers a generator of a task takes."""
    return LATENT_DIM if task == "digits" else ring.LATENT_DIM


def generator(task: str) -> nn.Module:
    """Return the generator of a task, from latents to samples; weights from the global seed."""
    if task == "digits":
        return nn.Sequential(mlp([latent_dim(task), WIDTH, 64]), nn.Sigmoid())
    return mlp([latent_dim(task), ring.WIDTH, ring.WIDTH, 2], _leaky)


def measure(
    task: str,
    method: str,
    strength: float,
    critic_lr: float,
    generator_lr: float,
    seed: int,
    *,
    steps: int = STEPS,
) -> list[dict[str, float]]:
    """Train one generator, and look at it along the way."""
    distance = (_digit_distance if task == "digits" else _ring_distance)(seed)
    latents = torch.randn(N_SAMPLES, latent_dim(task), generator=studies.held_out(seed)[1])
    seen: list[dict[str, float]] = []

    def look(step: int, generator_net: nn.Module) -> None:
        if step in SNAPSHOTS:
            with torch.no_grad():
                found = distance(generator_net(latents))
                seen.append({"step": step, "distance": found, "log distance": math.log(found)})

    train(task, method, (strength, critic_lr, generator_lr), seed, steps=steps, on_step=look)
    return seen


def beginning(**cell: Any) -> list[dict[str, float]]:
    """Return the rows of a cell's first steps."""
    return measure(**cell, steps=studies.BEGINNING)


def train(
    task: str,
    method: str,
    setting: tuple[float, float, float],
    seed: int,
    *,
    steps: int,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Train networks of the study, and return the generator and the critic.

    Parameters
    ----------
    task, method : str
        A key of `CHOSEN`.
    setting : tuple of float
        Strength, step size of the critic, step size of the generator.
    seed : int
        Decides weights, latents and batches.
    steps : int
        Of the generator; five of the critic to each.
    on_step : callable, optional
        Called with the number of each step and the generator.
    """
    strength, critic_lr, generator_lr = setting
    torch.manual_seed(seed)
    generator_net, critic_net = generator(task), critic(task, method, strength)
    # Pixels that no digit uses have weights that die out: subnormal numbers, which halve the speed.
    torch.set_flush_denormal(True)
    try:
        train_wgan(
            generator_net,
            critic_net,
            real_digits if task == "digits" else ring.real_samples,
            latent_dim=latent_dim(task),
            constraint=constraint(method, strength),
            steps=steps,
            batch_size=64,
            critic_lr=critic_lr,
            generator_lr=generator_lr,
            generator=torch.Generator().manual_seed(seed),
            on_step=None if on_step is None else lambda step: on_step(step, generator_net),
        )
    finally:
        torch.set_flush_denormal(False)
    return generator_net, critic_net


def real_digits(n: int, generator: torch.Generator) -> Tensor:
    """Draw rows of 64 grey levels from the training part of the digits."""
    train = _digits().train.inputs
    return train[torch.randint(len(train), (n,), generator=generator)]


@lru_cache
def _digits() -> Splits:
    return split(digits())


def _digit_distance(seed: int) -> Callable[[Tensor], float]:
    features = digit_features()
    part = _digits().validation if seed in TUNING_SEEDS else _digits().test
    real = features(part.inputs[:N_SAMPLES])
    return lambda samples: frechet_distance(real, features(samples))


def _ring_distance(seed: int) -> Callable[[Tensor], float]:
    held_out = ring.real_samples(N_SAMPLES, studies.held_out(seed)[0])
    return lambda samples: wasserstein_distance(held_out, samples)


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2)


def _batch_norm(method: str) -> nn.Module:
    norm = nn.BatchNorm1d(WIDTH)
    match method:
        case "BN, γ by length":
            return article_spectral_normalize(norm)
        case "BN, γ by norm":
            return spectral_normalize(norm)
    return norm


def _dense(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def _normalized(net: nn.Module, coefficient: float = 1.0) -> nn.Module:
    for layer in _dense(net):
        spectral_normalize(layer, coefficient=coefficient)
    return net
