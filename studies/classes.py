"""Chapter 5's study of many classes, and of the pairs between which a critic is penalized.

- **Compared**: penalties between any two samples, as (21) says, or two of one class, each two-sided
  or one-sided; R1; normalized weights.
- **Tuned**: three strengths × two step sizes a method and number of classes, on one seed, by the
  sum of `in class` and `coverage` after 1,000 steps.
- **Criteria**: committed before the table was measured.
- **Seeds**: six.
- **Not done**: more than 2,000 steps: with 300 classes no method is at its end by then.

A conditional generator and a conditional critic, as in :cite:`miyato2018cgans`, learn letters of
$K$ classes, 36 images of 28×28 a class. Both are dense, with two hidden layers of 128 units; a
class is one vector of each. The fakes of a step have the classes of its real samples, 128 of them.
R1 goes with the logistic loss that it was made for, the others with (18). One critic step goes to
each of the generator; all are compared at equal steps. What reads the letters is a small
convolutional network, which is right for 96 to 98 of 100 new ones.

All networks are rows of one stack.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbook.lab import stacked
from lipbook.lab.classification import train_classifier
from lipbook.lab.glyphs import MOST_CLASSES, SIZE, glyphs
from lipbook.wgan import gradient_norms

COUNTS = (300, 10, 100, 30)  #: In order of priority.
#: Strengths tried: λ of (19) and (20), γ of R1, the norm given to each normalized weight.
GRIDS: dict[str, tuple[float, ...]] = {
    "any": (1.0, 10.0, 100.0),
    "within": (1.0, 10.0, 100.0),
    "any, one-sided": (1.0, 10.0, 100.0),
    "within, one-sided": (1.0, 10.0, 100.0),
    "R1": (0.1, 1.0, 10.0),
    "SN": (1.0, 2.0, 4.0),
}
STEP_SIZES = (1e-3, 3e-3)
TUNING_SEEDS, TEST_SEEDS, PROBE_SEED = (100,), tuple(range(6)), 200
STEPS, TUNING_STEPS, PROBE_STEPS, BATCH = 2000, 1000, 20, 128
STOPS = (PROBE_STEPS, 500, 1000, STEPS)  #: Where the networks are looked at.
N_EACH, N_READ, N_LOOK, NEIGHBOURS = 36, 72, 1200, 5
STEEP = 1.5  #: Norms above this count as too steep.
LATENT, HIDDEN, PIXELS = 32, 128, SIZE * SIZE
_AT_ONCE = 64  # networks looked at together

GENERATOR: stacked.Shapes = {
    "latent": (LATENT, HIDDEN),
    "class": (MOST_CLASSES, HIDDEN),
    "b1": (HIDDEN,),
    "W2": (HIDDEN, HIDDEN),
    "b2": (HIDDEN,),
    "W3": (HIDDEN, PIXELS),
    "b3": (PIXELS,),
}
CRITIC: stacked.Shapes = {
    "W1": (PIXELS, HIDDEN),
    "b1": (HIDDEN,),
    "W2": (HIDDEN, HIDDEN),
    "b2": (HIDDEN,),
    "out": (HIDDEN, 1),
    "b3": (1,),
    "class": (MOST_CLASSES, HIDDEN),
}
NORMALIZED = ("W1", "W2", "out", "class")

#: The claims whose criteria it is measured under.
CLAIMS = ("WG5",)

Cell = dict[str, Any]
Rows = list[dict[str, Any]]

#: Of the probes: in twenty steps, two machines drift apart by less.
TOLERANCE = {
    **dict.fromkeys(("in class", "coverage", "steep within", "steep any", "reader"), 0.08),
    **dict.fromkeys(("norm within", "norm any", "norm real"), 0.05),
    **dict.fromkeys(("off within", "off any"), 0.05),
}


def cells(found: pd.DataFrame | None = None, *, tiny: bool = False) -> list[Cell]:
    """List the runs: probes, the grids on the tuning seeds and, once these are there, the tests.

    A cell trains all its seeds at once, and of the tuning all its settings, as one stack; its own
    seed is their first.
    """
    short, long = (3, 3) if tiny else (TUNING_STEPS, STEPS)
    plan = [
        _cell("probe", 10, m, PROBE_STEPS, PROBE_SEED, (g[1], STEP_SIZES[1]))
        for m, g in GRIDS.items()
    ]
    for count in COUNTS[:2] if tiny else COUNTS:
        plan += [_cell("tuning", count, method, short, TUNING_SEEDS[0]) for method in GRIDS]
        for method in GRIDS:
            setting = None if found is None else choose(found, count, method)
            if setting is not None:
                plan.append(_cell("test", count, method, long, TEST_SEEDS[0], setting))
    return plan


def _cell(
    part: str,
    n_classes: int,
    method: str,
    steps: int,
    seed: int,
    setting: tuple[float, float] = (0.0, 0.0),
) -> Cell:
    names = {"part": part, "n_classes": n_classes, "method": method}
    return {**names, "strength": setting[0], "lr": setting[1], "steps": steps, "seed": seed}


def choose(table: pd.DataFrame, n_classes: int, method: str) -> tuple[float, float] | None:
    """Return the strength and step size of the best tuning runs, by class and coverage alike.

    None as long as the tuning has not ended.
    """
    own = table[
        (table["part"] == "tuning")
        & (table["n_classes"] == n_classes)
        & (table["method"] == method)
        & (table["step"] == table["steps"])
    ]
    if own.empty:
        return None
    scores = own.assign(score=own["in class"] + own["coverage"])
    strength, lr = scores.groupby(["strength used", "lr used"])["score"].mean().idxmax()  # type: ignore[misc]
    return float(strength), float(lr)  # type: ignore[has-type]


def repeatable(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the cells that a core repeats in seconds."""
    names = ["part", "n_classes", "method", "strength", "lr", "steps", "seed"]
    return table.loc[table["part"] == "probe", names].drop_duplicates().to_dict("records")


