"""What the studies of SP5 that two processor cores measure share: a search in rounds, then tests.

A *block* is a loss and a number of critic steps for each of the generator. In each, every method
has three strengths times five pairs of step sizes on four seeds in short runs (*probe*); its three
best are trained again, longer (*tuning*). Where the best of these lies at an edge of what was
tried, its neighbours beyond that edge are trained as long (*wider*): each value moved alone, and
all of them together. The best of both rounds is trained on other seeds (*test*).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, product
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

SEARCH_SEEDS = (100, 101, 102, 103)
#: How many settings of a method the second round of the search tries.
FINALISTS = 3
#: From a value at the edge to the next beyond it.
BEYOND = {"SN": 2.0, "two-sided": 10.0, "one-sided": 10.0, "R1": 10.0, "step size": 3.0}
#: The columns of a table that tell its cells.
COLUMNS = ["part", "loss", "critic_steps", "method", *SETTING, "steps", "seed"]

Cell = dict[str, Any]
Block = tuple[Loss, int]


@dataclass(frozen=True)
class Search:
    """A comparison of methods on one kind of images.

    Attributes
    ----------
    data : str
        The images, of `studies._pictures.images`.
    width, latent_dim, batch_size : int
        Of the networks and of a step.
    blocks : Sequence of (loss, critic steps)
        In the order in which they are measured.
    steps : Mapping
        Generator steps of a run, by the critic steps for each and by its part.
    test_seeds : Sequence of int
        Seeds that no part of the search has seen.
    """

    data: str
    width: int
    latent_dim: int
    batch_size: int
    blocks: Sequence[Block]
    steps: Mapping[int, Mapping[str, int]]
    test_seeds: Sequence[int]

    def cells(self, found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
        """List the runs by priority: each part of a method when the one before has ended."""
        # R1, which no criterion names, last.
        order = sorted(product(self.blocks, METHODS), key=lambda at: at[1] == "R1")
        runs = (self._rounds(found, block, method, tiny) for block, method in order)
        return list(chain.from_iterable(runs))

    def _rounds(
        self, found: pd.DataFrame | None, block: Block, method: str, tiny: bool
    ) -> Iterator[Cell]:
        """Yield the runs of a method in a block, as far as those that have ended tell them."""
        loss, critic_steps = block
        settings: Sequence[Sequence[float]] = [
            (strength, *step_sizes)
            for strength, step_sizes in product(STRENGTHS[method], STEP_SIZES)
        ][: 1 if tiny else None]
        rivals: list[Cell] = []
        for part, steps in self.steps[critic_steps].items():
            seeds = self.test_seeds if part == "test" else SEARCH_SEEDS
            runs: list[Cell] = [
                {"part": part, "loss": loss, "critic_steps": critic_steps, "method": method}
                | dict(zip(SETTING, setting, strict=True))
                | {"steps": TINY if tiny else steps, "seed": seed}
                for seed in seeds[: 1 if tiny else None]
                for setting in settings
            ]
            yield from runs
            rivals = rivals + runs if part == "wider" else runs
            ranked = _ranked(found, rivals)
            if not ranked:
                return
            after = {"probe": ranked[:FINALISTS], "tuning": _beyond(method, ranked[0])}
            settings = after.get(part, ranked[:1])

    def watch(
        self,
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
        """Train a generator; yield what the yardstick says at the end, in a test along the way."""
        nets = networks(self.data, self.width, self.latent_dim, seed)
        if method == "SN":
            normalize(nets[1], "warm", coefficient=strength)
        shares = SHARES if part == "test" else (0.1, 1.0)
        seen = watched(
            self.data,
            nets,
            Rules(
                loss,
                penalty_of(method),
                strength,
                critic_steps,
                critic_lr,
                generator_lr,
                self.batch_size,
            ),
            latent_dim=self.latent_dim,
            stops=sorted({1, *(max(1, round(share * steps)) for share in shares)}),
            seed=seed,
            n_judged=N_JUDGED if steps > TINY else 100,
        )
        return told(seen, steps if part == "test" else None)

    def measure(self, **cell: Any) -> list[dict[str, Any]]:
        """Return the rows of one cell, without the images."""
        return numbers(self.watch(**cell))

    def beginning(self, **cell: Any) -> list[dict[str, Any]]:
        """Return the rows up to a tenth of a cell."""
        return numbers(islice(self.watch(**cell), 2))


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


def probes(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells of a table whose beginning is repeated: the shortest."""
    return table.loc[table["part"] == "probe", COLUMNS].drop_duplicates().to_dict("records")
