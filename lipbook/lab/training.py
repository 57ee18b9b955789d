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
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import trange

from lipbook._checks import check_count, check_positive, check_tensor
from lipbook._layers import evaluation_mode
from lipbook.lab.checkpoints import Checkpoint, RandomState, Setting, Stateful
from lipbook.wgan import Constraint, gradient_norms

OptimizerFactory = Callable[..., Optimizer]
Sampler = Callable[[int, torch.Generator], Tensor]

#: The optimizer of Gulrajani et al. 2017: no momentum, because the critic's loss keeps changing.
WGAN_ADAM: OptimizerFactory = partial(Adam, betas=(0.0, 0.9))

_BLOCK = 100  # steps between two looks at the numbers
_MEASURE_EVERY = 20  # steps between two gradient norms: those of images are dear


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
        and the `estimate` of W₁ (loss = penalty - estimate); `gradient_norm`, the mean of ‖∇f‖
        over the real and fake samples of every twentieth step from the first, else NaN, for a
        critic that scores each sample by itself; and the `seconds` that the step took.

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
    >>> one_sided = GradientPenalty(weight=10.0, one_sided=True)
    >>> sgd = torch.optim.SGD
    >>> history = fit_critic(critic, real, fake, one_sided, steps=200, lr=0.02, optimizer=sgd)
    >>> round(critic.weight.item(), 2)  # two points W = 3 apart: slope 1 + W / (2 λ)
    1.15
    >>> fit_critic(critic, real, fake, Unconstrained(), steps=0)
    Traceback (most recent call last):
    ValueError: steps must be at least 1, got 0
    """
    _check_samples(real, fake)
    check_count(steps, "steps")
    if batch_size is not None:
        check_count(batch_size, "batch_size")
    generator = generator or torch.Generator().manual_seed(0)
    updater = optimizer(critic.parameters(), lr=check_positive(lr, "lr"))
    history = _History(["loss", "estimate", "penalty", "gradient_norm"], [critic])
    critic.train()
    for step in trange(steps, desc="steps", disable=not progress):
        batches = _draw(real, fake, batch_size, generator)
        measure = step % _MEASURE_EVERY == 0
        numbers = critic_step(critic, updater, constraint, *batches, generator, measure=measure)
        history.add(numbers)
    critic.eval()
    return history.table()


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
    average: AveragedModel | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = False,
) -> pd.DataFrame:
    """Train a generator against a constrained critic, in place, and leave both for evaluation.

    A step is `critic_steps` updates of the critic (18) and one of the generator. If `checkpoint`
    exists, the training goes on from there to the very weights of a run that was never stopped, on
    the same machine with as many threads: give it the arguments of the first call (`steps` may
    grow) and networks of the same shape.

    Parameters
    ----------
    generator_net : nn.Module
        From standard normal latents, shape (n, latent_dim), to samples of the shape of the real.
    critic : nn.Module
        From samples to one score each.
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
    average : torch.optim.swa_utils.AveragedModel, optional
        Made from the generator; updated after each step. Say
        ``AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))`` for a moving average.
    generator : torch.Generator, optional
        On the CPU; draws real samples, latents and what the constraint draws. By default a fresh
        one of seed 0.
    on_step : callable, optional
        Called with the number of each step after it, for snapshots; its time is not counted.
    checkpoint : path, optional
        File that holds the whole state: weights, optimizers, random generators, history. Replaced
        in one move, so that a kill at any moment leaves a whole file.
    checkpoint_every : int, default 1000
        Steps between two writes; the last step writes too.
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
        If an argument has the wrong type or is out of range, or if `checkpoint` is damaged or
        belongs to other settings or networks.
    FileNotFoundError
        If the folder of `checkpoint` does not exist.
    FloatingPointError
        If a number or a weight ceases to be finite; the checkpoint stays as it was before.

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
    counts = {
        "latent_dim": latent_dim,
        "steps": steps,
        "critic_steps": critic_steps,
        "batch_size": batch_size,
        "checkpoint_every": checkpoint_every,
    }
    for name, count in counts.items():
        check_count(count, name)
    generator = generator or torch.Generator().manual_seed(0)
    critic_updater = optimizer(critic.parameters(), lr=check_positive(critic_lr, "critic_lr"))
    generator_updater = optimizer(
        generator_net.parameters(), lr=check_positive(generator_lr, "generator_lr")
    )
    draw_latents = _latents(generator_net, batch_size, latent_dim)
    _try_out(generator_net, draw_latents, sample_real, batch_size, generator)
    history = _History(
        ["critic_loss", "estimate", "penalty", "gradient_norm", "generator_loss"],
        [critic, generator_net],
    )
    store = None
    if checkpoint is not None:
        parts: dict[str, Stateful] = {
            "generator_net": generator_net,
            "critic": critic,
            "generator_optimizer": generator_updater,
            "critic_optimizer": critic_updater,
            "random": RandomState(generator),
            "history": history,
        }
        if average is not None:
            parts["average"] = average
        settings: dict[str, Setting] = {
            **{name: counts[name] for name in ("latent_dim", "critic_steps", "batch_size")},
            "constraint": repr(constraint),
            "critic_optimizer": _described(critic_updater),
            "generator_optimizer": _described(generator_updater),
            "average": average is not None,
        }
        store = Checkpoint(checkpoint, parts, settings)
        store.load()
    done = len(history.rows)
    if done > steps:
        raise ValueError(f"checkpoint {checkpoint} is at step {done}, past steps={steps}")
    critic.train()
    generator_net.train()
    history.start_clock()
    for step in trange(
        done + 1, steps + 1, initial=done, total=steps, desc="steps", disable=not progress
    ):
        measure = (step - 1) % _MEASURE_EVERY == 0
        for _ in range(critic_steps):
            real = sample_real(batch_size, generator)
            with torch.no_grad():
                fake = generator_net(draw_latents(generator))
            numbers = critic_step(
                critic, critic_updater, constraint, real, fake, generator, measure=measure
            )
        loss = generator_step(generator_net, critic, generator_updater, draw_latents(generator))
        if average is not None:
            average.update_parameters(generator_net)
        history.add([*numbers, loss])
        if store is not None and (step % checkpoint_every == 0 or step == steps):
            store.save()
        if on_step is not None:
            on_step(step)
        history.start_clock()
    critic.eval()
    generator_net.eval()
    return history.table()


