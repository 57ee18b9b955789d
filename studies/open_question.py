"""Chapter 4's study of the article's open question: (19) and (20) as regularizers of a classifier.

- **Compared**: (19) and (20) in eighteen forms, beside no term, l2, decoupled weight decay,
  dropout, early stopping and the spectral term (16).
- **Tuned**: one of seven strengths a method, each √10 times the last (dropout from 0.1 to 0.9,
  early stopping from 0.8 to 0.08 of the steps), for each seed on 400 validation images with as many
  wrong labels.
- **Criteria**: committed before the table, but the first run had been seen once, for the MLP;
  without it no end of an interval moves by more than 0.005.
- **Seeds**: ten.
- **Not done**: strengths beyond the seven, where the strongest was chosen.

The critic of (19) has one output and a segment between a real and a fake sample. A classifier has
ten outputs, a loss and labels, so "used directly" can mean several things, and all are tried: the
norm of the gradient with respect to the input of an output drawn at random (*logits*), of an output
less the largest other (*margin*), or of the loss; at the examples (*data*) or at a random point
between two of them (*between*); brought to 1 as in (19), kept at most at 1 as in (20), or brought
to 0.

MNIST, 200 training images, labels true or 40 % of them wrong. The best rival of a seed is the one
that does best on its validation images. Everything is done in float64, so that two machines agree,
and all strengths and the ten seeds of a method as one stack.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lipbook.lab import data, stacked
from lipbook.lab.data import LabelledData
from lipbook.lab.datasets import mnist
from lipbook.wgan import gradient_norms

QUANTITIES, PLACES, FORMS = (
    ("logits", "margin", "loss"),
    ("data", "between"),
    ("to 1", "at most 1", "to 0"),
)
#: (19) and (20) word for word: a gradient of the output, on random segments.
TWO_SIDED, ONE_SIDED = "logits, between, to 1", "logits, between, at most 1"


def _powers(middle: float) -> tuple[float, ...]:
    """Seven strengths, each √10 times the one before."""
    return tuple(float(f"{middle * 10 ** (k / 2):.2g}") for k in range(-3, 4))


#: The strengths tried, from the weakest. Weight decay's is AdamW's, dropout's a probability, early
#: stopping's the share of the steps that are taken; the others are λ.
GRIDS: dict[str, tuple[float, ...]] = {
    "none": (0.0,),
    "l2": _powers(1e-2),
    "weight decay": _powers(3.0),
    "dropout": (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9),
    "early stopping": (0.8, 0.6, 0.4, 0.27, 0.18, 0.12, 0.08),
    "spectral": _powers(0.1),
    **{
        f"{quantity}, {place}, {form}": _powers(0.3)
        for quantity, place, form in product(QUANTITIES, PLACES, FORMS)
    },
}
RIVALS = ("l2", "weight decay", "dropout", "early stopping", "spectral")
MODELS, NOISES, SEEDS = ("mlp", "cnn"), (0.4, 0.0), tuple(range(10))
N_TRAIN, N_VALIDATION, N_TEST, N_ATTACKED = 200, 400, 2000, 300
STEPS, BATCH, LR, RADIUS = 300, 50, 2e-3, 1.0
WIDTH, CHANNELS, CLASSES, SIDE = 128, 16, 10, 28

SHAPES: dict[str, stacked.Shapes] = {
    "mlp": {
        "W1": (SIDE * SIDE, WIDTH),
        "b1": (WIDTH,),
        "W2": (WIDTH, WIDTH),
        "b2": (WIDTH,),
        "W3": (WIDTH, CLASSES),
        "b3": (CLASSES,),
    },
    "cnn": {
        "W1": (9, CHANNELS),
        "b1": (CHANNELS,),
        "W2": (9 * CHANNELS, CHANNELS),
        "b2": (CHANNELS,),
        "W3": (SIDE * SIDE // 16 * CHANNELS, CLASSES),
        "b3": (CLASSES,),
    },
}
WEIGHTS = ("W1", "W2", "W3")

#: The claims whose criteria it is measured under.
CLAIMS = ("SR4",)

Cell = dict[str, Any]
Parameters = dict[str, Tensor]

#: In float64 a training of this length drifts by less between machines.
TOLERANCE = dict.fromkeys(("train", "validation", "test", "attack"), 0.02) | {"slope": 0.05}


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:  # noqa: ARG001
    """List the runs: each method with all its strengths and seeds; and by itself a middle one."""
    methods = ["none", "dropout", TWO_SIDED] if tiny else list(GRIDS)
    steps = 4 if tiny else STEPS
    return [
        {"part": part, "model": model, "noise": noise, "method": method, "steps": steps, "seed": 0}
        for part, noises in (("test", NOISES[:1] if tiny else NOISES), ("probe", NOISES[:1]))
        for noise, model, method in product(noises, MODELS[:1] if tiny else MODELS, methods)
    ]


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells that a core repeats in seconds: of the MLP, one training each."""
    names = ["part", "model", "noise", "method", "steps", "seed"]
    probes = (table["part"] == "probe") & (table["model"] == "mlp")
    return table.loc[probes, names].drop_duplicates().to_dict("records")


