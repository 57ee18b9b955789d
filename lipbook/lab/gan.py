"""Trainings of image generators that keep a GPU busy, and are the same on a CPU.

`lipbook.lab.training.train_wgan` is the loop to read. This one is for the long studies: other
losses and penalties, data that stay on the device as bytes, no number that the host waits for, and
on a GPU one graph for a whole cycle of critic steps and a generator step. Whatever is random is
drawn on the CPU in blocks, so that a training sees the same batches and latents on every device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Adam

from lipbook._checks import check_count, check_positive
from lipbook.lab.datasets import scaled
from lipbook.wgan import gradient_norms

Loss = Literal["wasserstein", "hinge"]
Penalty = Literal["none", "two-sided", "one-sided", "R1"]

_BLOCK = 50  # cycles whose draws travel to the device together
_WARM_UP = 3  # cycles before one is captured


@dataclass(frozen=True)
class Rules:
    """What the two networks play for, and how.

    Attributes
    ----------
    loss : {"wasserstein", "hinge"}
        (18), or ``mean max(0, 1 − f(real)) + mean max(0, 1 + f(fake))`` (Lim & Ye 2017, Miyato
        et al. 2018). The generator raises the critic's mean score under both.
    penalty : {"none", "two-sided", "one-sided", "R1"}
        λ times (19), λ times (20), or ``γ/2 mean ‖∇f(real)‖²`` (Mescheder et al. 2018).
    strength : float
        λ or γ.
    critic_steps : int
        Of the critic for each of the generator.
    critic_lr, generator_lr : float
        Adam's step sizes; its β are the article's, 0.5 and 0.999.
    batch_size : int
        Real and fake images in a step.

    Examples
    --------
    >>> Rules(penalty="R1", critic_steps=1).strength
    10.0
    >>> Rules(penalty="R2")
    Traceback (most recent call last):
    ValueError: penalty must be one of none, two-sided, one-sided, R1, got 'R2'
    """

    loss: Loss = "wasserstein"
    penalty: Penalty = "none"
    strength: float = 10.0
    critic_steps: int = 5
    critic_lr: float = 2e-4
    generator_lr: float = 2e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, choices in (("loss", get_args(Loss)), ("penalty", get_args(Penalty))):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("critic_steps", "batch_size"):
            check_count(getattr(self, name), name)
        for name in ("strength", "critic_lr", "generator_lr"):
            check_positive(getattr(self, name), name)


class Draws(NamedTuple):
    """The randomness of a block of cycles, one row a cycle."""

    latents: Tensor  # (block, critic_steps + 1, batch, latent): the last is the generator's
    places: Tensor  # (block, critic_steps, batch): which real images
    mixing: Tensor  # (block, critic_steps, batch): ε of (21)


def train_gan(
    generator_net: nn.Module,
    critic: nn.Module,
    pixels: Tensor,
    rules: Rules,
    *,
    latent_dim: int,
    stops: Sequence[int],
    seed: int,
    after_step: Callable[[nn.Module], None] | None = None,
    graphs: bool = True,
) -> Iterator[int]:
    """Train in place up to each stop in turn, and hand control back there.

    Parameters
    ----------
    generator_net, critic : nn.Module
        From standard normal latents (n, latent_dim) to images in [−1, 1], and from images to one
        score each; on the device of the pixels.
    pixels : Tensor, shape (n, channels, height, width)
        The real images as uint8.
    rules : Rules
        Loss, penalty and schedule.
    latent_dim : int
        Number of latents of an image.
    stops : sequence of int
        Numbers of generator steps, increasing, from 1.
    seed : int
        Decides batches, latents and points of the penalty.
    after_step : callable, optional
        Changes the critic after each of its steps.
    graphs : bool, default True
        On a GPU, run a cycle as one CUDA graph from the fourth on.

    Yields
    ------
    int
        The stop that has been reached. The networks are in training mode then; nothing has
        waited for the device.

    Raises
    ------
    ValueError
        If the stops do not increase from 1 on.

    Examples
    --------
    >>> nets = nn.Sequential(nn.Linear(2, 1), nn.Unflatten(1, (1, 1, 1))), nn.Sequential(
    ...     nn.Flatten(), nn.Linear(1, 1))
    >>> grey = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    >>> list(train_gan(*nets, grey, Rules(critic_steps=1), latent_dim=2, stops=[1, 3], seed=0))
    [1, 3]
    """
    if list(stops) != sorted(set(stops)) or stops[0] < 1:
        raise ValueError(f"stops must increase from 1 on, got {list(stops)}")
    cycle = _Cycle(generator_net, critic, pixels, rules, latent_dim, seed, after_step)
    cycle.captures &= graphs
    done = 0
    for stop in stops:
        for _ in range(stop - done):
            cycle.advance()
        done = stop
        yield stop


class _Cycle:
    """Some critic steps and a generator step, from buffers that a graph may read."""

    def __init__(
        self,
        generator_net: nn.Module,
        critic: nn.Module,
        pixels: Tensor,
        rules: Rules,
        latent_dim: int,
        seed: int,
        after_step: Callable[[nn.Module], None] | None,
    ) -> None:
        self.generator_net, self.critic, self.pixels = generator_net, critic, pixels
        self.rules, self.after_step, self.latent_dim = rules, after_step, latent_dim
        self.random = torch.Generator().manual_seed(seed)
        self.on_gpu = pixels.is_cuda
        self.optimizers = [
            Adam(
                [p for p in net.parameters() if p.requires_grad],
                lr=lr,
                betas=(0.5, 0.999),
                fused=self.on_gpu,
                capturable=self.on_gpu,
            )
            for net, lr in ((critic, rules.critic_lr), (generator_net, rules.generator_lr))
        ]
        # With BatchNorm in the critic, real and fake images are batches of their own.
        self.apart = any(isinstance(layer, nn.BatchNorm2d) for layer in critic.modules())
        self.buffers = Draws(*(x.to(pixels.device) for x in self._drawn()))
        self.row = torch.zeros(1, dtype=torch.int64, device=pixels.device)
        self.count = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captures = self.on_gpu
        critic.train()
        generator_net.train()

    def advance(self) -> None:
        """Go on by one cycle."""
        if self.count and self.count % _BLOCK == 0:
            fresh = self._drawn()  # while the device is busy with the last block
            for buffer, values in zip(self.buffers, fresh, strict=True):
                buffer.copy_(values)
            self.row.zero_()
        self.count += 1
        if self.graph is not None:
            self.graph.replay()
        elif not self.captures:
            self._play()
        elif self.count <= _WARM_UP:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._play()
            torch.cuda.current_stream().wait_stream(side)
        else:
            self._capture()

    def _capture(self) -> None:
        """Make a graph of the cycle, and run it; where something waits for a number, do without."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._play()
        except RuntimeError as error:
            warnings.warn(f"no graph of this training: {error}", stacklevel=2)
            torch.cuda.synchronize()
            self.captures = False
            self._play()
        else:
            self.graph = graph
            graph.replay()  # which the capture did not do

    def _drawn(self) -> Draws:
        rules, rng = self.rules, self.random
        steps, batch = rules.critic_steps, rules.batch_size
        return Draws(
            torch.randn(_BLOCK, steps + 1, batch, self.latent_dim, generator=rng),
            torch.randint(len(self.pixels), (_BLOCK, steps, batch), generator=rng),
            torch.rand(_BLOCK, steps, batch, generator=rng),
        )

    @torch.enable_grad()  # whatever the caller's mode
    def _play(self) -> None:
        latents, places, mixing = (x.index_select(0, self.row)[0] for x in self.buffers)
        for k in range(self.rules.critic_steps):
            real = scaled(self.pixels.index_select(0, places[k]))
            with torch.no_grad():
                fake = self.generator_net(latents[k])
            with parametrize.cached():  # a normalized weight is one weight for the whole step
                loss = critic_objective(self.critic, real, fake, mixing[k], self.rules, self.apart)
            self.optimizers[0].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizers[0].step()
            if self.after_step is not None:
                self.after_step(self.critic)
        loss = -self.critic(self.generator_net(latents[-1])).mean()
        self.optimizers[1].zero_grad()
        loss.backward(inputs=list(self.generator_net.parameters()))
        self.optimizers[1].step()
        self.row.add_(1)