class Setting(NamedTuple):
    """What one pair of networks is trained with."""

    n_classes: int
    method: str
    strength: float
    lr: float
    seed: int


def measure(
    part: str, n_classes: int, method: str, strength: float, lr: float, steps: int, seed: int
) -> Rows:
    """Train a stack of networks, and return a row for each of them at each of the `STOPS`."""
    seeds = {"tuning": TUNING_SEEDS, "test": TEST_SEEDS, "probe": (seed,)}[part]
    pairs = [(strength, lr)]
    if part == "tuning":
        pairs = [(s, lr) for s in GRIDS[method] for lr in STEP_SIZES]
    settings = [Setting(n_classes, method, *pair, run) for pair in pairs for run in seeds]
    return list(train(settings, steps, "cuda" if torch.cuda.is_available() else "cpu"))


class Draws:
    """What a stack draws: each seed from its own generator on the CPU, whatever the device."""

    def __init__(self, settings: Sequence[Setting], device: str) -> None:
        seeds = sorted({s.seed for s in settings})
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.place = torch.tensor([seeds.index(s.seed) for s in settings], device=device)
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, shape (networks, *shape)."""
        return self._spread([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers uniform on [0, 1), shape (networks, *shape)."""
        return self._spread([torch.rand(shape, generator=g) for g in self.generators])

    def _spread(self, drawn: list[Tensor]) -> Tensor:
        return torch.stack(drawn).to(self.device, non_blocking=True)[self.place]


