"""Whether the yardstick of generated images ranks what is known, before anything is judged by it.

- **Compared**: real images that the yardstick has not seen, made worse step by step: by noise, by
  blur, by keeping only some of their kinds (of digits, of hair), by exchanging the left halves of
  some.
- **Tuned**: nothing.
- **Criteria**: none of a claim; what has to grow and to fall is said below.
- **Seeds**: one, for digits and for faces of two sizes.
- **Not done**: generated images, whose faults may be of other kinds.

At every rung the distance must grow; the coverage must fall with the kinds that are left out, and
the share of attributes that are read with confidence with noise, blur and exchanged halves.

Cost: a second a cell on one core, once the readers are trained (5 minutes, kept in ``build/data``).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbook.lab.datasets import scaled
from lipbook.lab.fidelity import Yardstick
from studies import _pictures
from studies._pictures import N_TRAINING, images, labelled_pixels

KINDS = tuple(N_TRAINING)
#: How far each goes: the deviation of the noise, the edge of the blur in pixels, the share of the
#: kinds that are left out, the share of the images that get another's left half.
LADDERS: dict[str, tuple[float, ...]] = {
    "noise": (0.0, 0.1, 0.2, 0.4, 0.8),
    "blur": (1, 3, 5, 9),
    "fewer kinds": (0.0, 0.2, 0.5, 0.8),
    "exchanged halves": (0.0, 0.1, 0.3, 1.0),
}
SEEDS = (0,)

#: The reader is trained anew on another machine, and sees a little differently.
TOLERANCE = {"distance": 0.5, "confident": 0.1, "coverage": 0.1}

Cell = dict[str, Any]


def cells() -> list[Cell]:
    """List the rungs of every ladder for every kind of images."""
    rungs = [(ladder, level) for ladder, levels in LADDERS.items() for level in levels]
    return [
        {"kind": kind, "ladder": ladder, "level": float(level), "seed": seed}
        for seed, kind, (ladder, level) in product(SEEDS, KINDS, rungs)
    ]


def measure(kind: str, ladder: str, level: float, seed: int) -> dict[str, float]:
    """Return what the yardstick says of half of its own real images, made worse, by the others."""
    pixels, labels = labelled_pixels(kind)
    held = slice(N_TRAINING[kind], None)
    real, kinds = scaled(pixels[held]), labels[held, 0]
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    half, other = order.chunk(2)
    yardstick = Yardstick(images(kind).yardstick.reader, real[half].to(_pictures.device()))
    worse = worsened(real[other], kinds[other], ladder, level, seed)
    return yardstick.judge(worse.to(_pictures.device()))


def worsened(real: Tensor, kinds: Tensor, ladder: str, level: float, seed: int) -> Tensor:
    """Return images made worse to a level.

    Parameters
    ----------
    real : Tensor, shape (n, channels, height, width)
        Images in [−1, 1].
    kinds : Tensor, shape (n,)
        Which digit, or which hair.
    ladder, level
        One of `LADDERS`, and how far.
    seed : int
        Decides what is drawn.
    """
    rng = torch.Generator().manual_seed(seed)
    if ladder == "noise":
        return (real + level * torch.randn(real.shape, generator=rng)).clamp(-1, 1)
    if ladder == "blur":
        edge = int(level)
        padded = F.pad(real, [edge // 2] * 4, mode="replicate")
        return F.avg_pool2d(padded, edge, stride=1)
    if ladder == "fewer kinds":
        n = int(kinds.max()) + 1
        left = torch.randperm(n, generator=rng)[: n - round(level * n)]
        kept = real[torch.isin(kinds, left)]
        return kept[torch.randint(len(kept), (len(real),), generator=rng)]
    mixed, n = real.clone(), round(level * len(real))
    middle = real.shape[3] // 2
    mixed[:n, :, :, :middle] = real[:n].roll(1, 0)[:, :, :, :middle]
    return mixed