def critic_objective(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    mixing: Tensor,
    rules: Rules,
    apart: bool = False,
) -> Tensor:
    """Return what a step of the critic minimizes, penalty included, shape ().

    Parameters
    ----------
    critic : nn.Module
        Its score of an image depends on that image alone, unless `apart`.
    real, fake : Tensor, shape (n, channels, height, width)
        Images.
    mixing : Tensor, shape (n,)
        ε of (21).
    rules : Rules
        Loss and penalty.
    apart : bool, default False
        Score the real and the fake images as two batches, not as one.

    Examples
    --------
    >>> triple = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.constant_(triple[1].weight, 3.0)
    >>> images = torch.zeros(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), torch.rand(4)
    >>> critic_objective(triple, *images, Rules(penalty="two-sided", strength=1.0)).item()
    4.0
    """
    n = len(real)
    joined = torch.cat([real, fake])
    if rules.penalty == "R1":
        joined.requires_grad_()
    scores = critic(joined) if not apart else torch.cat([critic(x) for x in joined.split(n)])  # type: ignore[no-untyped-call]
    of_real, of_fake = scores[:n], scores[n:]
    if rules.loss == "hinge":
        loss = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
    else:
        loss = of_fake.mean() - of_real.mean()
    if rules.penalty == "none":
        return loss
    if rules.penalty == "R1":
        (slopes,) = torch.autograd.grad(of_real.sum(), joined, create_graph=True)
        return loss + rules.strength / 2 * slopes[:n].flatten(1).square().sum(1).mean()
    points = torch.lerp(fake, real, mixing.view(-1, *[1] * (real.ndim - 1))).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    excess = gradient_norms(slopes) - 1
    if rules.penalty == "one-sided":
        excess = excess.clamp(min=0.0)
    return loss + rules.strength * excess.square().mean()