class Pair:
    """A stack of generators and one of critics, with their optimizers."""

    def __init__(self, settings: Sequence[Setting], device: str) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.draws = Draws(settings, device)
        seeds = [s.seed for s in settings]
        self.generators, self.critics = (
            stacked.initial(shapes, seeds).to(device).requires_grad_()
            for shapes in (GENERATOR, CRITIC)
        )
        lr = column([s.lr for s in settings])
        self.mover, self.updater = (
            stacked.Adam(rows, lr, betas=(0.0, 0.9)) for rows in (self.generators, self.critics)
        )
        methods = [s.method for s in settings]
        self.counts = column([s.n_classes for s in settings])
        self.normalized = column([m == "SN" for m in methods]).bool()
        self.logistic = column([m == "R1" for m in methods]).bool()[:, None]
        self.one_sided = column(["one-sided" in m for m in methods]).bool()[:, None]
        self.any_pair = column([m.startswith("any") for m in methods]).bool()[:, None, None]
        self.strength = column([s.strength for s in settings])
        self.penalty = torch.where(self.normalized, 0.0, self.strength)
        parts = stacked.parameters(self.critics.detach(), CRITIC)
        self.u = {n: F.normalize(torch.ones_like(parts[n][:, 0]), dim=1) for n in NORMALIZED}

    def labels(self, uniform: Tensor) -> Tensor:
        """Return classes, uniform below each network's number of them."""
        return (uniform * self.counts.view(-1, *[1] * (uniform.ndim - 1))).long()

    def generate(self, latents: Tensor, labels: Tensor, some: slice = slice(None)) -> Tensor:
        """Map latents (networks, n, LATENT) and labels (networks, n) to (networks, n, PIXELS)."""
        p = stacked.parameters(self.generators[some], GENERATOR)
        h = F.relu(stacked.affine(latents, p["latent"], p["b1"]) + rows_of(p["class"], labels))
        h = F.relu(stacked.affine(h, p["W2"], p["b2"]))
        return torch.tanh(stacked.affine(h, p["W3"], p["b3"]))

    def weights(self) -> dict[str, Tensor]:
        """Return the critics' parameters, those of SN divided by their estimated norms."""
        p = stacked.parameters(self.critics, CRITIC)
        if self.normalized.any():
            for name in NORMALIZED:
                norms, self.u[name] = stacked.spectral_step(p[name], self.u[name])
                scale = torch.where(self.normalized, self.strength / norms, 1.0)
                p[name] = p[name] * scale[:, None, None]
        return p

    def critic_step(self, real: Tensor, labels: Tensor) -> None:
        """Update the critics on real samples (networks, n, PIXELS) and fakes of their classes."""
        latents, mixing = self.draws.normal(BATCH, LATENT), self.draws.uniform(BATCH, 1)
        with torch.no_grad():
            fake = self.generate(latents, labels)
        p = self.weights()
        of_real, of_fake = score(p, real, labels), score(p, fake, labels)
        loss = torch.where(
            self.logistic, F.softplus(-of_real) + F.softplus(of_fake), of_fake - of_real
        )
        total = loss.mean(1)
        if self.penalty.any():
            total = total + self.penalty * self.off(p, real, fake, labels, mixing)
        self.updater.step(torch.autograd.grad(total.sum(), self.critics)[0])

    def off(
        self, p: dict[str, Tensor], real: Tensor, fake: Tensor, labels: Tensor, mixing: Tensor
    ) -> Tensor:
        """Return what each network's penalty is the multiple of: (19), (20), or half of R1's."""
        partner = torch.where(self.any_pair, fake.roll(1, 1), fake)
        mixing = torch.where(self.logistic[..., None], 1.0, mixing)  # R1: at the real sample
        norms = slopes(p, torch.lerp(partner, real, mixing), labels, create_graph=True)
        off = torch.where(self.logistic, norms, norms - 1)
        off = torch.where(self.one_sided, off.clamp(min=0.0), off)
        return torch.where(self.logistic[:, 0], 0.5, 1.0) * off.square().mean(1)

    def generator_step(self) -> None:
        """Update the generators."""
        labels = self.labels(self.draws.uniform(BATCH))
        fake = self.generate(self.draws.normal(BATCH, LATENT), labels)
        scores = score(self.weights(), fake, labels)
        loss = torch.where(self.logistic, F.softplus(-scores), -scores)
        self.mover.step(torch.autograd.grad(loss.mean(1).sum(), self.generators)[0])


def rows_of(tables: Tensor, labels: Tensor) -> Tensor:
    """Look labels (networks, n) up in tables (networks, classes, width)."""
    first = torch.arange(len(tables), device=tables.device)[:, None] * tables.shape[1]
    return F.embedding(labels + first, tables.flatten(0, 1))


def score(p: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Scores (networks, n) of images (networks, n, PIXELS): a projection on the class."""
    h = F.leaky_relu(stacked.affine(images, p["W1"], p["b1"]), 0.2)
    h = F.leaky_relu(stacked.affine(h, p["W2"], p["b2"]), 0.2)
    of_class = (h * rows_of(p["class"], labels)).sum(2)
    return stacked.affine(h, p["out"], p["b3"])[..., 0] + of_class


def slopes(
    p: dict[str, Tensor], points: Tensor, labels: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Gradient norms (networks, n) of the scores in the images, the class held."""
    points = points.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        score(p, points, labels).sum(), points, create_graph=create_graph
    )
    return gradient_norms(gradient.flatten(0, 1)).unflatten(0, gradient.shape[:2])  # type: ignore[no-any-return, no-untyped-call]


def train(settings: Sequence[Setting], steps: int, device: str) -> Iterator[dict[str, Any]]:
    """Train a stack, and yield a row for each pair of networks at each stop."""
    # Of a training's products ten bits are enough, and on a GPU they are several times as fast.
    torch.backends.cuda.matmul.allow_tf32 = True
    images = samples(max(s.n_classes for s in settings)).to(device)
    pair = Pair(settings, device)
    for step in range(1, steps + 1):
        draw = pair.draws.uniform(2, BATCH)
        labels, which = pair.labels(draw[:, 0]), (draw[:, 1] * N_EACH).long()
        pair.critic_step(images[labels, which], labels)
        pair.generator_step()
        if step in STOPS or step == steps:
            for setting, found in zip(settings, look(pair, settings, device), strict=True):
                used = {"strength used": setting.strength, "lr used": setting.lr}
                yield {"step": step, "run": setting.seed, **used, **found}