def measure(
    part: str, model: str, noise: float, method: str, steps: int, seed: int
) -> list[dict[str, float]]:
    """Train with each strength and seed, and return one row a training."""
    runs = SEEDS if part == "test" else (seed,)
    grid = GRIDS[method]
    strengths = grid if part == "test" else grid[len(grid) // 2 :][:1]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Stack(model, noise, method, strengths, runs, device).results(steps)


@cache
def examples(noise: float, seed: int) -> data.Splits:
    """Split the digits, and give a share of the training and validation labels a wrong class."""
    pixels, labels = mnist()
    whole = LabelledData(pixels.flatten(1).double() / 255, labels)
    parts = data.split(whole, train=N_TRAIN, validation=N_VALIDATION, test=N_TEST, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    noisy = (
        LabelledData(x, data.flip_labels(y, noise, generator=generator, n_classes=CLASSES))
        for x, y in parts[:2]
    )
    return data.Splits(*noisy, parts.test)  # type: ignore[call-arg]


class Stack:
    """Networks of one kind and method: strengths × runs, the runs of a strength side by side."""

    def __init__(
        self,
        model: str,
        noise: float,
        method: str,
        strengths: Sequence[float],
        runs: Sequence[int],
        device: str,
    ) -> None:
        self.model, self.method, self.runs, self.strengths = model, method, runs, strengths
        self.strength = torch.tensor(strengths, device=device).double().repeat_interleave(len(runs))
        self.draws = [torch.Generator().manual_seed(run) for run in runs]
        self.parts = [
            LabelledData(*(torch.stack(column).to(device) for column in zip(*part, strict=True)))
            for part in zip(*(examples(noise, run) for run in runs), strict=True)
        ]
        rows = stacked.initial(SHAPES[model], list(runs)).double().to(device)
        self.rows = rows.repeat(len(strengths), 1).requires_grad_()
        parts = self.parameters()
        self.u = {n: F.normalize(torch.ones_like(parts[n][:, 0]), dim=1) for n in WEIGHTS}

    def parameters(self) -> Parameters:
        """Return the parameters by name."""
        return stacked.parameters(self.rows, SHAPES[self.model])

    def drawn(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Draw from each run's generator: shape (runs, …)."""
        return torch.stack([draw(generator) for generator in self.draws]).to(self.rows.device)

    def spread(self, drawn: Tensor) -> Tensor:
        """Give each network what was drawn for its run."""
        return drawn.repeat(len(self.strengths), *[1] * (drawn.ndim - 1))

    def results(self, steps: int = STEPS) -> list[dict[str, float]]:
        """Train, and return a row for each network."""
        self.train(steps)
        found = []
        for k, strength in enumerate(self.strengths):
            rows = self.rows.detach()[k * len(self.runs) : (k + 1) * len(self.runs)]
            table = judged(stacked.parameters(rows, SHAPES[self.model]), self.parts)
            for i, run in enumerate(self.runs):
                values = {name: column[i].item() for name, column in table.items()}
                found.append({"run": run, "strength": strength, **values})
        return found

    def train(self, steps: int) -> None:
        """Take the steps of AdamW; early stopping keeps the weights of its step."""
        lr = torch.full_like(self.strength, LR)
        optimizer = stacked.Adam(self.rows, lr)
        early = self.method == "early stopping"
        stops = (self.strength * steps).round() if early else torch.full_like(self.strength, steps)
        kept = self.rows.detach().clone()
        decays = self.strength if self.method == "weight decay" else 0 * self.strength
        for step in range(steps):
            if step % (N_TRAIN // BATCH) == 0:
                order = self.drawn(lambda g: torch.randperm(N_TRAIN, generator=g))
            batch = order.roll(-BATCH * step, 1)[:, :BATCH]
            run = torch.arange(len(self.runs), device=batch.device)[:, None]
            x, y = (self.spread(part[run, batch]) for part in self.parts[0])
            p = self.parameters()
            logits = forward(p, x, self.masks())
            losses = cross_entropy(logits, y).mean(1) + self.strength * self.term(p, x, y)
            (gradient,) = torch.autograd.grad(losses.sum(), self.rows)
            with torch.no_grad():
                for name in WEIGHTS:
                    p[name].detach().mul_(1 - LR * decays[:, None, None])
            optimizer.step(gradient)
            kept = torch.where((stops == step + 1)[:, None], self.rows.detach(), kept)
        self.rows = kept

    def masks(self) -> list[Tensor]:
        """Return what dropout multiplies the hidden units with."""
        if self.method != "dropout":
            return []
        sizes = (WIDTH, WIDTH) if self.model == "mlp" else (SHAPES["cnn"]["W3"][0],)
        keep = 1 - self.strength[:, None, None]
        return [
            (self.spread(self.drawn(lambda g, n=size: torch.rand(BATCH, n, generator=g))) < keep)  # type: ignore[misc]
            / keep
            for size in sizes
        ]

    def term(self, p: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Return what the method's strength multiplies, shape (networks,)."""
        if self.method == "l2":
            return sum((p[n].square().sum((1, 2)) for n in WEIGHTS), 0 * self.strength)
        if self.method == "spectral":
            total = 0 * self.strength
            for name in WEIGHTS:
                norms, self.u[name] = stacked.spectral_step(p[name], self.u[name])
                total = total + norms.square()
            return total
        if ", " not in self.method:
            return 0 * self.strength
        quantity, place, form = self.method.split(", ")
        mixing = torch.ones(len(x), BATCH, 1, dtype=x.dtype, device=x.device)
        if place == "between":
            mixing = self.spread(self.drawn(lambda g: torch.rand(BATCH, 1, generator=g))).double()
        points = torch.lerp(x.roll(1, 1), x, mixing).requires_grad_()
        logits = forward(p, points)
        if quantity == "logits":
            which = self.spread(self.drawn(lambda g: torch.randint(CLASSES, (BATCH,), generator=g)))
            values = picked(logits, which)
        elif quantity == "margin":
            values = margin(logits, torch.where(mixing[..., 0] < 0.5, y.roll(1, 1), y))
        else:
            ends = [cross_entropy(logits, labels) for labels in (y.roll(1, 1), y)]
            values = torch.lerp(*ends, mixing[..., 0])  # type: ignore[call-overload]
        (gradients,) = torch.autograd.grad(values.sum(), points, create_graph=True)
        norms = gradient_norms(gradients.flatten(0, 1)).unflatten(0, gradients.shape[:2])  # type: ignore[no-untyped-call]
        off = norms if form == "to 0" else norms - 1
        return (off.clamp(min=0.0) if form == "at most 1" else off).square().mean(1)  # type: ignore[no-any-return]


def forward(p: Parameters, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """Map images (networks, n, pixels) to logits (networks, n, CLASSES)."""
    if p["W1"].shape[1] == x.shape[2]:
        h = F.relu(stacked.affine(x, p["W1"], p["b1"]))
        h = F.relu(stacked.affine(h * masks[0] if masks else h, p["W2"], p["b2"]))
    else:
        h = _convolved(x.unflatten(2, (SIDE, SIDE, 1)), p["W1"], p["b1"])  # type: ignore[no-untyped-call]
        h = _convolved(h, p["W2"], p["b2"]).flatten(2)
    return stacked.affine(h * masks[-1] if masks else h, p["W3"], p["b3"])


def _convolved(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3×3 with stride 2, and ReLU: from (networks, n, side, side, channels) to half the side."""
    networks, n, side, _, _ = h.shape
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(2, 3, 2).unfold(3, 3, 2)  # (…, side / 2, side / 2, channels, 3, 3)
    out = stacked.affine(patches.reshape(networks, n * (side // 2) ** 2, -1), weight, bias)
    return F.relu(out).unflatten(1, (n, side // 2, side // 2))  # type: ignore[no-any-return, no-untyped-call]


def picked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of a class, shape (networks, n)."""
    return logits.gather(2, labels[..., None])[..., 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each example, shape (networks, n)."""
    return logits.logsumexp(2) - picked(logits, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the label less the largest other, shape (networks, n)."""
    others = logits.scatter(2, labels[..., None], -torch.inf)
    return picked(logits, labels) - others.amax(2)


def judged(p: Parameters, parts: Sequence[LabelledData]) -> dict[str, Tensor]:
    """Return accuracies, under attack too, and the mean slope of the margin: shape (networks,)."""
    with torch.no_grad():
        found = {
            name: (forward(p, x).argmax(2) == y).double().mean(1)
            for name, (x, y) in zip(("train", "validation", "test"), parts, strict=True)
        }
    x, y = (part[:, :N_ATTACKED] for part in parts[2])
    attacked = attack(p, x, y)
    with torch.no_grad():
        found["attack"] = (forward(p, attacked).argmax(2) == y).double().mean(1)
    points = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(margin(forward(p, points), y).sum(), points)
    return found | {"slope": slopes.norm(dim=2).mean(1)}


def attack(p: Parameters, x: Tensor, y: Tensor, steps: int = 10) -> Tensor:
    """Move images by at most RADIUS up the loss: chapter 1's attack, on a stack."""
    moved = x
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(forward(p, moved), y).sum(), moved)
        step = moved.detach() + RADIUS / 4 * F.normalize(slope, dim=2) - x
        step = step * (RADIUS / step.norm(dim=2, keepdim=True)).clamp(max=1.0)
        moved = (x + step).clamp(0, 1)
    return moved.detach()


def select(table: pd.DataFrame) -> pd.DataFrame:
    """Return each training's row of the best validation accuracy, of equals the strongest."""
    own = table[table["part"] == "test"]
    strongest_first = own[::-1]  # within a method, strengths rise
    names = ["model", "noise", "method", "run"]
    best = strongest_first.groupby(names, sort=False)["validation"].idxmax()
    return own.loc[sorted(best)]


def gains(
    table: pd.DataFrame, model: str, noise: float, method: str, over: Sequence[str] = ("none",)
) -> pd.Series[float]:
    """Return by how much a method is more accurate on the test images than the best of others.

    One number a run. Among several others, each run takes the best on its validation images.
    """
    chosen = select(table)
    own = chosen[(chosen["model"] == model) & (chosen["noise"] == noise)]
    ours = own[own["method"] == method].set_index("run")["test"]
    others = own[own["method"].isin(over)]
    best = others.loc[others.groupby("run")["validation"].idxmax()].set_index("run")["test"]
    return ours - best
