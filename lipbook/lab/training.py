"""Chapter 5: a critic against two fixed samples, and a generator against a critic.

Both loops take the same critic step. The numbers of a step stay on the device until a block of
steps is full, so that no step waits for them; a value that is not finite is found then, and
reported with the step that it came from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer
from tqdm import trange

from lipbook._checks import check_count, check_positive, check_tensor
from lipbook._layers import evaluation_mode
from lipbook._weights import constant
from lipbook.wgan import (
    Constraint,
    critic_loss,
    generator_loss,
    gradient_norms,
    hinge_critic_loss,
    wasserstein_estimate,
)

OptimizerFactory = Callable[..., Optimizer]
Sampler = Callable[[int, torch.Generator], Tensor]

#: The optimizer of Gulrajani et al. 2017: no momentum, because the critic's loss keeps changing.
WGAN_ADAM: OptimizerFactory = partial(Adam, betas=(0.0, 0.9))

#: What `loss=` may be: the loss of the critic, and of the generator.
LOSSES = {
    "wasserstein": (critic_loss, generator_loss),
    "hinge": (hinge_critic_loss, generator_loss),
}

_BLOCK = 100  # steps between two looks at the numbers
_MEASURE_EVERY = 20  # steps between two gradient norms: those of images are dear


@torch.inference_mode(False)
@torch.enable_grad()
def fit_critic(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    constraint: Constraint,
    *,
    steps: int,
    lr: float = 1e-3,
    optimizer: OptimizerFactory = WGAN_ADAM,
    batch_size: int | None = None,
    loss: str = "wasserstein",
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train a critic between two fixed samples, in place, and leave it in evaluation mode.

    This is (17) with a generator that stands still. A constraint that pairs real and fake samples,
    such as (21), meets a new random pairing in every step.

    Parameters
    ----------
    critic : nn.Module
        From a batch to one score a sample.
    real, fake : Tensor, shape (n, ...) and (m, ...)
        On the device and of the dtype of the critic. A gradient penalty over whole samples needs
        n = m.
    constraint : Constraint
        What keeps the critic in bounds, `GradientPenalty()` say.
    steps : int
        Steps of the optimizer.
    lr : float, default 1e-3
        Its step size.
    optimizer : callable, default Adam with betas (0, 0.9)
        Called as ``optimizer(parameters, lr=lr)``: `torch.optim.RMSprop`, or a
        `functools.partial` with other settings.
    batch_size : int, optional
        Samples of each kind in a step, drawn with replacement. By default all of them.
    loss : {"wasserstein", "hinge"}, default "wasserstein"
        `lipbook.wgan.critic_loss` (18) or `lipbook.wgan.hinge_critic_loss`.
    generator : torch.Generator, optional
        On the CPU; draws batches, pairs and what the constraint draws. By default a fresh one of
        seed 0, so that training is deterministic and leaves the global generator alone (unless
        the critic has Dropout).
    progress : bool, default False
        Show a bar over the steps.

    Returns
    -------
    pandas.DataFrame
        One row a step, measured before its update: `step` from 1; the `loss` with its `penalty`
        and the `estimate` of W₁ (for (18), loss = penalty - estimate); `gradient_norm`, the mean
        of ‖∇f‖ over the real and fake samples of every twentieth step from the first, else NaN,
        for a critic that scores each sample by itself; and the `seconds` that the step took.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    FloatingPointError
        If a number or a weight ceases to be finite.

    Examples
    --------
    >>> from lipbook.wgan import GradientPenalty, Unconstrained
    >>> real, fake = torch.full((8, 1), 3.0), torch.zeros(8, 1)
    >>> critic = nn.Linear(1, 1)
    >>> one_sided = GradientPenalty(10.0, one_sided=True)
    >>> sgd = torch.optim.SGD
    >>> history = fit_critic(critic, real, fake, one_sided, steps=200, lr=0.02, optimizer=sgd)
    >>> round(critic.weight.item(), 2)  # two points W = 3 apart: slope 1 + W / (2 λ)
    1.15
    >>> fit_critic(critic, real, fake, Unconstrained(), steps=0)
    Traceback (most recent call last):
    ValueError: steps must be at least 1, got 0
    """
    _check_samples(real, fake)
    _check_loss(loss)
    steps = check_count(steps, "steps")
    if batch_size is not None:
        batch_size = check_count(batch_size, "batch_size")
    generator = generator or torch.Generator().manual_seed(0)
    updater = optimizer(critic.parameters(), lr=check_positive(lr, "lr"))
    history = _History(["loss", "estimate", "penalty", "gradient_norm"], [critic])
    critic.train()
    for step in trange(steps, desc="steps", disable=not progress):
        batches = _draw(real, fake, batch_size, generator)
        measure = step % _MEASURE_EVERY == 0
        history.add(
            critic_step(
                *(critic, updater, constraint, *batches, generator), loss=loss, measure=measure
            )
        )
    critic.eval()
    return history.table()


