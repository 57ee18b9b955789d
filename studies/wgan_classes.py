"""Chapter 5's study of many classes: whether the penalty fails there, and through its pairing.

- **Compared**: penalties between any two samples or two of one class, two-sided and one-sided, with
  1 to 32 classes.
- **Tuned**: nothing: λ = 10 and one step size for all.
- **Criteria**: the thresholds were fixed after a pilot of single runs and before ten seeds were
  measured; the catalogue's entries were written after the table.
- **Seeds**: ten, five for the controls.
- **Not done**: λ at its best for each pairing; one control has 32 times the λ.

In the criteria, all is measured with 32 classes in 64 dimensions, two-sided if nothing else is
said; *any* and *within* are the pairs. *Wide* are critics of four times the width, with any pairs.
*The floor* is the distance between real samples and held-out ones.

Every class is one and the same task: its real samples lie at a centre, its fakes a distance of 2
away in a direction of its own, and the centres lie 10 apart. The samples are shared out among the
classes; nothing else changes with their number. First a critic is trained between the two fixed
samples; then the fakes, as free points, follow it, with four updates of the critic to one of
theirs. A sample carries its class as its last coordinate. Critics see it only where they are
conditional.

The penalty was to fail at its own task if, with 32 classes, the norm is above 1.2 at more than half
of the points on the segments within classes, and pairing within classes prevents it; 1.2 allows
twice the excess that the law gives one class. And the points were to end at least a tenth farther
from held-out data than with pairs within classes. The first plan would have called one failure of
two *holds with caveats*; by the second, it is the points that decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR

from lipbook.lab.networks import mlp
from lipbook.lab.training import WGAN_ADAM, critic_step, fit_critic, generator_step
from lipbook.lab.transport import wasserstein_distance
from lipbook.wgan import GradientPenalty, gradient_norms, gradient_penalty

SHIFT, SPACING, STD = 2.0, 10.0, 0.02
N_SAMPLES = 128
CRITIC_STEPS, FLOW_STEPS, CRITIC_STEPS_EACH = 600, 150, 4
CRITIC_LR, POINT_LR = 1e-3, 0.03
#: Norms above this count as too large: the excess that one class has by the formula, doubled.
EXCESS = 1 + 2 * SHIFT / (2 * 10)
MOST, TENTH = 0.5, 1.1  #: The criterion: the share too steep, and the distance of any over within.

Cell = dict[str, int | float | str]
#: What holds unless a control changes one thing: more steps, say, or λ times the classes.
USUAL: Cell = {"dimension": 64, "critic": "plain", "weight": 10.0, "width": 64, "patience": 1}
PLANE: Cell = {"dimension": 2}
CONDITIONAL: Cell = {"critic": "conditional"}
PATIENT: Cell = {"patience": 4}
WIDE: Cell = {"width": 256}
HEAVY: Cell = {"weight": 320.0}

#: Between instruction sets a training drifts by up to a third of this.
TOLERANCE = {
    **dict.fromkeys(("estimate", "between"), 0.1),
    **dict.fromkeys(("too steep between", "too steep real", "too steep elsewhere"), 0.3),
    "direction": 0.1,
    "distance after": 0.3,
}


def cells() -> list[Cell]:
    """List the runs: classes, sides and pairings with ten seeds, and controls with five."""
    main: list[Cell] = [
        {"n_classes": n_classes, "side": side, "pairing": pairing, "seed": seed}
        for seed in range(10)
        for side in ("two", "one")
        for pairing, counts in (("any", (1, 2, 4, 8, 16, 32)), ("within", (2, 8, 32)))
        for n_classes in counts
    ]
    controls: list[Cell] = [
        {"n_classes": 32, "side": side, "pairing": pairing, "seed": seed, **change}
        for seed in range(5)
        for side in ("two", "one")
        for pairing, changes in (
            ("any", (PLANE, CONDITIONAL, PATIENT, WIDE, HEAVY)),
            ("within", (PLANE, CONDITIONAL, PATIENT, WIDE)),
        )
        for change in changes
    ]
    return [USUAL | cell for cell in main + controls]


def measure(
    n_classes: int,
    side: str,
    pairing: str,
    dimension: int,
    critic: str,
    weight: float,
    width: int,
    patience: int,
    seed: int,
) -> dict[str, float]:
    """Train a critic between fixed samples, look at it, then let the fakes follow it."""
    generator = torch.Generator().manual_seed(seed)
    real, fake, held_out = samples(n_classes, dimension, generator)
    net = make_critic(dimension, n_classes if critic == "conditional" else 0, width, seed)
    penalty = PairedPenalty(weight, one_sided=side == "one", within=pairing == "within")
    fit_critic(
        net, real, fake, penalty, steps=CRITIC_STEPS * patience, lr=CRITIC_LR, generator=generator
    )
    found = look(net, real, fake, generator)
    after = flow(net, penalty, real, fake, steps=FLOW_STEPS * patience, generator=generator)
    return {**found, "distance after": distance(held_out, after)}


def samples(
    n_classes: int, dimension: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw real samples, fakes and held-out real samples, each of shape (n, dimension + 1).

    Sample i is of class i modulo `n_classes`. In the plane the centres lie on a square grid, in
    more dimensions each on an axis of its own.
    """
    if dimension == 2:
        side = math.isqrt(n_classes - 1) + 1
        ticks = SPACING * torch.arange(side, dtype=torch.float64)
        centres = torch.cartesian_prod(ticks, ticks)[:n_classes]
        centres = centres - centres.mean(0)
    else:
        centres = SPACING / math.sqrt(2) * torch.eye(n_classes, dimension, dtype=torch.float64)
    shifts = SHIFT * F.normalize(torch.randn(n_classes, dimension, generator=generator).double())
    labels = torch.arange(N_SAMPLES) % n_classes

    def draw(places: Tensor) -> Tensor:
        noise = STD * torch.randn(N_SAMPLES, dimension, generator=generator).double()
        return torch.cat([places[labels] + noise, labels[:, None].double()], dim=1)

    return draw(centres), draw(centres + shifts), draw(centres)


