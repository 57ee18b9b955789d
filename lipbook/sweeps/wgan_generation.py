"""Chapter 5's study of generators: eight Gaussians, learnt under each constraint and under none.

Every method has the same networks and steps, and three step sizes of the generator to choose from
on seeds of their own. What counts is the exact W₁ to held-out samples along the way.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from lipbook.data import gaussian_ring, ring_centres
from lipbook.models import mlp
from lipbook.transport import mode_coverage, wasserstein_distance
from lipbook.wgan import Constraint, GradientPenalty, Unconstrained, WeightClipping
from lipbook.wgan_training import train_wgan

LATENT_DIM, WIDTH = 4, 64
N_HELD_OUT, STD = 400, 0.1
STEPS, CRITIC_LR = 600, 1e-3
SNAPSHOTS = (1, 25, 50, 100, 200, 400, 600)

METHODS: dict[str, Constraint] = {
    "none": Unconstrained(),
    "weight clipping": WeightClipping(0.1),
    "two-sided": GradientPenalty(10.0),
    "one-sided": GradientPenalty(10.0, one_sided=True),
}
GENERATOR_LRS = (1e-4, 3e-4, 1e-3)
#: The best step size of each method on the tuning seeds, by the mean last distance (`best`).
CHOSEN = {"none": 1e-3, "weight clipping": 1e-3, "two-sided": 3e-4, "one-sided": 1e-3}
TUNING_SEEDS, TEST_SEEDS = (100, 101), tuple(range(10))

TOLERANCE = {"distance": 0.6, "modes": 1.0}


def cells() -> list[dict[str, int | float | str]]:
    """List the runs: all step sizes on the tuning seeds; the chosen, and two small ones, on ten."""
    plan = [
        (seed, method, lr) for seed in TUNING_SEEDS for method in METHODS for lr in GENERATOR_LRS
    ]
    slow = [(method, min(GENERATOR_LRS)) for method in ("none", "one-sided")]
    plan += [(seed, *setting) for seed in TEST_SEEDS for setting in (*CHOSEN.items(), *slow)]
    return [{"method": m, "generator_lr": lr, "seed": seed} for seed, m, lr in plan]


def best(table: pd.DataFrame) -> dict[str, float]:
    """Choose each method's step size from its last distances on the tuning seeds."""
    last = table[table["seed"].isin(TUNING_SEEDS) & (table["step"] == STEPS)]
    mean = last.groupby(["method", "generator_lr"])["distance"].mean().reset_index()
    top = mean.loc[mean.groupby("method")["distance"].idxmin()]
    return dict(zip(top["method"], top["generator_lr"], strict=True))


def measure(method: str, generator_lr: float, seed: int) -> list[dict[str, float]]:
    """Train one generator, and look at it along the way."""
    generator_net, critic = networks(seed)
    held_out = real_samples(N_HELD_OUT, torch.Generator().manual_seed(seed + 10_000))
    latents = torch.randn(
        N_HELD_OUT, LATENT_DIM, generator=torch.Generator().manual_seed(seed + 20_000)
    )
    seen: list[dict[str, float]] = []

    def look(step: int) -> None:
        if step in SNAPSHOTS:
            with torch.no_grad():
                seen.append({"step": step, **quality(generator_net(latents), held_out)})

    estimates = train_wgan(
        generator_net,
        critic,
        real_samples,
        latent_dim=LATENT_DIM,
        constraint=METHODS[method],
        steps=STEPS,
        batch_size=128,
        critic_lr=CRITIC_LR,
        generator_lr=generator_lr,
        generator=torch.Generator().manual_seed(seed),
        on_step=look,
    ).set_index("step")["estimate"]
    return [{**row, "estimate": float(estimates[int(row["step"])])} for row in seen]


def networks(seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the generator and the critic that all methods start from."""
    torch.manual_seed(seed)
    slopes = lambda: nn.LeakyReLU(0.2)  # noqa: E731
    return mlp([LATENT_DIM, WIDTH, WIDTH, 2], slopes), mlp([2, WIDTH, WIDTH, 1], slopes)


def real_samples(n: int, generator: torch.Generator) -> Tensor:
    """Draw from eight Gaussians on a circle of radius 2."""
    return gaussian_ring(n, std=STD, generator=generator).inputs


def quality(samples: Tensor, held_out: Tensor) -> dict[str, float]:
    """Exact W₁ to held-out samples, modes found, and share of samples within 3 std of a mode."""
    coverage = mode_coverage(samples, ring_centres(), 3 * STD)
    return {
        "distance": wasserstein_distance(held_out, samples),
        "modes": coverage.share_of_modes,
        "near a mode": coverage.share_of_samples,
    }
