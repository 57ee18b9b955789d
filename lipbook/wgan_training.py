"""Chapter 5: a critic against two fixed samples, and a generator against a critic.

Both loops take the same critic step. The numbers of a step stay on the device until a block of
steps is full, so that no step waits for them; a value that is not finite is found then, and
reported with the step that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from tqdm import trange

from lipbook.validation import check_count, check_positive, check_tensor
from lipbook.wgan import Constraint, gradient_norms

OptimizerFactory = Callable[..., Optimizer]

#: The optimizer of Gulrajani et al. 2017: no momentum, because the critic's loss keeps changing.
WGAN_ADAM: OptimizerFactory = partial(Adam, betas=(0.0, 0.9))

_BLOCK = 100  # steps between two looks at the numbers


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
        One row a step, measured before its update: `step` from 1, the `loss` with its `penalty`,
        the `estimate` of W₁ (loss = penalty - estimate), and `gradient_norm`, the mean of ‖∇f‖
        over the real and fake samples, for a critic that scores each sample by itself.

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
    >>> history = fit_critic(critic, real, fake, one_sided, steps=500, lr=0.01)
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
    for _ in trange(steps, desc="steps", disable=not progress):
        batches = _draw(real, fake, batch_size, generator)
        history.add(critic_step(critic, updater, constraint, *batches, generator))
    critic.eval()
    return history.table()


def critic_step(
    critic: nn.Module,
    optimizer: Optimizer,
    constraint: Constraint,
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
) -> list[Tensor]:
    """Update the critic once, and return loss, estimate, penalty and mean ‖∇f‖ from before.

    The one step that `fit_critic` and `train_wgan` repeat. The four numbers are tensors of shape
    () on the critic's device: nothing waits for them.

    Examples
    --------
    >>> from lipbook.wgan import WeightClipping
    >>> critic = nn.Linear(1, 1)
    >>> batches = torch.ones(4, 1), torch.zeros(4, 1)
    >>> sgd = torch.optim.SGD(critic.parameters(), lr=1.0)
    >>> _ = critic_step(critic, sgd, WeightClipping(0.1), *batches, torch.Generator())
    >>> round(critic.weight.item(), 2)
    0.1
    """
    # The backward pass of the scores then also gives their gradients in the samples.
    real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
    estimate = critic(real).mean() - critic(fake).mean()
    penalty = constraint.penalty(critic, real.detach(), fake.detach(), generator)
    loss = penalty - estimate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    constraint.after_step(critic)
    # Each sample's share in its mean is 1 / n.
    norms = [len(x) * gradient_norms(x.grad) for x in (real, fake) if x.grad is not None]
    return [loss.detach(), estimate.detach(), penalty.detach(), torch.cat(norms).mean()]


class _History:
    """A table of the steps, filled block by block, and the watch that no number is lost in it."""

    def __init__(self, columns: list[str], networks: list[nn.Module]) -> None:
        self.columns = columns
        self.networks = networks
        self.rows: list[list[float]] = []
        self._pending: list[Tensor] = []

    def add(self, numbers: Iterable[Tensor]) -> None:
        """Append the numbers of one step, all of shape () and detached."""
        self._pending += numbers
        if len(self._pending) >= _BLOCK * len(self.columns):
            self.flush()

    def flush(self) -> None:
        """Fetch what is pending; stop at the first step where a number is not finite."""
        if self._pending:
            block = torch.stack(self._pending).double().reshape(-1, len(self.columns)).tolist()
            self._pending = []
            for row in block:
                self.rows.append(row)
                for column, number in zip(self.columns, row, strict=True):
                    if not math.isfinite(number):
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
        table = pd.DataFrame(self.rows, columns=self.columns)
        table.insert(0, "step", range(1, len(table) + 1))
        return table


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