class Critic(nn.Module):
    """An MLP on the sample, or on the sample and its class, one-hot."""

    def __init__(self, net: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.net, self.n_classes = net, n_classes

    def forward(self, samples: Tensor) -> Tensor:
        """Map (n, dimension + 1) to (n, 1)."""
        points, labels = samples[:, :-1], samples[:, -1]
        if self.n_classes:
            points = torch.cat([points, F.one_hot(labels.long(), self.n_classes)], dim=1)
        scores: Tensor = self.net(points)
        return scores


def make_critic(dimension: int, n_classes: int, width: int, seed: int) -> Critic:
    """Return a critic with two hidden layers; `n_classes` = 0 for one that sees no classes."""
    torch.manual_seed(seed)
    net = mlp([dimension + n_classes, width, width, 1], lambda: nn.LeakyReLU(0.2))
    return Critic(net.double(), n_classes)


@dataclass(frozen=True)
class PairedPenalty(GradientPenalty):
    """The gradient penalty, between any two samples or between two of one class."""

    within: bool = False

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Pair at random; the class that a conditional critic sees is the real sample's."""
        order = torch.randperm(len(fake), generator=generator)
        fake = fake[order]
        if self.within:
            real, fake = (x[x[:, -1].argsort(stable=True)] for x in (real, fake))
        labels = real[:, -1:]
        return self.strength * gradient_penalty(
            lambda x: critic(torch.cat([x, labels], dim=1)),
            real[:, :-1],
            fake[:, :-1],
            one_sided=self.one_sided,
            generator=generator,
        )


def distance(real: Tensor, fake: Tensor) -> float:
    """Exact W₁ between the samples without their classes."""
    return wasserstein_distance(real[:, :-1], fake[:, :-1])


def look(
    critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Compare a critic's estimate with W₁, and its gradients with what the theory asks of them."""
    epsilon = torch.rand(len(real), 1, generator=generator).double()
    between = torch.cat([torch.lerp(fake, real, epsilon)[:, :-1], real[:, -1:]], dim=1)
    pool = torch.cat([real, fake])
    elsewhere = pool.mean(0) + pool.std(0) * torch.randn(pool.shape, generator=generator).double()
    elsewhere[:, -1] = pool[:, -1]
    norms = {
        name: gradient_norms(gradients(critic, x))
        for name, x in (("between", between), ("real", real), ("elsewhere", elsewhere))
    }
    with torch.no_grad():
        estimate = (critic(real).mean() - critic(fake).mean()).item()
    way = F.normalize((real - fake)[:, :-1])
    along = (F.normalize(gradients(critic, fake)) * way).sum(1)
    return {
        "estimate": estimate / distance(real, fake),
        "between": norms["between"].mean().item(),
        **{f"too steep {name}": (n > EXCESS).double().mean().item() for name, n in norms.items()},
        "direction": along.mean().item(),
    }


def gradients(critic: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """Gradients of the scores in the points, without the class."""
    samples = samples.detach().requires_grad_()
    gradient: Tensor = torch.autograd.grad(critic(samples).sum(), samples)[0]
    return gradient[:, :-1]


class Points(nn.Module):
    """A generator without a network: its samples are its parameters."""

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        self.points, self.labels = nn.Parameter(samples[:, :-1].clone()), samples[:, -1:]

    def forward(self, latents: Tensor) -> Tensor:  # noqa: ARG002  (as a generator is called)
        """Return all samples, whatever the latents."""
        return torch.cat([self.points, self.labels], dim=1)


def flow(
    critic: nn.Module,
    penalty: PairedPenalty,
    real: Tensor,
    fake: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Let the fakes follow the critic, which goes on learning, in steps that shrink to nothing."""
    points, latents = Points(fake), torch.empty(0)
    updater = WGAN_ADAM(critic.parameters(), lr=CRITIC_LR)
    mover = WGAN_ADAM(points.parameters(), lr=POINT_LR)
    shrink = LinearLR(mover, start_factor=1.0, end_factor=1e-3, total_iters=steps)
    for _ in range(steps):
        for _ in range(CRITIC_STEPS_EACH):
            critic_step(critic, updater, penalty, real, points(latents).detach(), generator)
        generator_step(points, critic, mover, latents)
        shrink.step()
    moved: Tensor = points(latents)
    return moved.detach()