def critic_step(
    critic: nn.Module,
    optimizer: Optimizer,
    constraint: Constraint,
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    *,
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
    # When it goes down to the samples, the backward pass of the scores also gives ∇f there.
    real, fake = (x.detach().requires_grad_(measure) for x in (real, fake))
    with parametrize.cached():  # a normalized weight is one weight for the whole step
        estimate = critic(real).mean() - critic(fake).mean()
        penalty = constraint.penalty(critic, real.detach(), fake.detach(), generator)
    loss = penalty - estimate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    constraint.after_step(critic)
    # A sample's gradient is divided by n, as its score is in the mean.
    norms = [len(x) * gradient_norms(x.grad) for x in (real, fake) if x.grad is not None]
    mean_norm = torch.cat(norms).mean() if norms else loss.new_full((), math.nan)
    return [loss.detach(), estimate.detach(), penalty.detach(), mean_norm]


def generator_step(
    generator_net: nn.Module, critic: nn.Module, optimizer: Optimizer, latents: Tensor
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
    loss: Tensor = -critic(generator_net(latents)).mean()
    optimizer.zero_grad()
    # The critic's own gradients are not asked for, and not computed.
    weights = [p for p in generator_net.parameters() if p.requires_grad]
    loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


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

    def state_dict(self) -> dict[str, Any]:
        """Return all rows for a checkpoint, after a last look: no state after a NaN is kept."""
        self.flush()
        return {"rows": torch.tensor(self.rows, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of a checkpoint."""
        self.rows = state_dict["rows"].tolist()


def _latents(
    generator_net: nn.Module, batch_size: int, latent_dim: int
) -> Callable[[torch.Generator], Tensor]:
    """Return what draws a batch of latents for this network, wherever it is."""
    like = next(generator_net.parameters())
    dtype = torch.promote_types(like.dtype, torch.float32)  # the same draw in half precision
    shape = (batch_size, latent_dim)
    return lambda source: torch.randn(shape, generator=source, dtype=dtype).to(like)


def _try_out(
    generator_net: nn.Module,
    draw_latents: Callable[[torch.Generator], Tensor],
    sample_real: Sampler,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Refuse samplers and generators that do not match, and leave the random numbers alone."""
    spare = torch.Generator()
    spare.set_state(generator.get_state())
    real = check_tensor(sample_real(batch_size, spare), "a batch of sample_real", min_ndim=1)
    if len(real) != batch_size:
        raise ValueError(f"sample_real must draw {batch_size} samples when asked, got {len(real)}")
    latents = draw_latents(spare)
    try:
        with torch.no_grad(), evaluation_mode(generator_net):
            fake = generator_net(latents)
    except RuntimeError as error:
        raise ValueError(
            f"latent_dim={latents.shape[1]} does not suit generator_net: {error}"
        ) from error
    if fake.shape[1:] != real.shape[1:]:
        raise ValueError(
            "generator_net must return samples of the shape of the real ones, "
            f"{(*real.shape[1:],)}, got {(*fake.shape[1:],)}"
        )


def _described(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__name__} {optimizer.defaults}"


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
