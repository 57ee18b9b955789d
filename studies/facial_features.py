"""Chapter 6a's study of what the Fréchet distance hardly sees: whether generated heads have faces.

- **Compared**: the weights divided inside or after each step, by the article's estimate, in the
  trainings of `small_panels` without BatchNorm.
- **Tuned**: nothing here: the step sizes are the article's and those that `small_panels` chose, by
  the distance after 300 steps on two seeds, not by faces.
- **Criteria**: stated before the first test.
- **Seeds**: five, as planned, all new (3 to 7): the filter was tried on pictures of the seeds 0, 1
  and 2.
- **Not done**: a search beyond 0.006, the largest of the four step sizes of `small_panels`, which
  the division after the step chose, hardly before 0.002; BatchNorm, the article's width, and more
  than 1,500 steps of the generator.

In `small_panels`, without BatchNorm, generators whose critic is divided inside the forward pass
paint eyes, glasses and mouths, and those whose critic is divided after each step paint heads and
hardly a face. That was seen by eyes that knew which is which, and the distance does not confirm it.
The yardstick here is made for the question: the matched filter `FacialFeatures`, which is 0 for
bare heads and 1 for drawn faces, in the mean (`facial_ladder`).

Besides, the stable ranks of the critic's convolutions are kept, of which chapter 6 says that a
division after the step brings them down.

Cost, from `small_panels`: 0.3 to 0.45 s a cycle on one core. Twenty tests × 1,500 cycles are 2.5 to
4 core-hours; seed by seed, so that a run that is cut off has all four kinds of the first seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import islice, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import studies
from lipbook.lab.gan import Rules, train_gan
from lipbook.matrix_norms import stable_rank
from studies._pictures import (
    TINY,
    device,
    generated,
    images,
    networks,
    normalize,
    numbers,
    project,
)
from studies.facial_ladder import judge
from studies.panels import CRITIC_STEPS, KIND, LATENT_DIM
from studies.small_panels import BATCH_SIZE, WIDTH

#: Step sizes: the article's, and those that `small_panels` found best without BatchNorm.
EQUAL = 2e-4
BEST = {"inside": 7e-4, "after": 6e-3}
SEEDS = (3, 4, 5, 6, 7)  # type: tuple[int, ...]
STOPS = (15, 100, 300, 600, 1000, 1500)
#: Generated images that are looked at.
N_JUDGED = 1000
#: How far a value may be off on another kind of machine, in the rows of `beginning`.
TOLERANCE = {"features": 0.1, "log distance": 0.35}
#: A training that ran out of time is a shorter training.
PARTIAL = True
#: The claims whose criteria it is measured under.
CLAIMS = ("SP8",)
#: The grids that the page shows, by what their cells hold, and the step.
PICTURES = (({"seed": SEEDS[0]}, STOPS[-1]),)

Cell = dict[str, Any]


def cells(*, tiny: bool = False) -> list[Cell]:
    """List the trainings, seed by seed."""
    steps = TINY if tiny else STOPS[-1]
    return [
        {"division": where, "lr": lr, "steps": steps, "seed": seed}
        for seed, (where, best) in product(SEEDS[: 1 if tiny else None], BEST.items())
        for lr in (EQUAL, best)
    ]


def watch(division: str, lr: float, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Train one variant, and yield what is seen of its images and of its critic."""
    nets = generator, critic = networks(KIND, WIDTH, LATENT_DIM, seed)
    if division == "inside":
        normalize(critic, "article")
    _, for_latents = studies.held_out(seed)
    latents = torch.randn(N_JUDGED, LATENT_DIM, generator=for_latents).to(device())
    training = train_gan(
        *nets,
        images(KIND).pixels,
        Rules(critic_steps=CRITIC_STEPS, critic_lr=lr, generator_lr=lr, batch_size=BATCH_SIZE),
        latent_dim=LATENT_DIM,
        stops=[stop for stop in STOPS if stop < steps] + [steps],
        seed=seed,
        after_step=project("article") if division == "after" else None,
    )
    for step in training:
        fake = generated(generator, latents)
        seen, distance = judge()(fake), images(KIND).yardstick.judge(fake)["distance"]
        kept = ((fake[:32].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        yield {
            "step": step,
            "features": float(seen.mean()),
            "spread": float(seen.std()),
            "log distance": float(np.log(distance)),
            **ranks(critic),
            **({"grid": kept} if step == STOPS[-1] else {}),
        }


def ranks(critic: nn.Module) -> dict[str, float]:
    """Return the stable rank of each convolution's weight, as the critic uses it."""
    kernels = [layer.weight.detach() for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    return {f"rank {k + 1}": float(stable_rank(w.flatten(1))) for k, w in enumerate(kernels)}


def measure(**cell: Any) -> list[dict[str, Any]]:
    """Return the rows of one cell, without the images."""
    return numbers(watch(**cell))


def ends(table: pd.DataFrame, division: str, *, best: bool) -> pd.Series[float]:
    """Return the features of a division's images at the end, one value a seed."""
    lr = BEST[division] if best else EQUAL
    own = table[(table["division"] == division) & (table["lr"] == lr)]
    return own[own["step"] == STOPS[-1]].set_index("seed")["features"]


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells whose beginning is repeated, for `workflow.study.recheck`."""
    names = ["division", "lr", "steps", "seed"]
    return table[names].drop_duplicates().to_dict("records")


def beginning(**cell: Any) -> list[dict[str, Any]]:
    """Return the row of the first steps of a cell."""
    return numbers(islice(watch(**cell), 1))