@torch.inference_mode(False)
@torch.enable_grad()
def train_wgan(
    generator_net: nn.Module,
    critic: nn.Module,
    sample_real: Sampler,
    *,
    latent_dim: int,
    constraint: Constraint,
    steps: int,
    critic_steps: int = 5,
    batch_size: int = 64,
    critic_lr: float = 1e-4,
    generator_lr: float = 1e-4,
    optimizer: OptimizerFactory = WGAN_ADAM,
    loss: str = "wasserstein",
    generator: torch.Generator | None = None,
    on_step: Callable[[int], None] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train a generator against a constrained critic, in place, and leave both for evaluation.

    A step is `critic_steps` updates of the critic and one of the generator.

    Parameters
    ----------
    generator_net : nn.Module
        From standard normal latents, shape (n, latent_dim), to samples of the shape of the real.
    critic : nn.Module
        From samples to one score, or one map of scores, each.
    sample_real : callable
        ``sample_real(n, generator)`` draws n real samples, on the device and of the dtype of the
        critic, with no other source of randomness than this CPU generator.
    latent_dim : int
        Number of latents of a sample.
    constraint : Constraint
        What keeps the critic in bounds, `GradientPenalty()` say.
    steps : int
        Updates of the generator.
    critic_steps : int, default 5
        Updates of the critic before each of them.
    batch_size : int, default 64
        Real and fake samples in an update.
    critic_lr, generator_lr : float, default 1e-4
        Step sizes.
    optimizer : callable, default Adam with betas (0, 0.9)
        Called as ``optimizer(parameters, lr=lr)``, once for each network.
    loss : {"wasserstein", "hinge"}, default "wasserstein"
        The critic's, (18) or `lipbook.wgan.hinge_critic_loss`; the generator's is
        `lipbook.wgan.generator_loss` for both.
    generator : torch.Generator, optional
        On the CPU; draws real samples, latents and what the constraint draws. By default a fresh
        one of seed 0.
    on_step : callable, optional
        Called with the number of each step after it, for snapshots; its time is not counted.
    progress : bool, default False
        Show a bar over the steps.

    Returns
    -------
    pandas.DataFrame
        One row a step: `step` from 1; `critic_loss`, `estimate`, `penalty` and `gradient_norm` of
        the last update of the critic, as in `fit_critic`; `generator_loss`; and `seconds`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    FloatingPointError
        If a number or a weight ceases to be finite.

    Examples
    --------
    >>> from lipbook.wgan import WeightClipping
    >>> shift, critic = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> history = train_wgan(
    ...     shift, critic, lambda n, generator: torch.randn(n, 1, generator=generator) + 3,
    ...     latent_dim=1, constraint=WeightClipping(0.1), steps=200, critic_lr=0.1,
    ...     generator_lr=0.05,
    ... )
    >>> len(history), abs(shift.bias.item() - 3) < 1
    (200, True)
    >>> train_wgan(
    ...     shift, critic, lambda n, generator: torch.zeros(n, 2),
    ...     latent_dim=1, constraint=WeightClipping(0.1), steps=1,
    ... )
    Traceback (most recent call last):
    ValueError: generator_net must return samples of the shape of the real ones, (2,), got (1,)
    """
    steps, critic_steps = check_count(steps, "steps"), check_count(critic_steps, "critic_steps")
    _check_loss(loss)
    generator = generator or torch.Generator().manual_seed(0)
    draws = _Draws(generator_net, sample_real, latent_dim, batch_size, generator)
    critic_updater = optimizer(critic.parameters(), lr=check_positive(critic_lr, "critic_lr"))
    generator_updater = optimizer(
        generator_net.parameters(), lr=check_positive(generator_lr, "generator_lr")
    )
    draws.try_out()
    history = _History(
        ["critic_loss", "estimate", "penalty", "gradient_norm", "generator_loss"],
        [critic, generator_net],
    )
    critic.train()
    generator_net.train()
    for step in trange(1, steps + 1, desc="steps", disable=not progress):
        measure = (step - 1) % _MEASURE_EVERY == 0
        for _ in range(critic_steps):
            batches = draws.real(), draws.fake()
            numbers = critic_step(
                *(critic, critic_updater, constraint, *batches, generator),
                loss=loss,
                measure=measure,
            )
        pair = generator_net, critic
        lost = generator_step(*pair, generator_updater, draws.latents(), loss=loss)
        history.add([*numbers, lost])
        if on_step is not None:
            on_step(step)
        history.start_clock()
    critic.eval()
    generator_net.eval()
    return history.table()


@torch.inference_mode(False)
@torch.enable_grad()
def critic_step(
    critic: nn.Module,
    optimizer: Optimizer,
    constraint: Constraint,
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    *,
    loss: str = "wasserstein",
    measure: bool = False,
) -> list[Tensor]:
    """Update the critic once, and return loss, estimate, penalty and mean ‖∇f‖ from before.

    The one step that `fit_critic` and `train_wgan` repeat. The four numbers are tensors of shape
    () on the critic's device: nothing waits for them. The last is NaN unless `measure` is true.

    Examples
    --------
    >>> from lipbook.wgan import WeightClipping
    >>> critic = nn.Linear(1, 1)
    >>> batches = torch.ones(4, 1), torch.zeros(4, 1)
    >>> sgd = torch.optim.SGD(critic.parameters(), lr=10.0)
    >>> _ = critic_step(critic, sgd, WeightClipping(0.1), *batches, torch.Generator())
    >>> round(critic.weight.item(), 2)
    0.1
    """
    samples = [constant(x).requires_grad_(measure) for x in (real, fake)]
    with parametrize.cached():  # a normalized weight is one weight for the whole step
        scores = [critic(x) for x in samples]
        penalty = constraint.penalty(critic, samples[0].detach(), samples[1].detach(), generator)
    norm = _mean_norm(scores, samples) if measure else penalty.new_full((), math.nan)
    total = penalty + LOSSES[loss][0](*scores)
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    constraint.after_step(critic)
    with torch.no_grad():
        estimate = wasserstein_estimate(*scores)
    return [total.detach(), estimate, penalty.detach(), norm]


@torch.inference_mode(False)
@torch.enable_grad()
def generator_step(
    generator_net: nn.Module,
    critic: nn.Module,
    optimizer: Optimizer,
    latents: Tensor,
    *,
    loss: str = "wasserstein",
) -> Tensor:
    """Update the generator once, and return its loss from before, of shape () on its device.

    Examples
    --------
    >>> shift, critic = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(shift.bias), nn.init.constant_(critic.weight, 2.0)
    >>> sgd = torch.optim.SGD(shift.parameters(), lr=1.0)
    >>> _ = generator_step(shift, critic, sgd, torch.ones(4, 1))
    >>> shift.bias.item()  # up the slope of the critic
    2.0
    """
    lost = LOSSES[loss][1](critic(generator_net(constant(latents))))
    optimizer.zero_grad()
    # The critic's own gradients are not asked for, and not computed.
    weights = [p for p in generator_net.parameters() if p.requires_grad]
    lost.backward(inputs=weights)  # type: ignore[no-untyped-call]
    optimizer.step()
    return lost.detach()


class _History:
    """A table of the steps, filled block by block, and the watch that no number is lost in it."""

    def __init__(self, columns: list[str], networks: list[nn.Module]) -> None:
        self.columns = columns
        self.networks = networks
        self.rows: list[list[float]] = []
        self._pending: list[Tensor] = []
        self._seconds: list[float] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Let the time of the next step begin now."""
        self._began = time.perf_counter()

    def add(self, numbers: Iterable[Tensor]) -> None:
        """Append the numbers of one step, all of shape () and detached, and its time."""
        self._pending += numbers
        if self._pending[-1].is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds.append(now - self._began)
        self._began = now
        if len(self._seconds) >= _BLOCK:
            self.flush()

    def flush(self) -> None:
        """Fetch what is pending; stop at the first step where a number is not finite."""
        if not self._seconds:
            return
        block = torch.stack(self._pending).double().reshape(-1, len(self.columns)).tolist()
        seconds, self._pending, self._seconds = self._seconds, [], []
        for row, duration in zip(block, seconds, strict=True):
            self.rows.append([*row, duration])
            for column, number in zip(self.columns, row, strict=True):
                if not math.isfinite(number) and column != "gradient_norm":
                    self._stop(f"the {column.replace('_', ' ')} is {number}")
        for network in self.networks:
            for name, parameter in network.named_parameters():
                if not bool(parameter.isfinite().all()):
                    self._stop(f"the update left {name} with an entry that is not finite")

    def _stop(self, cause: str) -> None:
        raise FloatingPointError(
            f"training diverged in step {len(self.rows)}: {cause}; lower the step size, "
            "constrain the critic, or train in float32 (Adam's eps underflows in float16)"
        )

    def table(self) -> pd.DataFrame:
        """Return all rows, after a last look."""
        self.flush()
        table = pd.DataFrame(self.rows, columns=[*self.columns, "seconds"])
        table.insert(0, "step", range(1, len(table) + 1))
        return table


class _Draws(NamedTuple):
    """What a training draws from one generator: real samples, and latents for fake ones."""

    generator_net: nn.Module
    sample_real: Sampler
    latent_dim: int
    batch_size: int
    generator: torch.Generator

    def real(self) -> Tensor:
        """Draw real samples."""
        return self.sample_real(self.batch_size, self.generator)

    def latents(self) -> Tensor:
        """Draw latents for the network, wherever it is."""
        like = next(self.generator_net.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)  # the same draw in half precision
        shape = (self.batch_size, self.latent_dim)
        return torch.randn(shape, generator=self.generator, dtype=dtype).to(like)

    @torch.no_grad()
    def fake(self) -> Tensor:
        """Generate samples for a step of the critic."""
        samples: Tensor = self.generator_net(self.latents())
        return samples

    def try_out(self) -> None:
        """Refuse samplers and generators that do not match, and leave the random numbers alone."""
        for name in ("latent_dim", "batch_size"):
            check_count(getattr(self, name), name)
        spare = torch.Generator()
        spare.set_state(self.generator.get_state())
        trial = self._replace(generator=spare)
        real = check_tensor(trial.real(), "a batch of sample_real", min_ndim=1)
        if len(real) != self.batch_size:
            raise ValueError(
                f"sample_real must draw {self.batch_size} samples when asked, got {len(real)}"
            )
        try:
            with evaluation_mode(self.generator_net):
                fake = trial.fake()
        except RuntimeError as error:
            raise ValueError(
                f"latent_dim={self.latent_dim} does not suit generator_net: {error}"
            ) from error
        if fake.shape[1:] != real.shape[1:]:
            raise ValueError(
                "generator_net must return samples of the shape of the real ones, "
                f"{(*real.shape[1:],)}, got {(*fake.shape[1:],)}"
            )


def _mean_norm(scores: list[Tensor], samples: list[Tensor]) -> Tensor:
    """Return the mean ‖∇f‖ over both kinds of samples."""
    means = [score.mean() for score in scores]
    gradients = torch.autograd.grad(means, samples, retain_graph=True)
    # A sample's gradient is divided by n, as its score is in the mean.
    norms: Tensor = torch.cat([len(x) * gradient_norms(x) for x in gradients])
    return norms.mean()


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")


def _draw(
    real: Tensor, fake: Tensor, batch_size: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return independent batches, or the whole samples in a new random pairing."""
    if batch_size is None:
        return real, fake[torch.randperm(len(fake), generator=generator).to(fake.device)]
    rows = (torch.randint(len(x), (batch_size,), generator=generator) for x in (real, fake))
    real_rows, fake_rows = rows
    return real[real_rows.to(real.device)], fake[fake_rows.to(fake.device)]


def _check_samples(real: Tensor, fake: Tensor) -> None:
    check_tensor(real, "real", min_ndim=1)
    check_tensor(fake, "fake", min_ndim=1)
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            "real and fake must hold samples of one shape, "
            f"got {(*real.shape[1:],)} and {(*fake.shape[1:],)}"
        )
