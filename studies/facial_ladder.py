"""Whether the filter of faces' features ranks what is known, before anything is judged by it.

- **Compared**: a thousand drawn faces on four ladders: a growing share of them replaced by bare
  heads, or all of them with less contrast, with more blur, or out of place.
- **Tuned**: nothing.
- **Criteria**: none; no claim is judged by this table.
- **Seeds**: one, of the faces, which are others than those of the filter.
- **Not done**: generated images, but for a look at some of other seeds than `facial_features` has;
  faces that are not drawn.

`FacialFeatures` is made of a thousand drawn faces and the same heads without eyes, brows, nose,
mouth and glasses.

Cost: seven seconds on one core to unpack the faces, once they are drawn (40 s, kept in
``build/data``), then a second a cell.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lipbook.lab.datasets import faces, scaled
from lipbook.lab.fidelity import FacialFeatures
from studies._pictures import device
from studies.yardstick import worsened

#: Faces of a seed of their own, and the same heads: those that the filter is made of, and those of
#: the ladders.
N_PATTERN, N_HELD, DRAWN_SEED = 1000, 1000, 1
#: How far each goes: the share of bare heads, of the contrast that is taken, the edge of the blur
#: and the shift in pixels.
LADDERS: dict[str, tuple[float, ...]] = {
    "bare heads": (0.0, 0.25, 0.5, 0.75, 1.0),
    "less contrast": (0.0, 0.4, 0.8),
    "blur": (1, 3, 5, 9),
    "out of place": (0, 2, 4, 8),
}
#: Sums are rounded in another order on another machine.
TOLERANCE = {"features": 1e-3, "spread": 1e-3}


def cells() -> list[dict[str, Any]]:
    """List the rungs of the ladders."""
    rungs = [(ladder, float(level)) for ladder, levels in LADDERS.items() for level in levels]
    return [{"ladder": ladder, "level": level, "seed": DRAWN_SEED} for ladder, level in rungs]


def measure(ladder: str, level: float, seed: int) -> dict[str, float]:
    """Return the mean and the standard deviation of what the filter says of a rung."""
    seen = judge()(rung(ladder, level, seed).to(device()))
    return {"features": float(seen.mean()), "spread": float(seen.std())}


@cache
def drawn(*, features: bool) -> Tensor:
    """Return drawn faces, or the same heads bare."""
    return scaled(faces(N_PATTERN + N_HELD, DRAWN_SEED, features=features).pixels)


@cache
def judge() -> FacialFeatures:
    """Return the filter, on the device of the cells."""
    pair = (drawn(features=features)[:N_PATTERN].to(device()) for features in (True, False))
    return FacialFeatures(*pair)


def rung(ladder: str, level: float, seed: int) -> Tensor:
    """Return drawn faces that the filter has not seen, made worse to a level."""
    real = drawn(features=True)[N_PATTERN:].clone()
    if ladder == "bare heads":
        n = round(level * N_HELD)
        real[:n] = drawn(features=False)[N_PATTERN:][:n]
        return real
    if ladder == "less contrast":
        return real * (1 - level)
    if ladder == "out of place":
        return real.roll(int(level), dims=2)
    return worsened(real, torch.zeros(N_HELD), ladder, level, seed)