@cache
def samples(n_classes: int, seed: int = 0, n_each: int = N_EACH) -> Tensor:
    """Return letters in [-1, 1], shape (n_classes, n_each, PIXELS)."""
    inputs = 2 * glyphs(n_classes, n_each, seed=seed).inputs - 1
    return inputs.flatten(1).unflatten(0, (n_classes, n_each))  # type: ignore[no-any-return, no-untyped-call]


@cache
@torch.enable_grad()
def reader(n_classes: int, device: str) -> tuple[nn.Sequential, nn.Sequential, float]:
    """Train what reads letters: the features, the whole classifier, its accuracy on new letters."""
    torch.manual_seed(0)
    features = nn.Sequential(
        *(nn.Unflatten(1, (1, SIZE, SIZE)), nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1568, 128), nn.ReLU()),
    )
    net = nn.Sequential(features, nn.Linear(128, n_classes)).to(device)
    images = samples(n_classes, seed=2, n_each=N_READ).to(device).flatten(0, 1)
    labels = torch.arange(n_classes, device=device).repeat_interleave(N_READ)
    epochs = max(20, 900 // n_classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.05, total_iters=epochs * -(-len(images) // 256)
    )
    train_classifier(
        *(net, images, labels),
        epochs=epochs,
        batch_size=256,
        optimizer=optimizer,
        schedule=schedule,
    )
    held_out, truth = unseen(n_classes)
    with torch.no_grad():
        right = net(held_out.to(device)).argmax(1).cpu() == truth
    return features, net, right.double().mean().item()


@cache
def unseen(n_classes: int) -> tuple[Tensor, Tensor]:
    """Return new letters, shape (N_LOOK, PIXELS), with all classes in turn, and their classes."""
    n_each = -(-N_LOOK // n_classes)
    images = samples(n_classes, seed=1, n_each=n_each).transpose(0, 1).flatten(0, 1)
    return images[:N_LOOK], torch.arange(len(images))[:N_LOOK] % n_classes


def look(pair: Pair, settings: Sequence[Setting], device: str) -> Iterator[dict[str, float]]:
    """Judge each pair of networks, by samples that nobody was trained on."""
    weights = {name: part.detach() for name, part in pair.weights().items()}
    for first in range(0, len(settings), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        part = settings[some]
        real, labels = (
            torch.stack(parts).to(device)
            for parts in zip(*(unseen(s.n_classes) for s in part), strict=True)
        )
        random = Draws([s._replace(seed=s.seed + 10_000) for s in part], device)
        latents, mixing = random.normal(N_LOOK, LATENT), random.uniform(N_LOOK, 1)
        with torch.no_grad():
            fake = pair.generate(latents, labels, some)
        p = {name: weight[some] for name, weight in weights.items()}
        places = {
            "within": torch.lerp(fake, real, mixing),
            "any": torch.lerp(fake.roll(1, 1), real, mixing),
            "real": real,
        }
        norms = {name: slopes(p, points, labels) for name, points in places.items()}
        for k, setting in enumerate(part):
            found = {name: norm[k].double() for name, norm in norms.items()}
            yield {
                **judged(real[k], fake[k], labels[k], setting.n_classes, device),
                **{f"norm {name}": norm.mean().item() for name, norm in found.items()},
                **{f"off {n}": (found[n] - 1).abs().mean().item() for n in ("within", "any")},
                **{
                    f"steep {n}": (found[n] > STEEP).double().mean().item()
                    for n in ("within", "any")
                },
            }


@torch.no_grad()
def judged(
    real: Tensor, fake: Tensor, labels: Tensor, n_classes: int, device: str
) -> dict[str, float]:
    """Return the share of fakes in their class, and the coverage of Naeem et al. (2020).

    That is the share of real samples with a fake among their nearest: no farther, in the reader's
    features, than the fifth real neighbour.
    """
    features, net, accuracy = reader(n_classes, device)
    right = net(fake).argmax(1) == labels
    of_real, of_fake = features(real), features(fake)
    radii = torch.cdist(of_real, of_real).kthvalue(NEIGHBOURS + 1, dim=1).values
    covered = torch.cdist(of_real, of_fake).amin(1) <= radii
    return {
        "in class": right.double().mean().item(),
        "coverage": covered.double().mean().item(),
        "reader": accuracy,
    }


def last(table: pd.DataFrame, column: str, n_classes: int, method: str) -> pd.Series[float]:
    """Return a column at the end of the test runs, one number a run."""
    own = table[
        (table["part"] == "test")
        & (table["n_classes"] == n_classes)
        & (table["method"] == method)
        & (table["step"] == table["steps"])
    ]
    return own.set_index("run")[column]
