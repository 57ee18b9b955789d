"""Chapter 5: the WGAN's losses, the gradient penalty, and the ways to constrain a critic.

A critic maps a batch (n, …) to one score a sample, shape (n,) or (n, 1): a module, or a function
such as ``lambda x: functional_call(net, weights, x)``. Signs follow the dual (17): the critic
raises its scores of real samples and lowers those of fake ones.

A constraint is an object with the two methods of `Constraint`. `fit_critic` and `train_wgan` call
them and know no more about it, so that a new one needs no change to the loops.
"""

# ruff: noqa: ARG002  (a constraint is given what it may not need)

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lipbook._checks import check_positive, check_tensor

Critic = Callable[[Tensor], Tensor]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def wasserstein_estimate(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Mean score of the real samples less that of the fake ones: the objective of (17).

    For a critic with Lipschitz constant L it is at most L times the distance W₁ of the two
    samples, and for the best critic with L = 1 it is W₁.

    Parameters
    ----------
    real_scores, fake_scores : Tensor
        The critic's scores, of any shape; the numbers of samples may differ.

    Returns
    -------
    Tensor, shape ()
        In the dtype of the scores, differentiable; in units of distance times L.

    Raises
    ------
    TypeError, ValueError
        If the scores are no finite floating-point tensors.

    Examples
    --------
    >>> wasserstein_estimate(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    tensor(3.)
    >>> wasserstein_estimate(torch.tensor([3.0]), torch.tensor([]))
    Traceback (most recent call last):
    ValueError: fake_scores must not be empty, got shape (0,)
    """
    check_tensor(real_scores, "real_scores")
    return real_scores.mean() - check_tensor(fake_scores, "fake_scores").mean()


def critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return what the critic minimizes (18): `wasserstein_estimate` with its sign turned.

    Parameters
    ----------
    real_scores, fake_scores : Tensor
        The critic's scores, of any shape; the numbers of samples may differ.

    Returns
    -------
    Tensor, shape ()
        ``mean(fake) - mean(real)``, in the dtype of the scores, differentiable.

    Raises
    ------
    TypeError, ValueError
        If the scores are no finite floating-point tensors.

    Examples
    --------
    >>> critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    tensor(-3.)
    >>> critic_loss(torch.tensor([3]), torch.tensor([1.0]))
    Traceback (most recent call last):
    TypeError: real_scores must have a real floating-point dtype, got torch.int64; ...
    """
    return -wasserstein_estimate(real_scores, fake_scores)


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Return what the generator minimizes: the part of the estimate that it can change.

    Parameters
    ----------
    fake_scores : Tensor
        The critic's scores of generated samples, of any shape.

    Returns
    -------
    Tensor, shape ()
        ``-mean(fake)``, in the dtype of the scores, differentiable.

    Raises
    ------
    TypeError, ValueError
        If the scores are no finite floating-point tensor.

    Examples
    --------
    >>> generator_loss(torch.tensor([[1.0], [3.0]]))
    tensor(-2.)
    >>> generator_loss(torch.tensor([float("inf")]))
    Traceback (most recent call last):
    ValueError: fake_scores must be finite, got inf at index (0,); ...
    """
    return -check_tensor(fake_scores, "fake_scores").mean()


def interpolate(real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw a point on the segment between each real sample and its fake partner (21).

    Parameters
    ----------
    real, fake : Tensor, shape (n, ...)
        Of one shape, dtype and device; row i is the partner of row i.
    generator : torch.Generator, optional
        On the CPU; draws one ε a sample, uniform on [0, 1). By default torch's global one.

    Returns
    -------
    Tensor, shape (n, ...)
        ``ε · real + (1 - ε) · fake``, differentiable in both.

    Raises
    ------
    TypeError
        If one is no floating-point tensor, or their dtypes differ.
    ValueError
        If one is empty or not finite, or their shapes or devices differ.

    Examples
    --------
    >>> x = interpolate(torch.ones(2, 3), torch.zeros(2, 3))
    >>> bool((x == x[:, :1]).all()), bool(((x >= 0) & (x <= 1)).all())
    (True, True)
    >>> interpolate(torch.ones(2, 3), torch.zeros(4, 3))
    Traceback (most recent call last):
    ValueError: real and fake must have one shape, got (2, 3) and (4, 3); draw as many fakes as ...
    """
    check_tensor(real, "real", min_ndim=1)
    check_tensor(fake, "fake", min_ndim=1)
    return _interpolate(real, fake, generator)


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    one_sided: bool = False,
    target: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared deviation of ‖∇f‖ from `target` between real and fake samples: (19), (20).

    The norm of each gradient is Euclidean over all axes but the batch, and each sample gets one
    random point of its segment, see `interpolate`. Multiply the result by λ.

    Parameters
    ----------
    critic : callable
        From a batch to one score a sample, differentiable twice; each score may depend on its own
        sample alone. Labels and other conditions belong into a function:
        ``gradient_penalty(lambda x: critic(x, labels), real, fake)``.
    real, fake : Tensor, shape (n, ...)
        Of one shape, dtype and device. Both are taken as constants: no gradient flows into the
        generator.
    one_sided : bool, default False
        Punish only norms above the target (20), as in WGAN-LP (Petzka et al. 2018).
    target : float, default 1.0
        The norm asked for, at least 0.
    generator : torch.Generator, optional
        On the CPU; draws the points. By default torch's global one.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the critic's parameters by autograd.

    Raises
    ------
    TypeError
        If a tensor has the wrong dtype.
    ValueError
        If shapes differ, a tensor is empty or not finite, `target` is negative, or the critic
        returns other than one score a sample or normalizes over the batch.

    Examples
    --------
    >>> triple = nn.Linear(1, 1)
    >>> nn.init.constant_(triple.weight, 3.0).item()
    3.0
    >>> gradient_penalty(triple, torch.ones(4, 1), torch.zeros(4, 1)).item()  # (3 - 1)²
    4.0
    >>> gradient_penalty(torch.tanh, torch.ones(4, 1), torch.zeros(4, 1), one_sided=True).item()
    0.0
    >>> batch_norm = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> gradient_penalty(batch_norm, torch.ones(4, 1), torch.zeros(4, 1))
    Traceback (most recent call last):
    ValueError: critic must not hold a BatchNorm layer in training mode: it lets a score depend ...
    """
    check_tensor(real, "real", min_ndim=1)
    check_tensor(fake, "fake", min_ndim=1)
    return _gradient_penalty(critic, real, fake, one_sided, _check_target(target), generator)


def clip_weights_(module: nn.Module, c: float) -> None:
    """Clamp every parameter, weights and biases, to [-c, c]: the first WGAN's constraint.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    c : float
        Above 0.

    Raises
    ------
    TypeError, ValueError
        If `c` is no finite number above 0.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> clip_weights_(layer, 0.01)
    >>> layer.weight.abs().max().item() <= 0.01
    True
    >>> clip_weights_(layer, 0)
    Traceback (most recent call last):
    ValueError: c must be a finite number above 0, got 0
    """
    check_positive(c, "c")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(-c, c)


def clip_frobenius_(module: nn.Module, limit: float) -> None:
    """Scale every matrix and kernel down to a Frobenius norm of at most `limit`.

    These are the parameters with two axes or more: biases do not stretch. With 1-Lipschitz
    activations, a chain of k dense layers then has a Lipschitz constant of at most limitᵏ by (10).

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    limit : float
        Above 0.

    Raises
    ------
    TypeError, ValueError
        If `limit` is no finite number above 0, or the module has no matrix.

    Examples
    --------
    >>> layer = nn.Linear(3, 3)
    >>> clip_frobenius_(layer, 0.5)
    >>> round(layer.weight.norm().item(), 6)
    0.5
    >>> clip_frobenius_(nn.ReLU(), 1.0)
    Traceback (most recent call last):
    ValueError: module must have a parameter with two axes or more, ReLU() has none
    """
    check_positive(limit, "limit")
    with torch.no_grad():
        for matrix, norm in _frobenius_norms(module):
            matrix.mul_((limit / norm).clamp(max=1.0))


def frobenius_excess_penalty(module: nn.Module, limit: float) -> Tensor:
    """Sum over matrices and kernels W of ``max(‖W‖_F - limit, 0)²``: the limit made soft.

    Parameters
    ----------
    module : nn.Module
        Its parameters with two axes or more count, as for `clip_frobenius_`.
    limit : float
        Above 0.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the parameters.

    Raises
    ------
    TypeError, ValueError
        If `limit` is no finite number above 0, or the module has no matrix.

    Examples
    --------
    >>> layer = nn.Linear(4, 4)
    >>> nn.init.eye_(layer.weight).norm().item()
    2.0
    >>> frobenius_excess_penalty(layer, 0.5).item()  # (2 - 0.5)²
    2.25
    >>> frobenius_excess_penalty(layer, -1.0)
    Traceback (most recent call last):
    ValueError: limit must be a finite number above 0, got -1.0
    """
    check_positive(limit, "limit")
    excesses = [(norm - limit).clamp(min=0.0) for _, norm in _frobenius_norms(module)]
    return torch.stack(excesses).square().sum()


class Constraint(Protocol):
    """What keeps a critic's Lipschitz constant in bounds; by default nothing does.

    Write your own by overriding one method or both, best as a frozen dataclass: a checkpoint of
    `train_wgan` remembers the constraint by its ``repr``.
    """

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return what each step adds to the critic's loss, λ included, as a tensor of shape ().

        Parameters
        ----------
        critic : nn.Module
            In training mode, unless the caller has decided otherwise.
        real, fake : Tensor, shape (n, ...)
            The step's batches, without gradients.
        generator : torch.Generator, optional
            The training's own; draws whatever is random.
        """
        return real.new_zeros(())

    def after_step(self, critic: nn.Module) -> None:
        """Change the critic in place after each step of its optimizer."""
        return  # not an empty body, which would be abstract


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """No constraint, or one that is built into the critic, such as spectral normalization."""


@dataclass(frozen=True)
class WeightClipping(Constraint):
    """`clip_weights_` after every step (Arjovsky, Chintala & Bottou 2017).

    Examples
    --------
    >>> WeightClipping(0.1)
    WeightClipping(c=0.1)
    >>> WeightClipping(-0.1)
    Traceback (most recent call last):
    ValueError: c must be a finite number above 0, got -0.1
    """

    c: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self.c, "c")

    def after_step(self, critic: nn.Module) -> None:
        """Clamp every parameter."""
        clip_weights_(critic, self.c)


@dataclass(frozen=True)
class FrobeniusClipping(Constraint):
    """`clip_frobenius_` after every step: the article's first refinement.

    Examples
    --------
    >>> FrobeniusClipping(2.0)
    FrobeniusClipping(limit=2.0)
    >>> FrobeniusClipping(0.0)
    Traceback (most recent call last):
    ValueError: limit must be a finite number above 0, got 0.0
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.limit, "limit")

    def after_step(self, critic: nn.Module) -> None:
        """Scale every matrix down to the limit."""
        clip_frobenius_(critic, self.limit)


@dataclass(frozen=True)
class FrobeniusExcess(Constraint):
    """`weight` times `frobenius_excess_penalty`: the article's second refinement.

    Examples
    --------
    >>> FrobeniusExcess(limit=2.0)
    FrobeniusExcess(limit=2.0, weight=10.0)
    >>> FrobeniusExcess(weight=0.0)
    Traceback (most recent call last):
    ValueError: weight must be a finite number above 0, got 0.0
    """

    limit: float = 1.0
    weight: float = 10.0

    def __post_init__(self) -> None:
        check_positive(self.limit, "limit")
        check_positive(self.weight, "weight")

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the weighted penalty."""
        return self.weight * frobenius_excess_penalty(critic, self.limit)


@dataclass(frozen=True)
class GradientPenalty(Constraint):
    """λ = `weight` times `gradient_penalty`, two-sided (19) or one-sided (20).

    Examples
    --------
    >>> GradientPenalty(one_sided=True)
    GradientPenalty(weight=10.0, one_sided=True, target=1.0)
    >>> GradientPenalty(weight=-10.0)
    Traceback (most recent call last):
    ValueError: weight must be a finite number above 0, got -10.0
    """

    weight: float = 10.0
    one_sided: bool = False
    target: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.weight, "weight")
        _check_target(self.target)

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the weighted penalty; the loops have seen to it that the samples are finite."""
        return self.weight * _gradient_penalty(
            critic, real, fake, self.one_sided, self.target, generator
        )


def _gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    one_sided: bool,
    target: float,
    generator: torch.Generator | None,
) -> Tensor:
    _refuse_batch_norm(critic)
    points = _interpolate(real.detach(), fake.detach(), generator).requires_grad_()
    scores = critic(points)
    if scores.shape not in [(len(points),), (len(points), 1)]:
        raise ValueError(
            f"critic must return one score a sample, shape ({len(points)},) or "
            f"({len(points)}, 1), got {(*scores.shape,)}"
        )
    ones = torch.ones_like(scores)
    (gradients,) = torch.autograd.grad(scores, points, ones, create_graph=True)
    deviations = gradient_norms(gradients) - target
    return (deviations.clamp(min=0.0) if one_sided else deviations).square().mean()


def gradient_norms(gradients: Tensor) -> Tensor:
    """Euclidean norm of each row over all axes but the batch, in float32 at least.

    Examples
    --------
    >>> gradient_norms(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]]))
    tensor([5., 1.])
    """
    rows = gradients.reshape(len(gradients), -1)
    norms: Tensor = torch.linalg.vector_norm(
        rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    return norms


def _interpolate(real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
    if real.dtype != fake.dtype:
        raise TypeError(f"real and fake must have one dtype, got {real.dtype} and {fake.dtype}")
    if real.shape != fake.shape:
        raise ValueError(
            f"real and fake must have one shape, got {(*real.shape,)} and {(*fake.shape,)}; "
            "draw as many fakes as reals, each is the partner of one"
        )
    if real.device != fake.device:
        raise ValueError(f"real and fake must be on one device, got {real.device}, {fake.device}")
    shape = (len(real), *[1] * (real.ndim - 1))
    dtype = torch.promote_types(real.dtype, torch.float32)  # the same draw in half precision
    epsilon = torch.rand(shape, generator=generator, dtype=dtype)
    return torch.lerp(fake, real, epsilon.to(real))


def _refuse_batch_norm(critic: Critic) -> None:
    if not isinstance(critic, nn.Module):
        return
    for layer in critic.modules():
        if isinstance(layer, _BATCH_NORMS) and (layer.training or layer.running_mean is None):
            raise ValueError(
                "critic must not hold a BatchNorm layer in training mode: it lets a score depend "
                "on the whole batch, and the penalty is on the gradient of each sample's own "
                "score; take nn.LayerNorm or nn.GroupNorm, or critic.eval()"
            )


def _frobenius_norms(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with two axes or more, and its norm in float32 at least."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    if not matrices:
        raise ValueError(f"module must have a parameter with two axes or more, {module} has none")
    for matrix in matrices:
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        yield matrix, torch.linalg.vector_norm(matrix, dtype=dtype)


def _check_target(target: float) -> float:
    if isinstance(target, bool) or not isinstance(target, int | float):
        raise TypeError(f"target must be a real number, got {type(target).__name__}")
    if not 0 <= target < math.inf:
        raise ValueError(f"target must be a finite number of at least 0, got {target}")
    return float(target)
