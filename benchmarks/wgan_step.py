"""Compare the WGAN trainer with bare hand-written loops of the same work, as ratios of medians.

Three ratios, each wanted at about 1: `train_wgan` and `fit_critic` against a loop without records,
checks or options (at most 1.05), and the step with `GradientPenalty` against a straightforward
double backward (at most 1). Every round runs all the loops for a few steps, one after the other
and in an order of its own, so that a slow moment of the machine hits them alike; one thread on a
CPU is timed by what it used of it, whatever else runs there. Both sides start from the same weights
and draw the same random numbers: how far apart they end is the last column.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import begin, interleaved, options_of, print_heading, seconds
from lipbook.lab.networks import mlp
from lipbook.lab.training import WGAN_ADAM, fit_critic, train_wgan
from lipbook.notebook.runtime import Run
from lipbook.wgan import Constraint, GradientPenalty, Unconstrained, WeightClipping

CRITIC_STEPS = 5
LATENT_DIM = 16
CLIP, WEIGHT = 0.1, 10.0
LR = 1e-4


class Task(NamedTuple):
    """Networks, and real samples to draw from."""

    generator_net: nn.Module
    critic: nn.Module
    data: Tensor
    batch_size: int
    steps: int = 20  # of the generator in a round, a multiple of what history measures in


def points() -> Task:
    """Return the networks of the plane: three hidden layers of 128."""
    data = torch.randn(4096, 2)
    return Task(mlp([LATENT_DIM, 128, 128, 2]), mlp([2, 128, 128, 128, 1]), data, 256)


def images() -> Task:
    """Return small convolutional networks for 32×32 colour images."""
    generator_net = nn.Sequential(
        *(nn.Linear(LATENT_DIM, 64 * 64), nn.Unflatten(1, (64, 8, 8)), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1), nn.Tanh()),
    )
    critic = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(32, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Flatten(), nn.Linear(64 * 64, 1)),
    )
    return Task(generator_net, critic, torch.randn(256, 3, 32, 32), 16)


TASKS = {"points 256×2": points, "images 16×3×32×32": images}
CONSTRAINTS: dict[str, Constraint] = {
    "none": Unconstrained(),
    "clipping": WeightClipping(CLIP),
    "gradient penalty": GradientPenalty(WEIGHT),
}


def bare_critic_step(
    task: Task, adam: torch.optim.Optimizer, name: str, real: Tensor, fake: Tensor, rng: Any
) -> None:
    """Update the critic as one would write it down for one constraint."""
    loss = task.critic(fake).mean() - task.critic(real).mean()
    if name == "gradient penalty":
        epsilon = torch.rand(len(real), *[1] * (real.ndim - 1), generator=rng).to(real.device)
        x = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
        scores = task.critic(x)
        (gradient,) = torch.autograd.grad(
            scores, x, grad_outputs=torch.ones_like(scores), create_graph=True
        )
        loss = loss + WEIGHT * (gradient.flatten(1).norm(2, dim=1) - 1).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    if name == "clipping":
        with torch.no_grad():
            for parameter in task.critic.parameters():
                parameter.clamp_(-CLIP, CLIP)


def bare_training(task: Task, name: str) -> None:
    """Train both networks by hand."""
    rng = torch.Generator().manual_seed(0)
    device = task.data.device
    critic_adam = WGAN_ADAM(task.critic.parameters(), lr=LR)
    generator_adam = WGAN_ADAM(task.generator_net.parameters(), lr=LR)
    for _ in range(task.steps):
        for _ in range(CRITIC_STEPS):
            rows = torch.randint(len(task.data), (task.batch_size,), generator=rng)
            latents = torch.randn(task.batch_size, LATENT_DIM, generator=rng).to(device)
            with torch.no_grad():
                fake = task.generator_net(latents)
            bare_critic_step(task, critic_adam, name, task.data[rows.to(device)], fake, rng)
        task.critic.requires_grad_(False)
        latents = torch.randn(task.batch_size, LATENT_DIM, generator=rng).to(device)
        loss = -task.critic(task.generator_net(latents)).mean()
        generator_adam.zero_grad()
        loss.backward()
        generator_adam.step()
        task.critic.requires_grad_(True)


def our_training(task: Task, name: str) -> None:
    """Train both networks by the book."""

    def sample_real(n: int, rng: torch.Generator) -> Tensor:
        return task.data[torch.randint(len(task.data), (n,), generator=rng).to(task.data.device)]

    train_wgan(
        *(task.generator_net, task.critic, sample_real),
        latent_dim=LATENT_DIM,
        constraint=CONSTRAINTS[name],
        steps=task.steps,
        critic_steps=CRITIC_STEPS,
        batch_size=task.batch_size,
        critic_lr=LR,
        generator_lr=LR,
    )


def bare_fit(task: Task, name: str) -> None:
    """Train the critic alone by hand, between the halves of the data."""
    rng = torch.Generator().manual_seed(0)
    adam = WGAN_ADAM(task.critic.parameters(), lr=LR)
    real, fake = task.data.chunk(2)
    for _ in range(task.steps * CRITIC_STEPS):
        rows = [
            torch.randint(len(x), (task.batch_size,), generator=rng).to(x.device)
            for x in (real, fake)
        ]
        bare_critic_step(task, adam, name, real[rows[0]], fake[rows[1]], rng)


def our_fit(task: Task, name: str) -> None:
    """Train the critic alone by the book."""
    real, fake = task.data.chunk(2)
    fit_critic(
        *(task.critic, real, fake, CONSTRAINTS[name]),
        steps=task.steps * CRITIC_STEPS,
        lr=LR,
        batch_size=task.batch_size,
    )


Loop = Callable[[Task, str], None]
PAIRS: dict[str, tuple[Loop, Loop]] = {
    "train_wgan": (our_training, bare_training),
    "fit_critic": (our_fit, bare_fit),
}


def weights(task: Task, loop: Loop, name: str) -> Tensor:
    """Return both networks' weights after a loop from the task's own."""
    task = copy.deepcopy(task)
    loop(task, name)
    networks = (task.generator_net, task.critic)
    return torch.cat([nn.utils.parameters_to_vector(net.parameters()) for net in networks])


def compare(
    task: Task, pair: str, name: str, rounds: int, run: Run, progress: tqdm[Any]
) -> dict[str, float]:
    """Return the median time of both loops, and the median over rounds of their ratio."""
    ours, bare = PAIRS[pair]
    difference = (weights(task, ours, name) - weights(task, bare, name)).abs().max().item()

    def update(loop: Loop) -> float:
        """Time one update of the critic, its share of the generator's included."""
        whole = seconds(partial(loop, copy.deepcopy(task), name), run)
        return 1e3 * whole / (task.steps * CRITIC_STEPS)

    timers = {"ours": partial(update, ours), "bare": partial(update, bare)}
    ms = interleaved(timers, rounds, progress)
    return {
        "ours ms": ms["ours"].median(),
        "bare ms": ms["bare"].median(),
        "ours / bare": (ms["ours"] / ms["bare"]).median(),
        "weights apart": difference,
    }


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = options_of("benchmarks.wgan_step", __doc__, rounds=9)
    options = parser.parse_args()
    run = begin(parser, options)
    rows = {}
    with tqdm(
        total=len(TASKS) * len(PAIRS) * len(CONSTRAINTS) * options.rounds, desc="rounds"
    ) as progress:
        for label, build in TASKS.items():
            task = build()
            task = task._replace(
                generator_net=task.generator_net.to(run.device),
                critic=task.critic.to(run.device),
                data=task.data.to(run.device),
            )
            for pair in PAIRS:
                for name in CONSTRAINTS:
                    rows[label, pair, name] = compare(
                        task, pair, name, options.rounds, run, progress
                    )
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["task", "loop", "constraint"])
    print_heading(
        run,
        f"float32, medians of {options.rounds} interleaved rounds, ms for an update of the critic\n"
        "(and, in train_wgan, a fifth of one of the generator)",
    )
    formats = dict.fromkeys(("ours ms", "bare ms", "ours / bare"), "{:.2f}".format)
    print(table.to_string(formatters={**formats, "weights apart": "{:.0e}".format}))


if __name__ == "__main__":
    main()
