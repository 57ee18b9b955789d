"""Chapter 6's study of SP6: the time of a step with spectral normalization and with a penalty.

- **Compared**: the time of a critic's step without a constraint, with normalization and with three
  penalties, in the networks of `rivals` and `panels`.
- **Tuned**: nothing.
- **Criteria**: committed before the table was measured; of the second, a part that was timed where
  the page is run was dropped afterwards.
- **Seeds**: none; a time is the median of seven rounds on a GPU, of three on one core.
- **Not done**: other cards; on one core the article's own width.

Cycles of five critic steps and one generator step of every method in turn, so that whatever else
the machine does meets all of them; on a GPU as one CUDA graph, and launched one operation at a
time; on a CPU with one thread, one cycle a round. A time is that of a cycle over its five critic
steps. Times are of this machine; ratios are the result.

Cost: 15 s on a GPU and a minute on one core of a CPU, alone on the machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lipbook.lab.gan import Rules, train_gan
from studies import _pictures
from studies._pictures import images, networks, normalize

ALONE = True
CLAIMS = ("SP6",)
METHODS = ("plain", "SN", "two-sided", "one-sided", "R1")
#: Kind of images and width; the last is the article's.
NETWORKS = {
    "digits": ("mnist", 32),
    "small faces": ("faces 32", 16),
    "faces, quarter": ("faces 64", 16),
    "faces, article": ("faces 64", 64),
}
LATENT_DIM, CRITIC_STEPS = 100, 5
WARM_UP, ROUNDS = 5, 7

#: Times are repeated nowhere: another machine has others.
TOLERANCE: dict[str, float] = {}

Cell = dict[str, Any]


def cells(*, tiny: bool = False) -> list[Cell]:
    """List the networks, and ways to run them that this machine has."""
    on_gpu = torch.cuda.is_available()
    ways = [("graph", 5), ("eager", 3)] if on_gpu else []
    plan = [
        {"network": name, "way": way, "cycles": cycles, "seed": 0}
        for name in NETWORKS
        for way, cycles in ways
    ]
    narrow = ["digits"] if tiny else ["digits", "small faces", "faces, quarter"]
    return plan + [{"network": name, "way": "one core", "cycles": 1, "seed": 0} for name in narrow]


def measure(network: str, way: str, cycles: int, seed: int) -> list[dict[str, Any]]:
    """Return the median time of a cycle of each method, over its critic steps, and quartiles."""
    kind, width = NETWORKS[network]
    place = torch.device("cpu") if way == "one core" else _pictures.device()
    pixels = images(kind).pixels.to(place)
    torch.backends.cudnn.benchmark = width >= 32  # as the panels do
    rounds, warm_up = (3, 1) if way == "one core" else (ROUNDS, WARM_UP)
    trainings = {}
    for method in METHODS:
        nets = networks(kind, width, LATENT_DIM, seed)
        if method == "SN":
            normalize(nets[1], "warm")
        trainings[method] = train_gan(  # type: ignore[misc]
            *(net.to(place) for net in nets),  # type: ignore[arg-type]
            pixels,  # type: ignore[arg-type]
            Rules(penalty=method if method not in ("plain", "SN") else "none"),  # type: ignore[arg-type]
            latent_dim=LATENT_DIM,
            stops=[warm_up] + [warm_up + cycles * (k + 1) for k in range(rounds)],
            seed=seed,
            graphs=way == "graph",
        )
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(rounds + 1):
        for method, training in trainings.items():
            begin = time.perf_counter()
            next(training)
            if place.type == "cuda":
                torch.cuda.synchronize()
            if number:  # after the warm-up
                times[method].append((time.perf_counter() - begin) / cycles / CRITIC_STEPS)
    return [
        {
            "method": method,
            "milliseconds": 1e3 * float(np.median(found)),
            "lower": 1e3 * float(np.quantile(found, 0.25)),
            "upper": 1e3 * float(np.quantile(found, 0.75)),
        }
        for method, found in times.items()
    ]


def repeatable(table: object) -> list[Cell]:  # noqa: ARG001
    """Return nothing: a time is not repeated."""
    return []
